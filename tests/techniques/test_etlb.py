"""ETLB: every window's fit written out; causality; its label."""

import pytest
import torch
import torch.nn.functional as F

from techniques.base import Shape, Verdict
from techniques.evaluation.etlb import Etlb
from techniques.evaluation.sliding_window import SlidingWindow
from tests.techniques.evaluation_rig import on_ranks, run_scorer, tiny_model, tiny_tokens

SHAPE = Shape(64, 2, 32, 4, 2, 2.0, 32, 32)
N, STRIDE = 90, 8


def scorer(**settings):
    return Etlb(
        Etlb.Config(**({"lr": 2.0, "steps": 3, "shares": 1, "clip": 0.15, "stride": STRIDE} | settings))
    ).scorer()


def test_equals_windows_one_by_one():
    tokens, model = tiny_tokens(N), tiny_model()
    run, bias = run_scorer(scorer(), tokens), torch.zeros(64)
    for start in range(0, N - 32 + STRIDE, STRIDE):
        end = min(start + 32, N)
        with torch.no_grad():
            z = model.logits(model.hidden(tokens[start:end].long()[None]))[0]
        y = tokens[start + 1 : end + 1].long()
        context = 32 - STRIDE if start else 0
        if context:
            b = bias.clone()
            for _ in range(3):
                p = (z[:context] + b).softmax(-1).mean(0)
                b = b - 2.0 * (p - F.one_hot(y[:context], 64).float().mean(0))
            bias = b.clamp(-0.15, 0.15)
        want = F.cross_entropy(z[context:] + bias, y[context:], reduction="none")
        torch.testing.assert_close(run.nll[start + context : end], want, atol=1e-4, rtol=1e-4)
    assert float(bias.abs().max()) == pytest.approx(0.15)


def test_without_a_rate_it_slides_and_later_tokens_change_no_score():
    tokens = tiny_tokens(N)
    sliding = run_scorer(SlidingWindow(SlidingWindow.Config(stride=STRIDE)).scorer(), tokens).nll
    torch.testing.assert_close(run_scorer(scorer(lr=0.0), tokens).nll, sliding, atol=1e-5, rtol=1e-5)
    other = tokens.clone()
    other[61:] = tiny_tokens(N, 1)[61:]
    a, b = (run_scorer(scorer(), t).nll for t in (tokens, other))
    assert torch.equal(a[:60], b[:60]) and not torch.equal(a[60:], b[60:])


def test_shares_begin_without_a_bias_on_any_number_of_ranks():
    tokens = tiny_tokens(N)
    one = run_scorer(scorer(shares=2), tokens)
    runs = on_ranks(2, lambda world: run_scorer(scorer(shares=2), tokens, world=world))
    torch.testing.assert_close(torch.stack([r.nll for r in runs]).sum(0), one.nll)
    assert not torch.equal(one.nll, run_scorer(scorer(), tokens).nll)


def test_the_record_track_refuses_it():
    rule = Etlb().verdict()
    assert rule.verdict is Verdict.ILLEGAL and not rule.admitted("record")
    with pytest.raises(ValueError, match=r"etlb\.stride"):
        Etlb(Etlb.Config(stride=33)).check(SHAPE)
