"""The compiled forward of an evaluation gives what the model gives, whatever the batch's size; and what
happens where nothing can be compiled."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import train_gpt
from techniques import catalog
from techniques._windows import score_sliding, windows
from techniques.base import Unavailable
from techniques.config import Config
from tests.conftest import run_trainer
from tests.techniques.evaluation_rig import StubWorld, on_ranks, single, tiny_model, tiny_tokens
from train_gpt import Evaluation
from trainer import scoring as _scoring
from trainer.scoring import CompiledHidden, compile_scoring, nats_of, score_of
from trainer.world import compiled_or_eager


@pytest.fixture
def eager(monkeypatch):
    """torch.compile without its minutes: the graph as traced."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **k: compile(f, backend="eager", **k))
    torch._dynamo.reset()


@pytest.mark.usefixtures("eager")
def test_batches_of_fewer_rows_are_padded_to_the_one_graph_and_shorter_rows_are_not():
    model = tiny_model()
    compiled, shapes = CompiledHidden(model, 4, 32), []
    compiled.warm_up(64)
    graph = compiled.graph
    compiled.graph = lambda ids: (shapes.append(tuple(ids.shape)), graph(ids))[1]
    for rows, length in ((4, 32), (1, 32), (3, 7), (4, 1)):
        ids = torch.randint(64, (rows, length))
        with torch.no_grad():
            torch.testing.assert_close(compiled(ids), model.hidden(ids), rtol=1e-5, atol=1e-5)
    assert shapes == [(4, 32)] * 2


@pytest.mark.usefixtures("eager")
def test_a_short_last_window_has_the_positions_of_its_own_length():
    """partial_rope takes another table for rows that are longer than those of the training."""
    lengths = {"train_seq_len": 64, "eval_seq_len": 1088, "train_batch_tokens": 128}
    rope = {"partial_rope": True, "partial_rope.fraction": 0.5, "partial_rope.train_len": 1024}
    model = tiny_model(catalog.runtime(), **lengths, **rope)
    tokens = tiny_tokens(1088 + 26)
    plain, compiled = (Evaluation(model, tokens, 1088, 2, single()) for _ in range(2))
    compiled.hidden = CompiledHidden(model, 2, 1088)
    for run in (plain, compiled):
        train_gpt.PlainScorer().score(run)
    assert torch.equal(compiled.nll[1088:], plain.nll[1088:])
    torch.testing.assert_close(compiled.nll, plain.nll, rtol=1e-5, atol=1e-5)
    ids = tokens[None, :26].long()
    with torch.no_grad():  # the tables do differ
        padded = model.hidden(torch.nn.functional.pad(ids, (0, 1088 - 26)))[:, :26]
        assert (padded - model.hidden(ids)).abs().max() > 1e-3


@pytest.mark.usefixtures("eager")
def test_what_is_larger_or_wants_a_gradient_goes_through_the_model():
    model = tiny_model()
    compiled = CompiledHidden(model, 2, 16)
    compiled.graph = None
    ids = torch.randint(64, (2, 16))
    assert compiled(ids).requires_grad
    with torch.no_grad():
        assert compiled(torch.randint(64, (3, 16))).shape == (3, 16, 32)
        assert compiled(torch.randint(64, (1, 32))).shape == (1, 32, 32)


@pytest.mark.usefixtures("eager")
def test_a_sliding_evaluation_is_the_same_compiled():
    tokens, model = tiny_tokens(90), tiny_model()
    plain, compiled = (Evaluation(model, tokens, 32, 4, single()) for _ in range(2))
    compiled.hidden = CompiledHidden(model, 4, 32)
    for run in (plain, compiled):
        score_sliding(run, windows(run.num_positions, 32, 8), 4)
    assert bool(compiled.written.all())
    torch.testing.assert_close(compiled.nll, plain.nll, rtol=1e-5, atol=1e-5)


def test_nats_of_a_large_batch_are_taken_in_parts(monkeypatch):
    model, h = tiny_model(), torch.randn(3, 11, 32)
    targets = torch.randint(64, (3, 11))
    whole = nats_of(model, h, targets)
    monkeypatch.setattr(_scoring, "NATS_AT_ONCE", 5 * 64)
    torch.testing.assert_close(nats_of(model, h, targets), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("mode", "scorer", "from_tokens", "compiles"),
    [("on", "many", 900, True), ("on", None, 900, False), ("on", None, 90, True), ("off", "many", 1, False)],
)
def test_only_a_long_evaluation_is_compiled(monkeypatch, mode, scorer, from_tokens, compiles):
    monkeypatch.setattr(_scoring, "COMPILE_FROM_TOKENS", from_tokens)
    run = Evaluation(tiny_model(), tiny_tokens(90), 32, 4, single())
    costs = {"many": SimpleNamespace(eval_passes=9.0)}  # ten passes of 90 positions
    resolved = SimpleNamespace(config=SimpleNamespace(compile=mode, vocab_size=64), costs=costs)
    told = []
    clock = SimpleNamespace(stop=lambda: told.append("stop"), start=lambda: told.append("start"))
    compile_scoring(run, resolved, scorer, clock)
    assert isinstance(run.hidden, CompiledHidden) == compiles
    assert told == (["stop", "start"] if compiles else [])  # the clock stands still only to compile
    assert not run.written.any()


# -- where nothing can be compiled -------------------------------------------------------------------------


def broken(_graph, _inputs):
    raise OSError("failed to map segment from shared object")


@pytest.mark.parametrize("mode", ["on", "auto"])
def test_a_graph_that_cannot_be_compiled_is_an_error_or_eager_with_a_reason(mode):
    model = tiny_model()
    world = single()
    config = Config(compile=mode)
    torch._dynamo.reset()
    run = compiled_or_eager(torch.compile(model.hidden, backend=broken), model.hidden, config, world)
    ids = torch.randint(64, (2, 8))
    if mode == "on":
        with pytest.raises(Unavailable, match=r"failed to map segment.*or set --compile off"):
            run(ids)
        return
    for _ in range(2):
        assert torch.equal(run(ids), model.hidden(ids))
    (why,) = world.not_compiled
    assert "the run was eager" in why and "failed to map segment" in why


def test_a_scoring_that_cannot_be_compiled_is_eager_where_auto_was_asked(monkeypatch):
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **k: compile(f, backend=broken, **k))
    monkeypatch.setattr(_scoring, "compiles", lambda *_: True)
    monkeypatch.setattr(_scoring, "COMPILE_FROM_TOKENS", 1)
    torch._dynamo.reset()
    plain, run = (Evaluation(tiny_model(), tiny_tokens(90), 32, 4, single()) for _ in range(2))
    config = SimpleNamespace(compile="auto", vocab_size=64)
    clock = SimpleNamespace(stop=lambda: None, start=lambda: None)
    compile_scoring(run, SimpleNamespace(config=config, costs={}), None, clock)
    for scored in (plain, run):
        train_gpt.PlainScorer().score(scored)
    assert len(run.world.not_compiled) == 1 and torch.equal(run.nll, plain.nll)


def test_compile_on_without_a_compiler_is_one_error(tiny, tmp_path):
    environ = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled"), "PATH": str(tmp_path)}
    ran = run_trainer({**tiny, "compile": "on", "out_dir": str(tmp_path / "out")}, env=environ)
    assert ran.returncode == 2, ran.stderr[-2000:]
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "set --compile off" in errors[0] and "Traceback" not in ran.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["status"] == "failed" and f"error: {result['reason']}" == errors[0]


@pytest.mark.slow
def test_the_bpb_chain_ends_at_the_score(tiny: dict[str, str], tmp_path):
    """Each link is a plain score on a report's tokens, another scorer's own stands behind; a reused stage
    keeps its links."""
    shared = {"ema": "true", "report_tokens": "1000000", "iterations": "4", "out_dir": str(tmp_path / "out")}
    ttt = {"score_first_ttt": "true", "score_first_ttt.chunk_tokens": "64", "score_first_ttt.stride": "16"}
    ran = run_trainer({**tiny, **shared, **ttt})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    path = tmp_path / "out" / "result.json"
    result = json.loads(path.read_text())
    assert [name for name, _ in result["bpb_chain"]] == ["weights", "ema", "packed", "score_first_ttt"]
    links = dict(result["bpb_chain"])
    assert links["score_first_ttt"] == pytest.approx(result["val_bpb"], rel=1e-9)  # all tokens are a report's
    assert len(set(links.values())) == 4 and max(links.values()) < 20.0
    assert result["record_legal"] and not [f for f in result["findings"] if f.startswith(("train", "eval"))]
    plain = run_trainer({**tiny, **shared})
    assert plain.returncode == 0, plain.stderr
    again = json.loads(path.read_text())
    assert again["reused"] == ["train", "quantize", "pack"]
    assert dict(again["bpb_chain"])["packed"] == links["packed"]
    assert again["bpb_chain"] == result["bpb_chain"][:3]  # the plain score is the packed model's
    assert again["val_bpb"] == pytest.approx(links["packed"], rel=1e-9)


@pytest.mark.parametrize("at_once", [32, 1 << 20])
def test_a_score_is_of_all_ranks_and_of_every_position(monkeypatch: pytest.MonkeyPatch, at_once: int):
    """Bytes that sum far beyond 16 bits, ranks without a position, a count beyond the end; and bytes that are
    missing, whole pieces of them too, are an error and no smaller score."""
    monkeypatch.setattr(_scoring, "SUMMED_AT_ONCE", at_once)
    tokens = tiny_tokens(95).to(torch.uint16)
    data = SimpleNamespace(target_bytes=lambda told: np.full(told.size - 1, 65_535, np.uint16))

    def scores(world: StubWorld) -> list[Any]:
        run = Evaluation(tiny_model(), tokens, 32, 4, world)  # type: ignore[arg-type]
        train_gpt.PlainScorer().score(run)
        return [run.result(data), *(score_of(run, data, count) for count in (40, 10**6))]  # type: ignore[arg-type]

    alone = scores(StubWorld())
    assert [(s.tokens, s.bytes) for s in alone] == [(n, 65_535 * n) for n in (95, 40, 95)]
    for found in on_ranks(5, scores):
        assert [(s.tokens, s.bytes) for s in found] == [(s.tokens, s.bytes) for s in alone]
        assert [s.val_bpb for s in found] == pytest.approx([s.val_bpb for s in alone])
    run = Evaluation(tiny_model(), tokens, 32, 4, single())
    train_gpt.PlainScorer().score(run)
    for there in (0, 64, 94):
        short: Any = SimpleNamespace(target_bytes=lambda told, n=there: np.ones(n, np.uint16))
        with pytest.raises(ValueError, match=f"there are {there} of 95. Export the data again"):
            run.result(short)
