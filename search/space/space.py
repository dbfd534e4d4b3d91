"""Space: the parameters of a study, and which of them mean something when; of our trainer or another script.

One walk decides everything: it asks for the parameters that mean something, one after the other, and what it
does not ask for is inactive and absent from a trial. `active`, `keep_active`, `suggest` and `groups` are
that walk, whatever the space; both classes take them from here as their methods.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search.common.conditions import Condition, Conditions
from search.common.numeric import contains, suggest_one
from techniques.base import STAGES, Choice, Float, Int
from techniques.config import Resolved, stage_keys

Params = Mapping[str, Any]
Pick = Callable[[str], Any]
TRAINED = "average"  # the stage whose result a checkpoint is


class Walk(Protocol):
    """The part of a space that decides what is active."""

    @property
    def distributions(self) -> dict[str, BaseDistribution]: ...  # every parameter of any configuration
    # (active parameters with their values, techniques or gates that are on); `pick(name)` is a value
    def walk(self, pick: Pick) -> tuple[dict[str, Any], frozenset[str]]: ...
    def lookup(self, params: Params) -> Pick: ...  # the values of `params`; a missing gate counts as off
    def condition(self, name: str) -> tuple[str, ...]: ...  # what decides whether it is active; () always


class Space(Walk, Protocol):
    """What samplers and workers need of a study's parameters."""

    def active(self, params: Params) -> set[str]: ...
    def keep_active(self, params: Params) -> dict[str, Any]: ...
    def suggest(self, trial: optuna.Trial) -> dict[str, Any]: ...
    def groups(self) -> list[list[str]]: ...

    # `params` with what contradicts each other only by a count lowered, so that a draw can be tried
    def repaired(self, params: Params) -> dict[str, Any]: ...
    def config(self, params: Params) -> dict[str, Any]: ...  # what config.json says of a configuration

    # the run in full, as costs and caches of its trainer know it; `hash()`, `values` and `techniques` are
    # there for everybody; ValueError when the parameters contradict each other
    def resolve(self, params: Params) -> Any: ...
    # the parameters of a known configuration, for a warm start; ValueError outside the space
    def params_of(self, config: Params) -> dict[str, Any]: ...
    # the walk as a table, for models that look at thousands of configurations at once; conditions stand
    # before what depends on them, what always means something is not in it, nor what no table can say
    def conditions(self) -> Conditions: ...
    def switchable(self) -> set[str]: ...  # techniques or gates that are on in some configurations only
    def stage_of(self, name: str) -> str: ...  # the first stage of a run that reads a parameter


def active(space: Walk, params: Params) -> set[str]:
    return set(space.walk(space.lookup(params))[0])


def keep_active(space: Walk, params: Params) -> dict[str, Any]:
    """`params` without the inactive, in the order of the walk."""
    return {k: v for k, v in space.walk(space.lookup(params))[0].items() if k in params}


def suggest(space: Walk, trial: optuna.Trial) -> dict[str, Any]:
    """The active parameters, taken from `trial` one after the other."""
    return space.walk(lambda name: suggest_one(trial, name, space.distributions[name]))[0]


def groups(space: Walk) -> list[list[str]]:
    """Parameters that are active together: what one joint model may cover. The first is always active."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in space.distributions:
        found.setdefault(space.condition(name), []).append(name)
    found.setdefault((), [])
    return [sorted(names) for _, names in sorted(found.items()) if names]


def endless(space: Walk) -> str:
    """A parameter with endlessly many values; "" in a finite space."""
    found = space.distributions.items()
    return next((name for name, d in found if isinstance(d, FloatDistribution) and not d.single()), "")


def distribution(domain: Float | Int | Choice) -> BaseDistribution:
    """The Optuna distribution of a domain (an Int's high already a number)."""
    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.options)
    if isinstance(domain, Float):
        return FloatDistribution(domain.low, domain.high, log=domain.log)
    assert isinstance(domain.high, int)
    high = domain.low + (domain.high - domain.low) // domain.step * domain.step
    return IntDistribution(domain.low, high, log=domain.log, step=domain.step)


def both(one: Condition, other: Condition) -> Condition:
    return {**one, **{name: one.get(name, allowed) & allowed for name, allowed in other.items()}}


def inside(space: Walk, name: str, value: Any) -> Any:
    """`value` when the study could have sampled it, else ValueError."""
    if not contains(space.distributions[name], value):
        raise ValueError(
            f"`{name}` must lie in this study's {space.distributions[name]}, but the configuration has "
            f"{value!r}. Widen the study's space, or leave the configuration out."
        )
    return value


def training_key(resolved: Resolved) -> str:
    """Equal keys train equal weights on one machine with one code and one data."""
    return stage_keys(resolved, {}, "")[TRAINED]


def is_later(space: Space, name: str) -> bool:
    """Whether a parameter is read only behind the training."""
    stage = space.stage_of(name)
    return stage in STAGES and STAGES.index(stage) > STAGES.index(TRAINED)
