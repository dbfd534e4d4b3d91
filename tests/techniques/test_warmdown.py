"""The warm-down by fraction: continuous, monotone, and at its floor when the budget ends."""

import itertools

import pytest

from techniques.config import resolve
from techniques.schedule.warmdown import Warmdown


@pytest.mark.parametrize(("frac", "min_lr"), [(0.72, 0.0), (0.85, 0.1), (1.0, 0.2), (0.2, 1.0)])
def test_equals_the_definition_continuous_and_monotone(frac: float, min_lr: float):
    technique, n = Warmdown(Warmdown.Config(frac=frac, min_lr=min_lr)), 10_000
    scales = [technique.lr_scale(i / n) for i in range(n + 1)]
    for i, scale in enumerate(scales):
        f = i / n
        assert scale == pytest.approx(max((1 - f) / frac, min_lr) if f >= 1 - frac else 1.0)
    steps = [a - b for a, b in itertools.pairwise(scales)]
    assert min(steps) >= 0 and max(steps) <= 1 / (frac * n) + 1e-9
    assert scales[0] == 1.0 and scales[-1] == min_lr


def test_the_trainers_own_warmdown_may_not_be_set_beside_it():
    known = {"warmdown": Warmdown}
    with pytest.raises(ValueError, match="warmdown_iters"):
        resolve({"command line": {"warmdown": True, "warmdown_iters": 100}}, known)
    resolved = resolve({"preset": {"warmdown_iters": 100}, "command line": {"warmdown": True}}, known)
    assert resolved.techniques["warmdown"].config.frac == 0.72
