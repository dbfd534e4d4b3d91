"""ForeignSpace: the environment variables of somebody else's script, under their conditions.

A variable is asked for when its parent has a value that its `when` names; otherwise it is not set, and the
script's own default holds. A gate that is off is set to its `off` text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import optuna

from search.space.distributions import contains, distribution, suggest_one
from search.space.native import Params, SearchSpace
from search.study.foreign import Foreign, as_text
from search.study.model import Study
from search.trainers.foreign.run import trainer_facts
from techniques.base import Shape, Technique
from techniques.config import Config, Resolved

LEGALITY = "not known"  # of whatever a foreign script does


class Gate(Technique):
    """A switch of a foreign script, as the reports list techniques; we know nothing about it."""

    name = "gate"

    def cost(self, shape: Shape) -> Any:
        raise ValueError("Only techniques of this trainer have a known cost, but this is a foreign gate.")


@dataclass(frozen=True)
class ForeignRun(Resolved):
    """One configuration of a foreign trainer; `values` are the texts of its environment."""

    legality: ClassVar[str] = LEGALITY

    def identity(self, last: str = "") -> dict[str, Any]:
        return dict(self.values)


@dataclass(frozen=True)
class ForeignSpace(SearchSpace):
    """The variables of a foreign study. Slots, rivals and forced techniques are empty."""

    @property
    def foreign(self) -> Foreign:
        assert self.study.foreign is not None
        return self.study.foreign

    def walk(self, pick: Callable[[str], Any]) -> tuple[dict[str, Any], frozenset[str]]:
        """(active variables with their values, gates that are on); `pick(name)` gives a value."""
        picked: dict[str, Any] = {}
        for name, variable in self.foreign.variables.items():
            if variable.when is None or _holds(picked, variable.when):
                picked[name] = pick(name)
        return picked, frozenset(n for n, v in picked.items() if self.foreign.variables[n].gate and v)

    def environment(self, params: Params) -> dict[str, str]:
        """The variables of a run: what is fixed, and what was sampled and is active."""
        texts = {name: as_text(value) for name, value in self.foreign.fixed.items()}
        for name, value in self.walk(self._lookup(params))[0].items():
            if name in params:
                texts[name] = self.foreign.variables[name].text(value)
        return texts

    def config(self, params: Params) -> dict[str, Any]:
        """config.json for search/trainers/foreign/adapter.py."""
        environment = self.environment(params)
        return {"environment": environment, "trainer": trainer_facts(self.study, environment)}

    def resolve(self, params: Params) -> ForeignRun:
        """The run, without its trainer's facts."""
        on = self.walk(self._lookup(params))[1] if params else ()
        gates = {name: cast("Technique", Gate()) for name in sorted(on)}
        return ForeignRun(Config(), gates, dict(self.environment(params)), {})

    def params_of(self, config: Params) -> dict[str, Any]:
        """The parameters of known values {NAME: value}, for a warm start. ValueError outside the space."""

        def pick(name: str) -> Any:
            if name not in config:
                raise ValueError(f"A configuration gives every active variable, but not {name}. Add it.")
            if not contains(self.distributions[name], config[name]):
                raise ValueError(
                    f"`{name}` must lie in this study's {self.distributions[name]}, but the configuration "
                    f"has {config[name]!r}. Widen the space, or leave it out."
                )
            return config[name]

        return self.walk(pick)[0]

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        return self.walk(lambda name: suggest_one(trial, name, self.distributions[name]))[0]

    def may_be_on(self) -> set[str]:
        return set(self.switches)

    def _condition(self, name: str) -> tuple[str, ...]:
        when = self.foreign.variables[name].when
        return () if when is None else ("when", when[0], *map(str, when[1]))


def _holds(picked: Mapping[str, Any], when: tuple[str, tuple[Any, ...]]) -> bool:
    parent, accepted = when
    return parent in picked and picked[parent] in accepted


def foreign_space(study: Study) -> ForeignSpace:
    """The space of a foreign study. ValueError when nothing in it is free."""
    assert study.foreign is not None
    variables = study.foreign.variables
    if not variables:
        raise ValueError(
            f"A study must leave something free, but {study.path} has no variable in [space]. Add one: "
            f"MATRIX_LR = {{ low = 0.01, high = 0.1, log = true }}."
        )
    return ForeignSpace(
        study=study,
        known={},
        distributions={name: distribution(v.domain) for name, v in variables.items()},
        slots={},
        switches=tuple(name for name, v in variables.items() if v.gate),
        forced=frozenset(),
        rivals={},
    )
