"""SWA is the mean of its snapshots, and the exported weights are that mean."""

import pytest
import torch

from techniques.averaging.ema import Ema
from techniques.averaging.swa import Swa
from tests.techniques.test_ema import Pair, move

SCALES = [1.0, 0.5, 0.3, 0.19, 0.15, 0.1, 0.05, 0.01]


def trained(**settings):
    """(averager, the trajectory of weights) after eight steps of a falling learning rate."""
    torch.manual_seed(0)
    model = Pair()
    averager = Swa(Swa.Config(**settings)).averager(model, 8)
    trajectory = []
    for scale in SCALES:
        trajectory.append(move(model))
        averager.update(model, scale)
    return averager, trajectory


@pytest.mark.parametrize(("every", "taken"), [(1, [3, 4, 5, 6, 7]), (2, [3, 5, 7]), (3, [5])])
def test_is_the_mean_of_the_snapshots(every: int, taken: list[int]):
    averager, trajectory = trained(every=every, start_scale=0.2)
    assert averager.snapshots == len(taken)
    for name, got in averager.weights().items():
        expected = torch.stack([trajectory[i][name].double() for i in taken]).mean(0)
        assert torch.equal(got, expected.float()) and got.dtype is torch.float32


def test_without_a_snapshot_it_is_the_model_and_the_audit_can_see_that():
    averager, trajectory = trained(every=1, start_scale=0.0)
    assert all(torch.equal(w, trajectory[-1][n]) for n, w in averager.weights().items())


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_a_blend_is_between_the_mean_and_the_ema(weight: float):
    averager, _ = trained(every=2, combine="blend", swa_weight=weight, one_minus_decay=0.3)
    torch.manual_seed(0)
    model = Pair()
    ema = Ema(Ema.Config(one_minus_decay=0.3)).averager(model, 8)
    for _ in SCALES:
        move(model)
        ema.update(model)
    mean = trained(every=2)[0].weights()
    for name, got in averager.weights().items():
        expected = weight * mean[name] + (1 - weight) * ema.weights()[name]
        torch.testing.assert_close(got, expected)
