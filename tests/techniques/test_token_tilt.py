"""The token tilt: hints against a loop over the past, distributions written out, causality, normalisation."""

import math

import pytest
import torch

from techniques._windows import last_hints, share_hints, tilt_nats
from techniques.base import Shape, Verdict
from techniques.evaluation.sliding_window import SlidingWindow
from techniques.evaluation.token_tilt import TokenTilt
from tests.techniques.evaluation_rig import run_scorer, tiny_model, tiny_tokens

SHAPE = Shape(64, 2, 32, 4, 2, 2.0, 32, 32)
N, STRIDE = 130, 8


def scorer(**settings):
    base = {"order": 2, "beta": 1.5, "agreement": 0.4, "stride": STRIDE}
    return TokenTilt(TokenTilt.Config(**(base | settings))).scorer()


def repetitive(n: int = N, seed: int = 0, vocab: int = 5) -> torch.Tensor:
    return tiny_tokens(n, seed) % vocab


def slow_hint(tokens: list[int], p: int, order: int, min_agree: int) -> tuple[int, bool]:
    """Walk back from position p through everything before it; never looks at tokens[p + 1]."""
    context = tokens[p - order + 1 : p + 1]
    if p - order + 1 < 0:
        return -1, False
    told = [tokens[q + 1] for q in range(p - 1, order - 2, -1) if tokens[q - order + 1 : q + 1] == context]
    last = told[: min_agree + 1]
    if len(told) < min_agree or len(set(told[:min_agree])) != 1:
        return -1, False
    return told[0], len(last) == min_agree + 1 and len(set(last)) == 1


@pytest.mark.parametrize(("order", "min_agree"), [(1, 1), (2, 1), (3, 2), (1, 3), (200, 1)])
def test_hints_equal_a_loop_over_the_past(order: int, min_agree: int):
    tokens = repetitive()
    hint, more = last_hints(tokens, order, min_agree)
    slow = [slow_hint(tokens.tolist(), p, order, min_agree) for p in range(N)]
    assert hint.tolist() == [h for h, _ in slow]
    assert more[hint >= 0].tolist() == [m for h, m in slow if h >= 0]
    assert order > 3 or (hint >= 0).any()
    assert last_hints(tokens[:2], order, min_agree)[0].tolist() == [-1]


def test_a_hint_does_not_change_with_later_tokens():
    tokens = repetitive()
    for p in (10, 64, 120):
        other = tokens.clone()
        other[p + 1 :] = repetitive(seed=4)[p + 1 :]
        for a, b in zip(last_hints(tokens, 2, 1), last_hints(other, 2, 1), strict=True):
            assert torch.equal(a[: p + 1], b[: p + 1])


def test_equals_the_distribution_written_out_and_sums_to_one():
    logits, hints = torch.randn(7, 11) * 3, torch.tensor([3, -1, 0, 10, 3, 3, 7])
    strengths = torch.tensor([2.0, 2.0, 0.5, 0.0, 4.0, 2.1, 1.0])
    every = torch.stack([tilt_nats(logits, torch.full((7,), y), hints, strengths) for y in range(11)], 1)
    p = logits.double().softmax(-1)
    for i, (u, beta) in enumerate(zip(hints.tolist(), strengths.tolist(), strict=True)):
        if u >= 0:
            p[i, u] *= math.exp(beta)
    p = p / p.sum(-1, keepdim=True)
    torch.testing.assert_close(every.double(), -p.log(), atol=2e-5, rtol=1e-5)
    assert (every.double().neg().exp().sum(1) - 1).abs().max() < 1e-6


def test_scores_are_the_sliding_ones_tilted():
    tokens, model = repetitive(), tiny_model()
    run = run_scorer(scorer(), tokens)
    sliding = run_scorer(SlidingWindow(SlidingWindow.Config(stride=STRIDE)).scorer(), tokens).nll
    hint, more = last_hints(tokens, 2, 1)
    assert (hint >= 0).sum() > 40
    for p in range(N):
        u, y, nats = int(hint[p]), int(tokens[p + 1]), float(sliding[p])
        if u >= 0:
            start = 0 if p < 32 else ((p - 32) // STRIDE + 1) * STRIDE
            with torch.no_grad():
                z = model.logits(model.hidden(tokens[start : p + 1].long()[None]))[0, -1]
            beta = 1.5 + 0.4 * bool(more[p])
            nats += math.log(1 + float(z.softmax(-1)[u]) * (math.exp(beta) - 1)) - beta * (y == u)
        assert float(run.nll[p]) == pytest.approx(nats, abs=1e-4)
    none = run_scorer(scorer(beta=0.0, agreement=0.0), tokens).nll
    torch.testing.assert_close(none, sliding, atol=1e-5, rtol=1e-5)


def test_limits_and_verdict():
    assert TokenTilt().verdict().verdict is Verdict.LEGAL
    assert TokenTilt(TokenTilt.Config(stride=8)).cost(SHAPE).eval_passes == 3.0
    with pytest.raises(ValueError, match=r"token_tilt\.stride"):
        TokenTilt(TokenTilt.Config(stride=33)).check(SHAPE)


def slow_share(tokens: list[int], p: int, order: int, threshold: float, begin: int = 0) -> int:
    """Count what followed the same order - 1 tokens before position p, from `begin` on."""
    width = order - 1
    if p - width + 1 < begin:
        return -1
    counts: dict[int, int] = {}
    top = -1
    for q in range(begin + width - 1, p):
        if tokens[q - width + 1 : q + 1] == tokens[p - width + 1 : p + 1]:
            y = tokens[q + 1]
            counts[y] = counts.get(y, 0) + 1
            if counts[y] > counts.get(top, 0):
                top = y
    return top if counts and counts[top] >= threshold * sum(counts.values()) else -1


@pytest.mark.parametrize(("order", "threshold"), [(2, 0.4), (2, 0.8), (3, 0.5), (5, 0.8), (200, 0.8)])
def test_hints_by_counts_equal_a_loop_over_the_past(order: int, threshold: float):
    tokens = repetitive()
    told = tokens.tolist()
    hints = share_hints(tokens, order, threshold)
    assert hints.tolist() == [slow_share(told, p, order, threshold) for p in range(N)]
    begins = torch.tensor([0] * 20 + [20] * 60 + [80] * (N - 80))
    own = share_hints(tokens, order, threshold, begins).tolist()
    assert own == [slow_share(told, p, order, threshold, int(begins[p])) for p in range(N)]
    assert order > 3 or max(own) >= 0
    assert share_hints(tokens[:2], order, threshold).tolist() == [-1]


def test_confidence_takes_strength_away():
    logits, hints, targets = torch.randn(6, 9) * 2, torch.tensor([3, 1, -1, 0, 8, 2]), torch.arange(6)
    beta = torch.full((6,), 2.0)
    q = logits.softmax(-1)[torch.arange(6), hints.clamp_min(0)]
    for fade in (0.5, 1.0, 2.0):
        weaker = tilt_nats(logits, targets, hints, beta * (1 - q) ** fade)
        torch.testing.assert_close(tilt_nats(logits, targets, hints, beta, fade), weaker)
    one, other = (run_scorer(scorer(threshold=0.5, fade=g), repetitive()).nll for g in (0.0, 1.0))
    assert not torch.equal(one, other)
