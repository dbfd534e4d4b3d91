"""build_space(study, known) -> the search space of a study, of our trainer or somebody else's."""

from __future__ import annotations

from collections.abc import Mapping

from optuna.distributions import BaseDistribution, CategoricalDistribution

from search.space.distributions import distribution
from search.space.foreign import foreign_space
from search.space.native import NativeSpace
from search.space.space import Space
from search.study.domains import BASELINE, FREE, ON, excludes
from search.study.model import Study
from techniques import catalog
from techniques.base import Technique
from techniques.config import TRAINER_FIELDS


def build_space(study: Study, known: Mapping[str, type[Technique]]) -> Space:
    """The search space of a checked study. ValueError when nothing at all is free."""
    if study.foreign is not None:
        return foreign_space(study.foreign, study.path)
    return native_space(study, known)


def native_space(study: Study, known: Mapping[str, type[Technique]]) -> NativeSpace:
    """The space of a study of our trainer."""
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
    distributions: dict[str, BaseDistribution] = {
        **{slot: CategoricalDistribution(choices) for slot, choices in slots.items()},
        **{name: CategoricalDistribution((False, True)) for name in switches},
        **{
            name: distribution(domain)
            for name, domain in study.free.items()
            if name in TRAINER_FIELDS or name.partition(".")[0] in possible
        },
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
