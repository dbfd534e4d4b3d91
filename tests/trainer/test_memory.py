"""Peak memory by stage: recorded in a result, bounded for a laptop's trial, an evaluation and GPTQ."""

from __future__ import annotations

import ctypes
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from corpus.bpb import ByteLuts, count_bytes
from search.report.rows import memory_text
from techniques.config import resolve
from techniques.quantization.gptq import Gptq, GptqQuantizer
from tests.conftest import run_trainer
from tests.techniques.evaluation_rig import TINY, single, tiny_model
from train_gpt import Evaluation, quantize, validation_tokens
from trainer import scoring
from trainer.attention import BLOCK, blocked
from trainer.machine import resident_peak
from trainer.scoring import SAMPLE, score_again, score_of
from trainer.seams import Seams

STAGES = {"data", "train", "quantize", "pack", "evaluate"}
LAPTOP = {"iterations": "2", "val_tokens": "16384", "num_reports": "1", "device": "cpu"}
pytestmark = pytest.mark.skipif(not resident_peak()[1], reason="only Linux counts a stage's memory anew")


def peak_of(work: Any, *arguments: Any) -> int:
    """Bytes that this process held at most beyond what it held before; what earlier tests freed and the
    allocator kept is given back first, or `work` would be held in that."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
    resident_peak()
    before, _ = resident_peak()
    kept = work(*arguments)
    after, _ = resident_peak()
    del kept
    return after - before


def test_each_reading_begins_a_new_count() -> None:
    assert peak_of(bytearray, 64_000_000) > 50_000_000
    assert peak_of(bytearray, 1_000) < 10_000_000


def test_where_the_count_cannot_begin_anew_it_is_since_the_start(tmp_path: Path) -> None:
    peak, anew = resident_peak(tmp_path)
    assert peak > 10_000_000 and not anew
    told = memory_text({"bytes": {"train": peak}, "anew": anew})
    assert told.endswith("(the process's up to each stage's end)")


def test_a_laptop_trial_tells_each_stages_peak_and_stays_below_its_bound(
    tiny_data: dict[str, str], tmp_path: Path
) -> None:
    done = run_trainer({**tiny_data, **LAPTOP, "out_dir": str(tmp_path)}, "--preset=laptop")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    peaks = result["stage_memory"]
    assert peaks.keys() == STAGES and result["stage_memory_counts_anew"]
    assert max(peaks.values()) == result["peak_memory_bytes"] < 1_200_000_000
    assert min(peaks.values()) > 50_000_000
    assert memory_text({"bytes": peaks, "anew": True}).count(" MB") == len(STAGES)
    assert memory_text({"bytes": {"pack": 2e6, "train": 1e6}, "anew": True}).startswith(
        "train 1 MB, pack 2 MB"
    )
    record = json.loads((tmp_path / "stage_pack.json").read_text())
    assert record["stage_memory"] == {s: n for s, n in peaks.items() if s != "evaluate"}


def test_a_run_that_fails_tells_what_it_needed(tiny: dict[str, str], tmp_path: Path) -> None:
    done = run_trainer({**tiny, "matrix_lr": "1e30", "scalar_lr": "1e30", "out_dir": str(tmp_path)})
    assert done.returncode == 3
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["stage_memory"].keys() == {"data", "train"} and result["peak_memory_bytes"] > 50_000_000


class Ones:
    """Scores every position at one nat, a piece at a time; no model's work, which is of its batches alone."""

    @torch.no_grad()
    def score(self, run: Evaluation) -> None:
        for start in range(0, run.num_positions, 100_000):
            _, targets = run.window(start, min(100_000, run.num_positions - start))
            run.write(start, torch.ones(len(targets)))


def evaluated(count: int) -> None:
    """What an evaluation keeps of `count` tokens, and what its audit needs beside it."""
    luts = ByteLuts(np.ones(64, np.int16), *np.zeros((2, 64), bool))
    config: Any = SimpleNamespace(val_tokens=0)
    data: Any = SimpleNamespace(
        val_tokens=lambda max_tokens: np.resize(np.arange(64, dtype=np.uint16), count + 1),
        target_bytes=lambda told: count_bytes(luts, told[:-1], told[1:]),
    )
    run = Evaluation(model := tiny_model(), validation_tokens(data, config), 32, 8, single())
    Ones().score(run)
    assert run.result(data).tokens == count and run.ledger.num_early(run.world) == 0
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert score_again(run, weights, Ones, 1) == (0, max(count // SAMPLE, 128))
    assert score_of(run, data, 1000).tokens == 1000
    run.world.ledger.scored = run.stream
    run.world.ledger.same_tokens("validation")


def test_an_evaluation_keeps_a_few_bytes_of_a_token_whatever_its_number() -> None:
    evaluated(1_000)
    small = peak_of(evaluated, 1_000_000)
    large = peak_of(evaluated, 17_000_000)
    assert (large - small) / 16_000_000 < 15


def test_sums_of_pieces_are_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes and positions exactly, nats up to the last bit of a sum; pieces that end anywhere."""
    run = Evaluation(tiny_model(), (torch.arange(1001) % 64).to(torch.uint16), 32, 8, single())
    run.write(0, torch.rand(1000, generator=torch.Generator().manual_seed(1)))
    data: Any = SimpleNamespace(target_bytes=lambda told: told[1:])
    whole = [score_of(run, data, count) for count in (1000, 77)]
    assert whole[0].tokens == 1000 and whole[0].bytes == int(run.stream[1:].long().sum())
    monkeypatch.setattr(scoring, "SUMMED_AT_ONCE", 7)
    for one, count in zip(whole, (1000, 77), strict=True):
        found = score_of(run, data, count)
        assert (found.tokens, found.bytes) == (one.tokens, one.bytes)
        assert found.val_bpb == pytest.approx(one.val_bpb, rel=1e-14)


def test_an_evaluation_goes_as_soon_as_nobody_holds_it() -> None:
    run = Evaluation(tiny_model(), torch.zeros(257, dtype=torch.uint16), 32, 8, single())
    Ones().score(run)
    nll = weakref.ref(run.nll)
    del run
    assert nll() is None


def test_hessians_are_in_memory_once() -> None:
    """Each is the sum that was collected, divided in place."""
    model = tiny_model()
    quantizer = Gptq(Gptq.Config(calib_batches=2)).quantizer()
    made: list[int] = []
    zeros = torch.zeros

    def noted(*sides: Any, **how: Any) -> torch.Tensor:
        made.append((out := zeros(*sides, **how)).data_ptr())
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "zeros", noted)
        ids = torch.arange(64).view(2, 32) % 64
        quantizer.calibrate(model, iter([(ids, ids)] * 2))
    assert len(quantizer.hessians) > 10
    assert {h.data_ptr() for h in quantizer.hessians.values()} <= {*made}


def test_hessians_go_when_the_integers_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Corrections and fits may ask for them; packing and evaluation find their memory free."""
    held: list[Any] = []
    prepare = GptqQuantizer.prepare

    def noted(self: GptqQuantizer, export: Any, bits: Any) -> None:
        held.extend(map(weakref.ref, self.hessians.values()))
        prepare(self, export, bits)

    monkeypatch.setattr(GptqQuantizer, "prepare", noted)
    settings = {"gptq": True, "gptq.calib_batches": 2, "quantize_min_numel": 1}
    model = tiny_model()
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    ids = torch.arange(64).view(2, 32) % 64
    quantize(
        weights, model, Seams(resolve({"file": TINY | settings}, {"gptq": Gptq})), iter([(ids, ids)] * 2)
    )
    assert len(held) > 10 and all(hessian() is None for hessian in held)


class Softmaxes(TorchDispatchMode):
    """The most results of a softmax that were held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[torch.Tensor]] = []
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "softmax" in str(func):
            self.made.append(weakref.ref(out))
            self.most = max(self.most, sum(one() is not None for one in self.made))
        return out


def test_attention_without_a_backward_pass_keeps_no_weights() -> None:
    """A batch of an evaluation is 524,288 tokens: their weights would be 8 GB a layer. Results are counted:
    the process's memory says more of the allocator's gaps."""
    q, k, v = (torch.randn(1, 512, heads, 16).bfloat16() for heads in (4, 2, 2))
    with torch.no_grad(), Softmaxes() as held:
        blocked(q, k, v)
    assert len(held.made) == 512 // BLOCK and held.most <= 2
    with Softmaxes() as held:
        blocked(q.requires_grad_(), k, v)
    assert held.most == 512 // BLOCK
