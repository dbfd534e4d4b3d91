"""A number's place in its range, and back; uniform draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution


def draw(dist: BaseDistribution, rng: np.random.Generator) -> Any:
    """A uniform draw (in the logarithm where the distribution says so)."""
    if isinstance(dist, CategoricalDistribution):
        return dist.choices[int(rng.integers(len(dist.choices)))]
    if isinstance(dist, FloatDistribution):
        if dist.log:
            value = math.exp(rng.uniform(math.log(dist.low), math.log(dist.high)))
            return min(max(value, dist.low), dist.high)
        return float(rng.uniform(dist.low, dist.high))
    assert isinstance(dist, IntDistribution)
    if dist.log:
        value = math.exp(rng.uniform(math.log(dist.low - 0.5), math.log(dist.high + 0.5)))
        return min(max(round(value), dist.low), dist.high)
    return dist.low + dist.step * int(rng.integers((dist.high - dist.low) // dist.step + 1))


def place(dist: BaseDistribution, value: Any) -> float:
    """A number's place in its range, from -1 to 1 (in the logarithm where the distribution says so); of a
    categorical the index of its choice."""
    if isinstance(dist, CategoricalDistribution):
        return float(dist.to_internal_repr(value))
    assert isinstance(dist, FloatDistribution | IntDistribution)
    low, high, at = float(dist.low), float(dist.high), float(value)
    if high <= low:
        return 0.0
    if dist.log:
        low, high, at = math.log(low), math.log(high), math.log(max(at, 1e-300))
    return min(1.0, max(-1.0, 2.0 * (at - low) / (high - low) - 1.0))


def value_at(dist: BaseDistribution, at: float) -> Any:
    """The value of the distribution that is nearest to a place: the inverse of `place`."""
    if isinstance(dist, CategoricalDistribution):
        return dist.choices[round(at)]
    assert isinstance(dist, FloatDistribution | IntDistribution)
    low, high, share = float(dist.low), float(dist.high), (min(1.0, max(-1.0, at)) + 1.0) / 2.0
    value = low * (high / low) ** share if dist.log else low + share * (high - low)
    step = dist.step or 0.0
    if step:
        value = low + round((value - low) / step) * step
    value = min(max(value, low), high)
    return round(value) if isinstance(dist, IntDistribution) else value
