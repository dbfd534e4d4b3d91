"""EMA against its sum written out, on a model of two parameters."""

import pytest
import torch
from torch import nn

from techniques import config
from techniques.averaging.ema import Ema
from techniques.published import from_environment


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(()))


def move(model: nn.Module) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("weight", [0.003, 0.3, 1.0])
def test_equals_the_sum_over_the_trajectory(weight: float):
    torch.manual_seed(0)
    model, beta = Pair(), 1 - weight
    first = {n: p.detach().clone() for n, p in model.named_parameters()}
    averager = Ema(Ema.Config(one_minus_decay=weight)).averager(model, 10)
    trajectory = []
    for _ in range(10):
        trajectory.append(move(model))
        averager.update(model)
    got = averager.weights()
    assert got.keys() == first.keys()
    for name, start in first.items():
        expected = beta**10 * start.double()
        for age, weights in enumerate(reversed(trajectory)):
            expected += (1 - beta) * beta**age * weights[name].double()
        torch.testing.assert_close(got[name].double(), expected, atol=1e-5, rtol=1e-5)
        assert got[name].dtype is torch.float32
        if weight == 1.0:  # β = 0: the last weights
            assert torch.equal(got[name], trajectory[-1][name])


def test_constant_weights_follow_the_closed_form_and_are_not_touched():
    torch.manual_seed(0)
    model = Pair()
    first = {n: p.detach().clone() for n, p in model.named_parameters()}
    averager = Ema(Ema.Config(decay=0.9)).averager(model, 20)
    for name, p in averager.weights().items():
        assert torch.equal(p, first[name])
    theta = move(model)
    for _ in range(20):
        averager.update(model)
    for name, p in model.named_parameters():
        assert torch.equal(p, theta[name])
        closed = 0.9**20 * first[name] + (1 - 0.9**20) * theta[name]
        torch.testing.assert_close(averager.weights()[name], closed)


def test_bfloat16_parameters_are_averaged_in_float32():
    model = Pair().bfloat16()
    averager = Ema(Ema.Config(one_minus_decay=0.001)).averager(model, 4)
    with torch.no_grad():
        model.a.add_(1.0)
    before = averager.weights()["a"].clone()
    averager.update(model)
    gain = averager.weights()["a"] - before
    torch.testing.assert_close(gain, torch.full_like(gain, 0.001), atol=1e-4, rtol=0)


def test_decay_and_its_complement_are_one_run():
    known = {"ema": Ema}
    by_decay = from_environment({"EMA_DECAY": "0.9965"}, known)
    said, searched = (
        config.resolve({"environment": layer}, known)
        for layer in (by_decay, {"ema": True, "ema.one_minus_decay": 0.0035})
    )
    assert said.techniques["ema"].config.one_minus_decay == 0.0035
    assert said.hash() == searched.hash()
    with pytest.raises(ValueError, match="Set one of them"):
        Ema.Config(one_minus_decay=0.01, decay=0.997)
