"""conditions(space) -> when each parameter means something: the space's walk as a table, for models that look
at thousands of configurations at once.

parameter -> categorical -> the indices of its choices, all conditions together; INACTIVE among them: also
while that categorical means nothing itself. Conditions stand before what depends on them. What two slots may
each bring along is no such table: the settings of that technique then count as active throughout.
"""

from __future__ import annotations

from collections.abc import Mapping

from optuna.distributions import CategoricalDistribution

from search.space.native import SearchSpace
from search.study.domains import BASELINE
from techniques.config import TRAINER_FIELDS

INACTIVE, OFF, ON = -1, 0, 1
Condition = dict[str, frozenset[int]]
Conditions = dict[str, Condition]


def conditions(space: SearchSpace) -> Conditions:
    """See the head of this file; a parameter that always means something is not in it."""
    if space.study.foreign is not None:
        variables = space.study.foreign.variables
        every = {name: _when(space, variable.when) for name, variable in variables.items()}
    else:
        asked = {name: _asked(space, name) for name in space.switches}
        every = asked | {name: _read(space, name) for name in space.study.free if name in space.distributions}
    return {name: found for name, found in every.items() if found}


def _when(space: SearchSpace, when: tuple[str, tuple[object, ...]] | None) -> Condition:
    """Of a foreign variable; a number as parent is no condition that a table can hold."""
    parent = space.distributions[when[0]] if when else None
    if when is None or not isinstance(parent, CategoricalDistribution):
        return {}
    return {when[0]: frozenset(k for k, choice in enumerate(parent.choices) if choice in when[1])}


def _asked(space: SearchSpace, name: str) -> Condition:
    """When a gate is asked for: no slot took it along, what it needs is on, nothing excludes it so far."""
    found = _not_taken(space, name)
    for need in space.known[name].requires:
        found = _both(found, _on(space, need))
    earlier = space.switches[: space.switches.index(name)]
    for rival in sorted(space.rivals[name]):
        found = _both(found, _not_taken(space, rival))
        if rival in earlier:
            found = _both(found, {rival: frozenset((INACTIVE, OFF))})
    return found


def _read(space: SearchSpace, name: str) -> Condition:
    """When a setting means something: its technique is on, with what it needs, and nothing overrides it."""
    found: Condition = {}
    if name not in TRAINER_FIELDS:
        owner, _, field = name.partition(".")
        other = space.known[owner].setting_requires.get(field)
        found = _both(_on(space, owner), _on(space, other) if other else {})
    for technique in space.known:
        if name in space.known[technique].overrides:
            found = _both(found, _not_taken(space, technique))
            if technique in space.switches:
                found = _both(found, {technique: frozenset((INACTIVE, OFF))})
    return found


def _on(space: SearchSpace, technique: str) -> Condition:
    """When a technique is on."""
    taken = _taken(space, technique)
    if technique in space.forced:
        return {}
    if technique in space.switches:
        if not taken:
            return {technique: frozenset((ON,))}
        here = {name: allowed for name, allowed in _asked(space, technique).items() if name not in taken}
        return _both(here, {technique: frozenset((INACTIVE, ON))})
    return taken if len(taken) == 1 else {}


def _taken(space: SearchSpace, technique: str) -> Condition:
    """Slot -> choices that bring the technique along."""
    found: Condition = {}
    for slot, choices in space.slots.items():
        brings = [k for k, c in enumerate(choices) if c != BASELINE and technique in space.with_needs(c)]
        if brings:
            found[slot] = frozenset(brings)
    return found


def _not_taken(space: SearchSpace, technique: str) -> Condition:
    taken = _taken(space, technique)
    return {slot: frozenset(range(len(space.slots[slot]))) - brings for slot, brings in taken.items()}


def _both(one: Mapping[str, frozenset[int]], other: Mapping[str, frozenset[int]]) -> Condition:
    merged = dict(one)
    for name, allowed in other.items():
        merged[name] = merged[name] & allowed if name in merged else allowed
    return merged
