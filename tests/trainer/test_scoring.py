"""The compiled forward of an evaluation gives what the model gives, whatever the batch's size."""

from types import SimpleNamespace

import pytest
import torch

from techniques._windows import score_sliding, windows
from tests.techniques.evaluation_rig import single, tiny_model, tiny_tokens
from train_gpt import Evaluation
from trainer import scoring as _scoring
from trainer.scoring import CompiledHidden, compile_scoring, nats_of


@pytest.fixture
def eager(monkeypatch):
    """torch.compile without its minutes: the graph as traced."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **k: compile(f, backend="eager", **k))
    torch._dynamo.reset()


@pytest.mark.usefixtures("eager")
def test_smaller_batches_are_padded_to_the_one_graph_and_cut_again():
    model = tiny_model()
    compiled, shapes = CompiledHidden(model, 4, 32), []
    compiled.warm_up(64)
    graph = compiled.graph
    compiled.graph = lambda ids: (shapes.append(tuple(ids.shape)), graph(ids))[1]
    for rows, length in ((4, 32), (1, 32), (3, 7), (4, 1)):
        ids = torch.randint(64, (rows, length))
        with torch.no_grad():
            torch.testing.assert_close(compiled(ids), model.hidden(ids), rtol=1e-5, atol=1e-5)
    assert shapes == [(4, 32)] * 4


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
    seconds = compile_scoring(run, resolved, scorer)
    assert isinstance(run.hidden, CompiledHidden) == compiles == (seconds > 0)
    assert not run.written.any()
