"""Optuna's distributions: a number's place in its range and back, what lies in one, uniform draws."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

Distributions = Mapping[str, BaseDistribution]
SearchSpace = dict[str, BaseDistribution]


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
    """A number's place in its range, -1 to 1 (logarithmic as its distribution); the index of a choice."""
    if isinstance(dist, CategoricalDistribution):
        return float(dist.to_internal_repr(value))
    assert isinstance(dist, FloatDistribution | IntDistribution)
    low, high, at = float(dist.low), float(dist.high), float(value)
    if high <= low:
        return 0.0
    if dist.log:
        low = math.log(low)
        high = math.log(high)
        at = math.log(max(at, 5e-324))
    if high - low == math.inf:
        low = 0.25 * low
        high = 0.25 * high
        at = 0.25 * at
    return min(1.0, max(-1.0, 2.0 * (at - low) / (high - low) - 1.0))


def value_at(dist: BaseDistribution, at: float) -> Any:
    """The value of the distribution that is nearest to a place: the inverse of `place`."""
    if isinstance(dist, CategoricalDistribution):
        return dist.choices[round(at)]
    assert isinstance(dist, FloatDistribution | IntDistribution)
    low, high, share = float(dist.low), float(dist.high), (min(1.0, max(-1.0, at)) + 1.0) / 2.0
    if dist.log:
        most = high / low
        value = (
            low * most**share
            if most < math.inf
            else math.exp(share * math.log(high) + (1.0 - share) * math.log(low))
        )
    else:
        value = low + share * (high - low) if high - low < math.inf else (1.0 - share) * low + share * high
    if isinstance(dist, IntDistribution):
        return min(max(dist.low + round((value - low) / dist.step) * dist.step, dist.low), dist.high)
    if dist.step:
        value = low + round((value - low) / dist.step) * dist.step
    return min(max(value, low), high)


def suggest_one(trial: optuna.Trial, name: str, dist: BaseDistribution) -> Any:
    if isinstance(dist, CategoricalDistribution):
        return trial.suggest_categorical(name, dist.choices)
    if isinstance(dist, FloatDistribution):
        return trial.suggest_float(name, dist.low, dist.high, log=dist.log)
    assert isinstance(dist, IntDistribution)
    return trial.suggest_int(name, dist.low, dist.high, log=dist.log, step=dist.step)


def contains(dist: BaseDistribution, value: Any) -> bool:
    if isinstance(dist, CategoricalDistribution):
        return value in dist.choices
    assert isinstance(dist, FloatDistribution | IntDistribution)
    return dist.low <= value <= dist.high and (
        not isinstance(dist, IntDistribution) or (value - dist.low) % dist.step == 0
    )


def fits(dist: BaseDistribution, value: Any) -> bool:
    """Whether `place` can tell where a value stands, be it outside: a choice, or any number."""
    if not isinstance(dist, CategoricalDistribution):
        return isinstance(value, int | float) and not math.isnan(value)
    try:
        return dist.to_internal_repr(value) >= 0
    except ValueError:
        return False


def is_endless(dist: BaseDistribution) -> bool:
    """Whether the width of a range is more than a number can say: Optuna draws from no such range."""
    return isinstance(dist, FloatDistribution) and dist.high - dist.low == math.inf


def joined(old: BaseDistribution, new: BaseDistribution) -> BaseDistribution:
    """The range of two for one number; `new` where they are not of one kind and grid."""
    if old is new or old == new:
        return old
    if isinstance(old, IntDistribution) and isinstance(new, IntDistribution):
        if (old.log, old.step) == (new.log, new.step) and (old.low - new.low) % old.step == 0:
            low = min(old.low, new.low)
            high = max(old.high, new.high)
            return IntDistribution(low, high, log=old.log, step=old.step)
    if isinstance(old, FloatDistribution) and isinstance(new, FloatDistribution):
        if old.log == new.log and old.step is None and new.step is None:
            return FloatDistribution(min(old.low, new.low), max(old.high, new.high), log=old.log)
    return new


def frozen(value: Any) -> Any:
    """The value, or what is written for it where it is a list, a dict or the like: for sets."""
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
