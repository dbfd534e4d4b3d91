"""What only a later stage would notice is refused before the training, or ends as "diverged"."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import train_gpt
from conformance.lab import Lab, smoke_settings, write_corpus
from techniques import catalog
from techniques.base import claims
from tests.conftest import arguments
from trainer.audit import SCORING_GAIN
from trainer.seams import Seams

KNOWN = catalog.runtime()
STORING = ("quantizer", "bits", "row_scale", "tensor_bits", "correct", "codec", "averager")
STORED = sorted(n for n, t in KNOWN.items() if set(STORING) & set(claims(t)))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Lab(write_corpus(tmp_path_factory.mktemp("refusals")))
    torch.set_num_threads(threads)


# -- diverged ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30], ids=str)
@pytest.mark.parametrize("name", STORED)
def test_weights_that_are_no_numbers_are_diverged_under_every_technique(lab: Lab, name: str, value: float):
    """1e30 is a number, and no float16."""
    settings = smoke_settings(KNOWN[name], KNOWN)
    resolved = lab.resolve(settings, KNOWN, num_layers=1, num_heads=2, num_kv_heads=1, model_dim=32)
    model = lab.build(resolved)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    for weight in weights.values():
        if weight.ndim == 2:
            weight.view(-1)[3:40] = value
    with pytest.raises(train_gpt.Diverged, match="weight is not finite"):
        train_gpt.quantize(weights, model, Seams(resolved), batches_of(lab))


def batches_of(lab: Lab) -> Iterator[Any]:
    while True:
        yield lab.ids(2, 16), lab.ids(2, 16)


@pytest.mark.parametrize("average", ["0", "1"])
def test_a_last_step_that_breaks_the_weights_is_diverged(
    tiny: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: str
) -> None:
    """The loss of a step tells nothing about the weights that the step leaves."""

    def broken(trainer: Any, loss: Any) -> None:
        if trainer.step == 6:
            next(trainer.model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(train_gpt.Trainer, "watch", broken)
    settings = tiny | {"out_dir": str(tmp_path), "lqer": "1", "ema": average}
    assert train_gpt.main(arguments(settings)) == 3
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "failed" and result["reason"].startswith("diverged: ")
    assert "val_bpb" not in result and not (tmp_path / "artifact.bin").exists()


# -- refused before the training ---------------------------------------------------------------------------


def refused(settings: dict[str, str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one error; nothing was trained."""
    capsys.readouterr()
    assert train_gpt.main(arguments({**settings, "out_dir": str(folder)})) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("error: ")
    metrics = folder / "metrics.jsonl"
    assert not metrics.exists() or "train" not in metrics.read_text()
    return told[0]


def test_one_chunk_is_refused_before_the_training(
    tiny: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny | {"score_first_ttt": "1", "score_first_ttt.stride": "16"}
    told = refused(settings, tmp_path / "whole", capsys)
    assert "only one chunk of 32768" in told and "Lower `score_first_ttt.chunk_tokens`" in told
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["status"] == "failed" and f"error: {result['reason']}" == told
    proxy = settings | {"score_first_ttt.chunk_tokens": "64", "val_tokens": "95"}  # 64 are scored
    assert "64 positions make only one chunk of 64" in refused(proxy, tmp_path / "proxy", capsys)
    assert train_gpt.main(arguments(proxy | {"val_tokens": "96", "out_dir": str(tmp_path / "two")})) == 0


def test_too_few_validation_tokens_are_refused_before_the_training(
    tiny: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "at least one window" in refused(tiny | {"val_tokens": "20"}, tmp_path, capsys)


@pytest.mark.parametrize(
    ("name", "package"), [("ans", "constriction"), ("zstd", "zstandard"), ("brotli_shuffle", "brotli")]
)
def test_a_missing_package_is_refused_before_the_training(
    tiny: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    package: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert f"`{package}`" in refused(tiny | {name: "1"}, tmp_path, capsys)


# -- and what a result may not be called -------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_score_that_the_training_cannot_explain_is_not_called_legal(
    tiny: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    whole = train_gpt.Evaluation.result
    assert factor == 1.0 or factor < 1.0 - 3 * SCORING_GAIN

    def result(run: Any, data: Any) -> Any:
        score = whole(run, data)
        return train_gpt.Score(score.val_loss * factor, score.val_bpb * factor, score.tokens, score.bytes)

    monkeypatch.setattr(train_gpt.Evaluation, "result", result)
    settings = tiny | {"out_dir": str(tmp_path), "train_batch_tokens": "4096"}
    assert train_gpt.main(arguments(settings)) == 0
    told = json.loads((tmp_path / "result.json").read_text())
    assert told["record_legal"] == (factor == 1.0)
    assert [f[:14] for f in told["findings"]] == ([] if factor == 1.0 else ["plausibility: "])


def test_findings_of_quality_leave_a_result_legal(
    tiny: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_gpt.Trainer, "probe_loss", lambda self: float(id(self) and next(losses)))
    losses = iter((5.0, 6.0))
    settings = tiny | {"out_dir": str(tmp_path), "ema": "1"}
    assert train_gpt.main(arguments(settings)) == 0
    told = json.loads((tmp_path / "result.json").read_text())
    assert told["record_legal"] and "its horizon is too long" in "".join(told["findings"])
