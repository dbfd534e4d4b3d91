"""taken_away(base), added(base, names) -> changes: a configuration less or more one technique; what may be
added; the pairs of techniques whose interaction is worth its runs.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from claims.arms import Arm, gone_with, with_needs, with_technique, without
from search.common.options import names_in
from search.report.effects import LARGEST, LEARNED, Findings, find_effects
from search.session.session import Session
from techniques import catalog

LIKELY = 0.9  # probability of helping, by the study, from which a technique is added where nobody says
MOST_ADDED = 3  # of those
ALL = "all"
NONE = "none"
PAIR = " × "  # between the names that effects.py gives a pair


@dataclass(frozen=True)
class Change:
    """One technique of a configuration taken away, or one that it has not added."""

    technique: str
    kind: Literal["taken away", "added"]
    arm: Arm
    also: tuple[str, ...] = ()  # that went because they need it, or came because it needs them

    @property
    def name(self) -> str:
        """`gptq with awq_lite`: all whose effect it is."""
        return f"{self.technique} with {' and '.join(self.also)}" if self.also else self.technique


@dataclass(frozen=True)
class Pair:
    """Two techniques, both taken away."""

    one: Change
    other: Change
    arm: Arm

    @property
    def name(self) -> str:
        return PAIR.join(sorted((self.one.technique, self.other.technique)))


def taken_away(base: Arm) -> list[Change]:
    """One for each technique that is on. ValueError where the rest of the configuration cannot be without."""
    found = list[Change]()
    for name in sorted(base.resolved().techniques):
        arm = without(base, name)
        arm.resolved()
        found.append(Change(name, "taken away", arm, tuple(gone_with(base, name)[1:])))
    return found


def added(base: Arm, names: Iterable[str]) -> list[Change]:
    """One for each name. ValueError for a technique that is on, or that does not fit beside the others."""
    known = catalog.metadata()
    on = base.resolved().techniques
    found = list[Change]()
    for name in names:
        catalog.lookup(known, name)
        if name in on:
            raise ValueError(f"Only a technique that is off can be added, but {name} is on in {base.label}.")
        needed = with_needs(base, name)
        also = [n for n in needed.layer if n in known and needed.layer[n] and n not in on]
        unread = {field for n in (name, *also) for field in known[n].overrides}  # nothing reads them then
        whole = replace(needed, layer={k: v for k, v in needed.layer.items() if k not in unread})
        arm = with_technique(whole, name)
        with_it = arm.label.removeprefix(name)  # ` with last_n=1`
        label = f"with {name}{with_it.replace(' with ', ' at ', 1)}"
        found.append(Change(name, "added", replace(arm, label=label), tuple(also)))
    return found


def that_fit(base: Arm, names: Iterable[str] | None = None) -> list[str]:
    """Of the names (all techniques) those that are off and can be added."""
    on = base.resolved().techniques
    fitting = list[str]()
    for name in sorted(catalog.metadata()) if names is None else names:
        if name not in on:
            with suppress(ValueError):
                added(base, [name])
                fitting.append(name)
    return fitting


def findings_of(session: Session) -> Findings | None:
    """What a study's trials say of its techniques; None of too few."""
    trials = sorted(session.optuna_study.get_trials(deepcopy=False), key=lambda t: t.number)
    done = [t for t in trials if t.state in LEARNED][-LARGEST:]
    try:
        return find_effects(session.whole(done))
    except ValueError:
        return None


def wanted(base: Arm, text: str, found: Findings | None, *, most: int = MOST_ADDED) -> list[str]:
    """What `--add` and `--candidates` name: `all` that fits, `none`, so many of those that the study thinks
    well of, a list of names; nothing: MOST_ADDED of the study's. ValueError for a name that there is not."""
    if text == ALL:
        return that_fit(base)
    if text == NONE:
        return []
    if text and not text.isdecimal():
        return list(names_in(text))
    best = sorted((e for e in found.techniques if e.better >= LIKELY), key=lambda e: e.mean) if found else []
    fitting = that_fit(base, [e.name for e in best if e.name in catalog.metadata()])
    return fitting[: int(text) if text else most]


def suggested_pairs(found: Findings | None) -> list[frozenset[str]]:
    """Pairs of techniques that do more or less than the sum of both, by the study; the surest first."""
    return [frozenset(e.name.split(PAIR)) for e in found.pairs] if found else []


def possible_pairs(changes: Sequence[Change]) -> list[tuple[Change, Change]]:
    """Of techniques that can go each without the other."""
    gone = [c for c in changes if c.kind == "taken away"]
    both = itertools.combinations(gone, 2)
    return [(a, b) for a, b in both if a.technique not in b.also and b.technique not in a.also]


def pairs_that_matter(
    base: Arm,
    changes: Sequence[Change],
    clear: Mapping[str, float],
    suggested: Sequence[frozenset[str]],
    most: int,
) -> list[Pair]:
    """`most` of the possible pairs: those that the study suggests, then those whose single effects are both
    `clear` (technique -> effect), the largest product first: interactions are seldom large between small
    effects."""

    def rank(pair: tuple[Change, Change]) -> tuple[int, float]:
        names = [c.technique for c in pair]
        told = frozenset(names)
        among = suggested.index(told) if told in suggested else len(suggested)
        return among, -abs(clear.get(names[0], 0.0) * clear.get(names[1], 0.0))

    unknown = (len(suggested), 0.0)
    chosen = sorted((pair for pair in possible_pairs(changes) if rank(pair) < unknown), key=rank)[:most]
    return [Pair(a, b, without(base, a.technique, b.technique)) for a, b in chosen]
