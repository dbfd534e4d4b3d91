"""Optuna distributions of the domains of a study."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search.study.domains import Domain
from techniques.base import Choice, Float


def distribution(domain: Domain) -> BaseDistribution:
    """The Optuna distribution of a domain (an Int's high already a number)."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.options)
    if isinstance(domain, Float):
        return FloatDistribution(domain.low, domain.high, log=domain.log)
    assert isinstance(domain.high, int)
    high = domain.low + (domain.high - domain.low) // domain.step * domain.step
    return IntDistribution(domain.low, high, log=domain.log, step=domain.step)


def suggest_one(trial: optuna.Trial, name: str, dist: BaseDistribution) -> Any:
    """trial.suggest_* for whatever distribution it is."""
    if isinstance(dist, CategoricalDistribution):
        return trial.suggest_categorical(name, dist.choices)
    if isinstance(dist, FloatDistribution):
        return trial.suggest_float(name, dist.low, dist.high, log=dist.log)
    assert isinstance(dist, IntDistribution)
    return trial.suggest_int(name, dist.low, dist.high, log=dist.log, step=dist.step)


def contains(dist: BaseDistribution, value: Any) -> bool:
    """Whether `value` could have been sampled from `dist`."""
    if isinstance(dist, CategoricalDistribution):
        return value in dist.choices
    assert isinstance(dist, FloatDistribution | IntDistribution)
    return dist.low <= value <= dist.high and (
        not isinstance(dist, IntDistribution) or (value - dist.low) % dist.step == 0
    )
