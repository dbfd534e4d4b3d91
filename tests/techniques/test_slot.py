"""SLOT: mask = scored leaks, and the test must see it; with mask = context no score sees a later token."""

import math

import pytest
import torch
import torch.nn.functional as F

from techniques.base import Shape, Verdict
from techniques.evaluation.sliding_window import SlidingWindow
from techniques.evaluation.slot import SlotTuning
from tests.techniques.evaluation_rig import run_scorer, tiny_model, tiny_tokens

SHAPE = Shape(64, 2, 32, 4, 2, 2.0, 32, 32)
N, STRIDE = 97, 8


def scorer(**settings):
    base = {"steps": 3, "lr": 0.05, "lr_min": 0.005, "stride": STRIDE, "mask": "context", "batch_seqs": 4}
    return SlotTuning(SlotTuning.Config(**(base | settings))).scorer()


def slow_window(model, ids, targets, scored, **settings):
    """One window by itself: AdamW written out, logits of (h + δ)Eᵀ + β, mean nats over the mask."""
    c = SlotTuning.Config(**settings)
    with torch.no_grad():
        h = model.hidden(ids[None])[0]
    fit = slice(len(ids) - scored, None) if c.mask == "scored" else slice(0, len(ids) - scored)
    delta, beta = torch.zeros(h.size(1), requires_grad=True), torch.zeros(64, requires_grad=True)
    moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in (delta, beta)]

    def nats(part):
        z = (h[part] + delta) @ model.tok_emb.detach().T + beta
        return F.cross_entropy(30.0 * torch.tanh(z / 30.0), targets[part], reduction="none")

    for t in range(c.steps if targets[fit].numel() else 0):
        lr = c.lr_min + 0.5 * (c.lr - c.lr_min) * (1 + math.cos(math.pi * t / c.steps))
        for p, g, m in zip(
            (delta, beta), torch.autograd.grad(nats(fit).mean(), (delta, beta)), moments, strict=True
        ):
            m[0], m[1] = 0.9 * m[0] + 0.1 * g, 0.999 * m[1] + 0.001 * g * g
            step = m[0] / (1 - 0.9 ** (t + 1)) / ((m[1] / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
            p.data = p.data * (1 - lr * 0.01) - lr * step
    return nats(slice(len(ids) - scored, None)).detach()


@pytest.mark.parametrize("mask", ["scored", "context"])
def test_equals_one_window_at_a_time(mask: str):
    tokens, model = tiny_tokens(N), tiny_model()
    run = run_scorer(scorer(mask=mask), tokens)
    settings = {"steps": 3, "lr": 0.05, "lr_min": 0.005, "mask": mask}
    for start in (0, 8, 40, 64):
        part = tokens[start : start + 33].long()
        scored = 32 if start == 0 else STRIDE
        slow = slow_window(model, part[:-1], part[1:], scored, **settings)
        torch.testing.assert_close(run.nll[start + 32 - scored : start + 32], slow, atol=2e-4, rtol=1e-4)


def test_without_steps_or_rate_it_is_sliding():
    tokens = tiny_tokens(N)
    sliding = run_scorer(SlidingWindow(SlidingWindow.Config(stride=STRIDE)).scorer(), tokens).nll
    for mask in ("scored", "context"):
        for settings in ({"steps": 0}, {"lr": 0.0, "lr_min": 0.0}):
            torch.testing.assert_close(
                run_scorer(scorer(mask=mask, **settings), tokens).nll, sliding, atol=2e-6, rtol=1e-6
            )
        assert (run_scorer(scorer(mask=mask), tokens).nll - sliding).abs().max() > 1e-3


def test_the_published_mask_leaks():
    n = N - 1  # the last window scores 8 positions
    tokens = tiny_tokens(n)
    other = tokens.clone()
    other[n] = (other[n] + 1) % 64  # the last target; no input
    a, b = run_scorer(scorer(mask="scored"), tokens).nll, run_scorer(scorer(mask="scored"), other).nll
    moved = (a != b).nonzero().flatten().tolist()
    assert len(moved) > 1 and min(moved) < n - 1  # earlier positions see a later target
    low = run_scorer(scorer(mask="scored", steps=16), tokens).nll.mean()
    assert low < run_scorer(scorer(steps=16), tokens).nll.mean() - 0.1  # random tokens have nothing to learn


@pytest.mark.parametrize("position", [5, 33, 40, 71, 96])
def test_the_context_mask_never_sees_a_later_token(position: int):
    tokens = tiny_tokens(N)
    other = tokens.clone()
    other[position + 1 :] = tiny_tokens(N, seed=1)[position + 1 :]
    a, b = run_scorer(scorer(), tokens).nll, run_scorer(scorer(), other).nll
    assert torch.equal(a[:position], b[:position])


@pytest.mark.parametrize("mask", ["scored", "context"])
def test_a_window_does_not_depend_on_its_batch(mask: str):
    tokens = tiny_tokens(N)
    one = run_scorer(scorer(mask=mask, batch_seqs=1), tokens).nll
    torch.testing.assert_close(
        run_scorer(scorer(mask=mask, batch_seqs=9), tokens).nll, one, atol=2e-4, rtol=1e-4
    )


def test_the_weights_stay_and_each_part_can_be_left_out():
    tokens, start = tiny_tokens(N), dict(tiny_model().named_parameters())
    results = []
    for use_delta, use_bias in ((True, True), (True, False), (False, True)):
        run = run_scorer(scorer(use_delta=use_delta, use_bias=use_bias), tokens)
        assert all(torch.equal(p, start[n]) and p.grad is None for n, p in run.model.named_parameters())
        results.append(run.nll)
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_an_untied_head_is_used():
    model, h = tiny_model(tie_embeddings=False), torch.randn(3, 32)
    capped = 30.0 * torch.tanh(model.project(h) / 30.0)
    torch.testing.assert_close(capped, model.logits(h))


def test_verdict_and_limits():
    for mask in ("scored", "context"):
        verdict = SlotTuning(SlotTuning.Config(mask=mask)).verdict()
        assert (
            verdict.verdict is Verdict.CONTESTED and "#1240" in verdict.source and "#1336" in verdict.source
        )
        assert not verdict.admitted("record")
    assert SlotTuning(SlotTuning.Config(stride=8)).cost(SHAPE).eval_passes > 3.0
    for settings in ({"stride": 33}, {"use_delta": False, "use_bias": False}, {"lr_min": 0.5}):
        with pytest.raises(ValueError, match="slot"):
            SlotTuning(SlotTuning.Config(**{"stride": 8, **settings})).check(SHAPE)
