"""ForeignSpace: the settings of somebody else's script, under their conditions.

A variable is asked for when its parent has a value that its `when` names; otherwise it is not set, and the
script's own default holds. A gate that is off is set to its `off` text.
"""

from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from search.common.conditions import Conditions
from search.space import space
from search.space.space import Params, Pick, distribution
from search.study.foreign import UNSET, Foreign, Value, as_text, texts_of
from techniques.base import STAGES
from techniques.config import digest


@dataclass(frozen=True)
class ForeignRun:
    """One configuration of a foreign trainer."""

    values: dict[str, str]  # all that it sets, as texts
    techniques: tuple[str, ...]  # gates that are on

    def hash(self) -> str:
        """Equal hashes are the same run."""
        return digest(self.values)


@dataclass(frozen=True)
class ForeignSpace:
    """The variables of a foreign study; search/space/space.py says what each method means."""

    foreign: Foreign
    distributions: dict[str, BaseDistribution]

    active = space.active
    keep_active = space.keep_active
    suggest = space.suggest
    groups = space.groups

    def walk(self, pick: Pick) -> tuple[dict[str, Any], frozenset[str]]:
        picked: dict[str, Any] = {}
        for name, variable in self.foreign.variables.items():
            parent, accepted = variable.when or ("", ())
            if not parent or (parent in picked and picked[parent] in accepted):
                picked[name] = pick(name)
        return picked, frozenset(n for n, v in picked.items() if self.foreign.variables[n].gate and v)

    def lookup(self, params: Params) -> Pick:
        return lambda name: params.get(name, False)

    def condition(self, name: str) -> tuple[str, ...]:
        when = self.foreign.variables[name].when
        return () if when is None else ("when", when[0], *map(str, when[1]))

    def conditions(self) -> Conditions:
        found: Conditions = {}
        for name, variable in self.foreign.variables.items():
            parent = self.distributions[variable.when[0]] if variable.when else None
            if variable.when and isinstance(parent, CategoricalDistribution):  # no table holds a number
                codes = (k for k, choice in enumerate(parent.choices) if choice in variable.when[1])
                found[name] = {variable.when[0]: frozenset(codes)}
        return found

    def repaired(self, params: Params) -> dict[str, Any]:
        return dict(params)

    def environment(self, params: Params) -> dict[str, str]:
        """What goes into the environment of a run."""
        return self.config(params)["environment"]

    def config(self, params: Params) -> dict[str, Any]:
        """{"environment": texts}, and {"settings": values} of what is bound elsewhere, if there is any."""
        bound = self.foreign.bindings
        variables = self.foreign.variables
        left = {name: v.default for name, v in variables.items() if v.default is not None}
        sampled = (left | self.keep_active(params)).items()
        texts = {name: as_text(value) for name, value in self.foreign.fixed.items()}
        texts |= {name: variables[name].text(value) for name, value in sampled}
        settings: dict[str, Value] = {n: v for n, v in self.foreign.fixed.items() if n in bound}
        settings |= {n: variables[n].setting(v) for n, v in sampled if n in bound}
        config = {"environment": {n: t for n, t in texts.items() if t != UNSET and n not in bound}}
        settings = {name: value for name, value in settings.items() if value != UNSET}
        return config | ({"settings": settings} if settings else {})

    def resolve(self, params: Params) -> ForeignRun:
        on = self.walk(self.lookup(params))[1]
        return ForeignRun(texts_of(self.config(params)), tuple(sorted(on)))

    def params_of(self, config: Params) -> dict[str, Any]:
        def pick(name: str) -> Any:
            if name not in config:
                raise ValueError(f"A configuration gives every active variable, but not {name}. Add it.")
            return space.inside(self, name, config[name])

        return self.walk(pick)[0]

    def switchable(self) -> set[str]:
        return {name for name, variable in self.foreign.variables.items() if variable.gate}

    def stage_of(self, name: str) -> str:
        return STAGES[0]  # the script is one piece


def foreign_space(foreign: Foreign, path: str) -> ForeignSpace:
    """The space of a foreign study, whose file is `path`. ValueError when nothing in it is free."""
    if not foreign.variables:
        raise ValueError(
            f"A study must leave something free, but {path} has no variable in [space]. Add one: "
            f"MATRIX_LR = {{ low = 0.01, high = 0.1, log = true }}."
        )
    return _space(foreign)


def config_of(foreign: Foreign, params: Params) -> dict[str, Any]:
    """What a run of these settings is told, where nothing is free too."""
    return _space(foreign).config(params)


def _space(foreign: Foreign) -> ForeignSpace:
    return ForeignSpace(foreign, {name: distribution(v.domain) for name, v in foreign.variables.items()})
