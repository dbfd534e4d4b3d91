"""Pre-evaluation TTT: every step written out; it sees what it scores; any world takes the same steps."""

import math

import pytest
import torch

from techniques import catalog
from techniques.base import Shape, Verdict
from techniques.config import read_preset
from techniques.evaluation.pre_eval_ttt import PreEvalTtt
from techniques.evaluation.sliding_window import SlidingWindow
from techniques.settings import settings_from
from tests.techniques.evaluation_rig import on_ranks, run_scorer, tiny_model, tiny_tokens

SHAPE = Shape(64, 2, 32, 4, 2, 2.0, 32, 32)
N, STRIDE = 170, 8  # five whole sequences and a tail


def scorer(**settings):
    base = {"epochs": 2, "lr": 0.01, "batch_seqs": 2, "stride": STRIDE}
    return PreEvalTtt(PreEvalTtt.Config(**(base | settings))).scorer()


def test_equals_the_plain_procedure_step_by_step():
    tokens, model = tiny_tokens(N), tiny_model()
    run = run_scorer(scorer(weight_decay=0.1), tokens)
    params = dict(model.named_parameters())
    moments = {n: [torch.zeros_like(p), torch.zeros_like(p)] for n, p in params.items()}
    mults = {n: 3.0 if "mlp.proj" in n else 0.5 if "mlp.fc" in n else 1.0 for n in params}
    assert sum(m != 1.0 for m in mults.values()) == 4
    for step in range(6):  # two epochs of groups of 2, 2 and 1 sequences
        at = [[0, 1], [2, 3], [4]][step % 3]
        ids = torch.stack([tokens[32 * a : 32 * a + 32] for a in at]).long()
        targets = torch.stack([tokens[32 * a + 1 : 32 * a + 33] for a in at]).long()
        model.zero_grad()
        model(ids, targets).backward()
        grads = {n: p.grad for n, p in params.items()}
        norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        for n, p in params.items():
            g, (m, v) = grads[n] * min(1.0, 1.0 / (norm + 1e-6)), moments[n]
            m.mul_(0.9).add_(g, alpha=0.1)
            v.mul_(0.999).add_(g * g, alpha=0.001)
            lr = 0.01 * mults[n] * 0.5 * (1 + math.cos(math.pi * step / 6))
            update = m / (1 - 0.9 ** (step + 1)) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
            p.data = p.data * (1 - lr * 0.1) - lr * update
    for n, p in run.model.named_parameters():
        torch.testing.assert_close(p, params[n], atol=2e-4, rtol=1e-3)
    for p in (0, 20, 40, 101, N - 1):
        start = 0 if p < 32 else ((p - 32) // STRIDE + 1) * STRIDE
        with torch.no_grad():
            logits = model.logits(model.hidden(tokens[start : p + 1].long()[None]))[0, -1]
        assert float(run.nll[p]) == pytest.approx(
            float(-logits.log_softmax(-1)[int(tokens[p + 1])]), abs=5e-3
        )


def test_it_remembers_what_it_scores():
    tokens = tiny_tokens(N)  # random tokens: nothing but memory lowers their loss
    sliding = run_scorer(SlidingWindow(SlidingWindow.Config(stride=STRIDE)).scorer(), tokens).nll
    assert run_scorer(scorer(epochs=30), tokens).nll[:160].mean() < sliding[:160].mean() - 0.5
    assert torch.equal(run_scorer(scorer(lr=0.0), tokens).nll, sliding)
    other = tokens.clone()
    other[150:] = tiny_tokens(N, seed=1)[150:]
    assert not torch.equal(run_scorer(scorer(), tokens).nll[:100], run_scorer(scorer(), other).nll[:100])


def test_frozen_blocks_stand_still_and_ranks_take_the_same_steps():
    tokens, start = tiny_tokens(N), dict(tiny_model().named_parameters())
    whole = run_scorer(scorer(freeze_blocks=1), tokens)
    still = {n for n, p in whole.model.named_parameters() if torch.equal(p, start[n])}
    assert still == {n for n in start if n.startswith("blocks.0.")}
    assert all(p.requires_grad and p.grad is None for p in whole.model.parameters())
    runs = on_ranks(2, lambda world: run_scorer(scorer(freeze_blocks=1), tokens, world=world))
    assert (torch.stack([r.written for r in runs]).sum(0) == 1).all()
    torch.testing.assert_close(torch.stack([r.nll for r in runs]).sum(0), whole.nll, atol=1e-3, rtol=1e-3)


def test_declares_its_cost_its_limits_and_its_verdict():
    assert PreEvalTtt().verdict().verdict is Verdict.ILLEGAL and "#402" in PreEvalTtt().verdict().source
    assert not PreEvalTtt().verdict().admitted("record")
    assert PreEvalTtt(PreEvalTtt.Config(stride=8, epochs=2)).cost(SHAPE).eval_passes == 3.0 + 6.0
    for settings in ({"stride": 33}, {"stride": 8, "freeze_blocks": 3}):
        with pytest.raises(ValueError, match="pre_eval_ttt"):
            PreEvalTtt(PreEvalTtt.Config(**settings)).check(SHAPE)


def test_the_variables_of_ttt_go_to_the_one_that_is_on():
    known = catalog.metadata()

    def settings(environ: dict[str, str], *argv: str):
        return settings_from(argv, environ, known, has_gpu=True).values

    run = settings({"TTT_EPOCHS": "30", "EVAL_STRIDE": "32"}, "--preset=pr518")
    assert run["pre_eval_ttt.epochs"] == 30 and run["pre_eval_ttt.stride"] == 32
    assert settings({"TTT_ENABLED": "1"}, "--preset=pr518")["pre_eval_ttt"]
    off = settings({"TTT_ENABLED": "0"}, "--preset=pr518")
    assert not off["pre_eval_ttt"] and not off["score_first_ttt"]
    alone = settings({"TTT_ENABLED": "1"})
    assert alone["score_first_ttt"] and not alone["pre_eval_ttt"]
    assert read_preset("pr518")["pre_eval_ttt.epochs"] == 50
