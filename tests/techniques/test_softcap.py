"""Softcaps: the baseline's bounds and its logistic form, one learned cap a sign, none."""

import math

import pytest
import torch

from techniques.base import Shape
from techniques.head.softcap import Softcap
from tests.techniques.model_rig import build, copy_shared, settle, some_ids

SHAPE = Shape(64, 3, 32, 4, 2, 2.0, 16, 16, logit_softcap=15.0)


def test_the_baselines_cap_is_bounded_and_a_shifted_logistic():
    cap = build({"logit_softcap": 15.0}).cap
    z = torch.randn(1000) * 40
    assert float(cap(z).abs().max()) <= 15.0
    z = torch.randn(1000, dtype=torch.float64) * 40
    c = 15.0
    torch.testing.assert_close(
        2 * c * torch.sigmoid(2 * z / c) - c, c * torch.tanh(z / c), rtol=0, atol=1e-13
    )


def test_asym_starts_as_the_symmetric_cap_and_bends_each_side_alone():
    cap = Softcap().cap(SHAPE)
    z = torch.linspace(-60, 60, 121)
    torch.testing.assert_close(cap(z), 15 * torch.tanh(z / 15))
    with torch.no_grad():
        cap.above.fill_(20.0)  # type: ignore[union-attr]
        cap.below.fill_(7.0)  # type: ignore[union-attr]
    for value, out in zip(z.tolist(), cap(z).tolist(), strict=True):
        c = 20.0 if value > 0 else 7.0
        assert out == pytest.approx(c * math.tanh(value / c), abs=1e-5)


def test_both_sides_learn():
    model, ids = build({"softcap": True}), some_ids()
    model(ids, ids.roll(-1, 1)).backward()
    part = model.cap.steps["softcap"]
    assert all(p.grad is not None and float(p.grad) != 0 for p in part.parameters())


def test_off_leaves_logits_as_they_are_in_training_and_evaluation():
    model, plain, ids = build({"softcap": True, "softcap.mode": "off"}), build({}), some_ids()
    copy_shared(model, plain)
    h = plain.hidden(ids) * 50
    z = h @ plain.tok_emb.T
    torch.testing.assert_close(model.logits(h), z)
    torch.testing.assert_close(plain.logits(h), 30 * torch.tanh(z / 30))
    targets = ids.roll(-1, 1)
    z = model.hidden(ids) @ model.tok_emb.T
    expected = torch.logsumexp(z, -1) - z.gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(model(ids, targets), expected.mean())


def test_cost():
    for mode, params in (("asym", 2), ("off", 0)):
        run = settle({"softcap": True, "softcap.mode": mode})
        assert run.techniques["softcap"].cost(run.shape()).params == params
