"""NativeSpace: what a study varies of our trainer, and its way to a configuration and back.

Its walk: slots first (one categorical each, `baseline` or a technique that fills it), then the other gates
(a gate is asked only while nothing excludes its technique and everything that it needs is on), then the
settings of what is on.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from search.common.conditions import INACTIVE_CODE, OFF_CODE, ON_CODE, Condition, Conditions
from search.space import space
from search.space.foreign import foreign_space
from search.space.space import Params, Pick, Space, both, distribution
from search.study.load import BASELINE, FREE, ON, excludes
from search.study.model import Study
from techniques import catalog
from techniques.base import STAGES, Technique
from techniques.config import TRAINER_FIELDS, Resolved, read_preset, resolve


@dataclass(frozen=True)
class NativeSpace:
    """Names are flat: a setting, a technique's gate, or a slot; search/space/space.py says the rest."""

    study: Study
    known: Mapping[str, type[Technique]]
    distributions: dict[str, BaseDistribution]  # every parameter that any configuration may have
    slots: dict[str, tuple[str, ...]]  # slot parameter -> `baseline` and the techniques that may fill it
    switches: tuple[str, ...]  # the other free gates, what a technique needs before the technique
    forced: frozenset[str]  # techniques that are on in every configuration
    rivals: Mapping[str, frozenset[str]]  # technique -> those that cannot be on with it

    active = space.active
    keep_active = space.keep_active
    suggest = space.suggest
    groups = space.groups

    def walk(self, pick: Pick) -> tuple[dict[str, Any], frozenset[str]]:
        picked: dict[str, Any] = {}
        on = set(self.forced)
        for slot in self.slots:
            picked[slot] = pick(slot)
            if picked[slot] != BASELINE:
                on |= self._with_needs(picked[slot])
        for name in self.switches:
            if name in on or not on.issuperset(self.known[name].requires) or self.rivals[name] & on:
                continue
            picked[name] = pick(name)
            if picked[name]:
                on.add(name)
        unread = self._unread(on)
        for name in self.study.free:
            if name not in unread and (name in TRAINER_FIELDS or name.partition(".")[0] in on):
                picked[name] = pick(name)
        return picked, frozenset(on)

    def _unread(self, on: Collection[str]) -> set[str]:
        """Settings that mean nothing although the trainer or their technique, which is on, has them."""
        found = {setting for name in on for setting in self.known[name].overrides}
        for name in on:
            needs = self.known[name].setting_requires
            found |= {f"{name}.{field}" for field, other in needs.items() if other not in on}
        return found

    def _with_needs(self, name: str) -> set[str]:
        """A slot's technique takes what it needs with it; those gates are then not asked."""
        found, waiting = set[str](), [name]
        while waiting:
            one = waiting.pop()
            if one not in found:
                found.add(one)
                waiting += self.known[one].requires
        return found

    def _default(self, owner: str, field: str) -> Any:
        return self.known[owner].Config.__dataclass_fields__[field].default

    def lookup(self, params: Params) -> Pick:
        return lambda name: params.get(name, BASELINE if name in self.slots else False)

    def repaired(self, params: Params) -> dict[str, Any]:
        """`params` with counts that exceed a sampled size (xsa.last_n over num_layers) lowered to it, so that
        a draw from the static ranges is no contradiction and small sizes are not rejected most."""
        found = dict(params)
        for name, size in self.study.bounds.items():
            dist = self.distributions.get(name)
            if name in found and size in found and isinstance(dist, IntDistribution):
                room = max(0, int(found[size]) - dist.low) // dist.step * dist.step
                found[name] = min(found[name], dist.low + room)
        return found

    def config(self, params: Params) -> dict[str, Any]:
        """The flat layer: preset, what is fixed, what was sampled and is active."""
        picked, on = self.walk(self.lookup(params))
        layer: dict[str, Any] = {"preset": self.study.preset} if self.study.preset else {}
        layer["num_reports"] = self.study.num_reports
        unread = self._unread(on)
        for name, value in self.study.fixed.items():
            if name not in unread and (name in TRAINER_FIELDS or name.partition(".")[0] in on):
                layer[name] = value
        # the preset's, without their technique
        for name in unread & self.study.base.keys() - TRAINER_FIELDS.keys():
            owner, _, field = name.partition(".")
            layer[name] = self._default(owner, field)
        for name in self.known:
            if name in on or self.study.base.get(name, False):
                layer[name] = name in on
        layer.update({k: v for k, v in picked.items() if k in self.study.free and k in params})
        return layer

    def resolve(self, params: Params) -> Resolved:
        """Every value of the run. ValueError when the parameters contradict each other."""
        layer = {k: v for k, v in self.config(params).items() if k != "preset"}
        resolved = resolve({"preset": self.study.base, "file": layer}, self.known)
        shape = resolved.config.shape()
        for name, size in self.study.bounds.items():
            if name in layer and layer[name] > getattr(shape, size):
                raise ValueError(
                    f"`{name}` must be at most {size}, but got {layer[name]} and {getattr(shape, size)}."
                )
        return resolved

    def params_of(self, config: Params) -> dict[str, Any]:
        """The parameters that give a known flat configuration (a preset: {"preset": name}), for a warm start.
        What this study fixes is not looked at. ValueError when the space cannot express it."""
        from_file = {k: v for k, v in config.items() if k != "preset"}
        preset = config.get("preset", "")
        base = self.study.base if preset in ("", self.study.preset) else read_preset(preset)
        values = resolve({"preset": base, "file": from_file}, self.known).values

        def pick(name: str) -> Any:
            if name in self.slots:
                return next((t for t in self.slots[name] if values.get(t, False)), BASELINE)
            owner, _, field = name.partition(".")
            return values[name] if name in values else self._default(owner, field)

        picked, on = self.walk(pick)
        wanted = {n for n in self.known if values[n]}
        if odd := sorted((on ^ wanted) - self.forced):
            raise ValueError(
                f"This study cannot express the configuration: it fixes {', '.join(odd)} otherwise."
            )
        for name, value in picked.items():
            space.inside(self, name, value)
        return picked

    def condition(self, name: str) -> tuple[str, ...]:
        if name in self.slots:
            return ()
        if name in self.known:
            excluded = self.rivals[name] & (self.switchable() | self.forced)
            return ("gate", name) if excluded or self.known[name].requires or self._is_needed(name) else ()
        if name in TRAINER_FIELDS:
            free = [t for t in self.known if self.study.gates[t] == FREE]
            rivals = [t for t in free if name in self.known[t].overrides]
            return ("unless", *rivals) if rivals else ()
        owner, _, field = name.partition(".")
        needs = self.known[owner].setting_requires.get(field)
        decide = [t for t in (owner, needs) if t and t not in self.forced]
        return ("setting", *decide) if decide else ()

    def _is_needed(self, name: str) -> bool:
        return any(name in self._with_needs(t) for s in self.slots.values() for t in s if t != BASELINE)

    def conditions(self) -> Conditions:
        """Settings of what two slots may each bring along count as active throughout: that is no table."""
        found = {name: self._asked(name) for name in self.switches}
        found |= {name: self._read(name) for name in self.study.free if name in self.distributions}
        return {name: condition for name, condition in found.items() if condition}

    def _asked(self, name: str) -> Condition:
        """When a gate is asked for: no slot took it, what it needs is on, nothing excludes it so far."""
        found = self._not_taken(name)
        for need in self.known[name].requires:
            found = both(found, self._on(need))
        earlier = self.switches[: self.switches.index(name)]
        for rival in sorted(self.rivals[name]):
            found = both(found, self._off(rival, earlier))
        return found

    def _read(self, name: str) -> Condition:
        """When a setting means something: its technique is on, as is what it needs; nothing overrides it."""
        found: Condition = {}
        if name not in TRAINER_FIELDS:
            owner, _, field = name.partition(".")
            other = self.known[owner].setting_requires.get(field)
            found = both(self._on(owner), self._on(other) if other else {})
        for technique in self.known:
            if name in self.known[technique].overrides:
                found = both(found, self._off(technique, self.switches))
        return found

    def _off(self, technique: str, asked: Collection[str]) -> Condition:
        """When a technique is off: no slot took it, and its gate, if it is among those that were asked."""
        gate: Condition = {technique: frozenset((INACTIVE_CODE, OFF_CODE))} if technique in asked else {}
        return both(self._not_taken(technique), gate)

    def _on(self, technique: str) -> Condition:
        taken = self._taken(technique)
        if technique in self.forced:
            return {}
        if technique in self.switches:
            if not taken:
                return {technique: frozenset((ON_CODE,))}
            here = {name: codes for name, codes in self._asked(technique).items() if name not in taken}
            return both(here, {technique: frozenset((INACTIVE_CODE, ON_CODE))})
        return taken if len(taken) == 1 else {}

    def _taken(self, technique: str) -> Condition:
        found: Condition = {}
        for slot, choices in self.slots.items():
            brings = [k for k, c in enumerate(choices) if c != BASELINE and technique in self._with_needs(c)]
            if brings:
                found[slot] = frozenset(brings)
        return found

    def _not_taken(self, technique: str) -> Condition:
        taken = self._taken(technique)
        return {slot: frozenset(range(len(self.slots[slot]))) - brings for slot, brings in taken.items()}

    def switchable(self) -> set[str]:
        return {*self.switches, *(t for s in self.slots.values() for t in s if t != BASELINE)}

    def stage_of(self, name: str) -> str:
        if name in TRAINER_FIELDS:
            return TRAINER_FIELDS[name].metadata["stage"]
        readers = [t for t in self.slots.get(name, (name.partition(".")[0],)) if t != BASELINE]
        return min((self.known[t].stage for t in readers), key=STAGES.index, default=STAGES[-1])


def build_space(study: Study, known: Mapping[str, type[Technique]]) -> Space:
    """The search space of a checked study. ValueError when nothing at all is free."""
    if study.foreign is not None:
        return foreign_space(study.foreign, study.path)
    return native_space(study, known)


def native_space(study: Study, known: Mapping[str, type[Technique]]) -> NativeSpace:
    forced = frozenset(n for n, state in study.gates.items() if state == ON)
    free = [n for n, state in study.gates.items() if state == FREE]
    slots: dict[str, tuple[str, ...]] = {}
    placed: set[str] = set()
    for slot, names in catalog.slot_groups(dict(known)).items():
        rivals = [n for n in names if n in free and n not in placed]
        if slot not in study.slots and len(rivals) < 2:
            continue
        parameter = slot if slot not in known and slot not in TRAINER_FIELDS else f"{slot}_slot"
        choices = study.slots.get(slot, (BASELINE, *rivals))
        slots[parameter] = tuple(sorted(choices, key=lambda c: (c != BASELINE, c)))
        placed |= set(rivals)
    switches = tuple(_needs_first([n for n in free if n not in placed], known))
    possible = {*switches, *forced, *(t for choices in slots.values() for t in choices)}
    read = [n for n in study.free if n in TRAINER_FIELDS or n.partition(".")[0] in possible]
    distributions: dict[str, BaseDistribution] = {
        **{slot: CategoricalDistribution(choices) for slot, choices in slots.items()},
        **{name: CategoricalDistribution((False, True)) for name in switches},
        **{name: distribution(study.free[name]) for name in read},
    }
    if not distributions:
        raise ValueError(
            f"A study must leave something free, but {study.path} fixes everything. Free a technique in "
            f"[techniques] or give a range in [space]."
        )
    rivals = {a: frozenset(b for b in known if a != b and excludes(a, b, known)) for a in known}
    return NativeSpace(study, known, distributions, slots, switches, forced, rivals)


def _needs_first(names: list[str], known: Mapping[str, type[Technique]]) -> list[str]:
    out: list[str] = []

    def visit(name: str) -> None:
        if name not in out:
            for need in known[name].requires:
                if need in names:
                    visit(need)
            out.append(name)

    for name in sorted(names):
        visit(name)
    return out
