"""Optuna's distributions: a study's domain as one, a number's place in its range and back, uniform draws; and
seeds that nobody chose."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from techniques.base import Choice, Float, Int
from techniques.config import digest

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


def distribution(domain: Float | Int | Choice) -> BaseDistribution:
    """The Optuna distribution of a domain (an Int's high already a number)."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.options)
    if isinstance(domain, Float):
        return FloatDistribution(domain.low, domain.high, log=domain.log)
    assert isinstance(domain.high, int)
    high = domain.low + (domain.high - domain.low) // domain.step * domain.step
    return IntDistribution(domain.low, high, log=domain.log, step=domain.step)


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


def fresh_seeds(question: str, count: int, known: set[int]) -> list[int]:
    """Seeds that follow from the question alone, none of them in use."""
    found = list[int]()
    i = 0
    while len(found) < count:
        seed = int(digest([question, "seed", i])[:8], 16) % (2**31 - 1)
        if seed not in known and seed not in found:
            found.append(seed)
        i += 1
    return found
