"""The configuration of a space that is nearest to what an earlier run had, of our trainer or another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from search.common.numeric import contains, place, value_at
from search.space.foreign import ForeignSpace
from search.space.native import NativeSpace
from search.space.space import Space
from search.study.foreign import texts_of
from techniques.config import Resolved, flatten, known_field, resolve

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Near:
    """An earlier run, and the nearest configuration."""

    ran: Values
    params: dict[str, Any]
    here: Values  # what `params` runs
    resolved: Resolved | None  # the run, of our trainer


def near_stored(space: Space, config: Values, base: Values) -> Near:
    """Of a trial's stored configuration, over its study's `base`. KeyError or ValueError where this version
    of the code no longer reads it."""
    if isinstance(space, ForeignSpace):
        ran, params, here = foreign_values(space, config)
        return Near(ran, params, here, None)
    assert isinstance(space, NativeSpace)
    run, more = resolved_now(space, config, base)
    params, found = nearest_of(space, run)
    return Near({**run.identity(), **more}, params, found.identity(), run)


def near_settings(space: Space, layers: Mapping[str, Values]) -> Near:
    """Of settings of our trainer, by their origin. ValueError for what it does not know."""
    assert isinstance(space, NativeSpace)
    run = resolve({origin: dict(values) for origin, values in layers.items()}, space.known)
    params, found = nearest_of(space, run)
    return Near(run.identity(), params, found.identity(), run)


def resolved_now(space: NativeSpace, config: Values, base: Values) -> tuple[Resolved, dict[str, Any]]:
    """(a stored run as this version reads it, what it had of what is gone from the code). ValueError."""
    known = space.known
    gone = dict[str, Any]()
    layers: dict[str, dict[str, Any]] = {"preset": {}, "file": {}}
    for origin, layer in (("preset", base), ("file", flatten(config))):
        for name, value in layer.items():
            try:
                known_field(name, known)
            except ValueError:
                gone[name] = value
            else:
                layers[origin][name] = value
    layers["file"].pop("preset", None)
    gone.pop("preset", None)
    on = {name for name, value in gone.items() if value is True and "." not in name}
    more = {n: v for n, v in gone.items() if n.partition(".")[0] in on or ("." not in n and v is not False)}
    return resolve(layers, known), more


def nearest_of(space: NativeSpace, run: Resolved) -> tuple[dict[str, Any], Resolved]:
    """The configuration of the space that is nearest to a run, and what it runs. ValueError."""
    values = run.values

    def pick(name: str) -> Any:
        dist = space.distributions[name]
        if name in space.slots:
            filled = [t for t in space.slots[name] if values.get(t, False)]
            return filled[0] if filled else space.slots[name][0]
        owner, _, field = name.partition(".")
        default = space.known[owner].Config.__dataclass_fields__[field].default if field else False
        return nearest_value(dist, values.get(name, default))

    params = space.repaired(space.walk(pick)[0])
    return params, space.resolve(params)


def nearest_value(dist: BaseDistribution, value: Any) -> Any:
    """`value`, or what the distribution has nearest to it; its first choice where nothing is near."""
    if contains(dist, value):
        return value
    if not isinstance(dist, CategoricalDistribution):
        return value_at(dist, place(dist, value))
    numbers = [c for c in dist.choices if isinstance(c, int | float) and not isinstance(c, bool)]
    if numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return min(numbers, key=lambda c: abs(c - value))
    return dist.choices[0]


def foreign_values(space: ForeignSpace, config: Values) -> tuple[Values, dict[str, Any], Values]:
    """(variables of the run, the nearest parameters, the variables that they set). What the run did not set
    had the script's default, which nobody knows: the middle of the range stands for it in all trials."""
    environment = texts_of(config)

    def pick(name: str) -> Any:
        variable = space.foreign.variables[name]
        dist = space.distributions[name]
        if isinstance(dist, CategoricalDistribution):
            said = [c for c in dist.choices if variable.text(c) == environment.get(name, "\0")]
            return said[0] if said else nearest_value(dist, plain(environment.get(name, "")))
        value = plain(environment.get(name, ""))
        return value_at(dist, 0.0) if isinstance(value, str) else nearest_value(dist, value)

    params = space.walk(pick)[0]
    numbers = ({n: plain(t) for n, t in env.items()} for env in (environment, texts_of(space.config(params))))
    ran, here = numbers
    return ran, params, here


def plain(text: str) -> Any:
    """A variable's text as a number where it is one."""
    try:
        return float(text)
    except ValueError:
        return text
