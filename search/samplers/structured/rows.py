"""Rows: configurations as arrays, and the rules of which parameter is active when.

A row holds one number for each parameter of the union space: a categorical the index of its choice, a number
its place in [-1, 1]. A rule says: `p` is active where every one of these categoricals is active with one of
these choices (or is itself inactive), and every one of these numbers inside an interval. A study's own space
declares them (search/space/space.py). For somebody else's, `learn_rules` finds the fewest conditions that
examples with `p` share and none without `p` meets.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from search.common.conditions import INACTIVE_CODE, Conditions
from search.common.numeric import Distributions, SearchSpace, fits, frozen, joined, place, value_at

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Codes = NDArray[np.int64]
Params = Mapping[str, Any]
Settings = frozenset[tuple[str, object]]
RECENT = (
    30  # trials: a range is joined from what the newest asked for; older ones count where these are silent
)
FEW_LEVELS = 12  # of an integer, with which one example on either side of a threshold is enough
FEWEST = 3  # examples on either side of another number's


@dataclass(frozen=True)
class Interval:
    """A condition on a number: its place lies in [low, high]; `idle`: or it means nothing itself."""

    low: float
    high: float
    idle: bool


Rules = Mapping[str, Mapping[str, frozenset[int] | Interval]]  # as Conditions, and of numbers


@dataclass(frozen=True)
class Layer:
    """Conditions, one of each parameter `of`, that are judged together."""

    of: Codes
    on: Codes  # the parameter that each depends on
    allowed: (
        Mask  # [conditions, choices + 1] of categoricals, the first for an inactive one; of numbers empty
    )
    low: Array  # of numbers
    high: Array
    idle: Mask

    def holds(self, rows: Array, active: Mask) -> Mask:
        """Which conditions hold [n, conditions], given what is active upstream."""
        on = active[:, self.on]
        if self.allowed.size:
            codes = (rows[:, self.on].astype(np.int64) + 1) * on
            return self.allowed[np.arange(len(self.of)), codes]
        u = rows[:, self.on]
        return np.where(on, (self.low <= u) & (u <= self.high), self.idle)


class Rows:
    """The union space and its rules."""

    def __init__(self, distributions: Distributions, rules: Rules):
        self.distributions = dict(distributions)
        self.names = list(distributions)
        self.at = {name: k for k, name in enumerate(self.names)}
        each = distributions.values()
        sizes = [len(d.choices) if isinstance(d, CategoricalDistribution) else 0 for d in each]
        self.sizes: Codes = np.array(sizes, dtype=np.int64)
        self.rules = rules
        self._exact: dict[tuple[str, float], Any] = {}
        self._floats = [(n, k) for n, k in self.at.items() if isinstance(distributions[n], FloatDistribution)]
        self._layers = self._compiled()

    def _compiled(self) -> list[Layer]:
        """The rules as layers, upstream first."""
        depth = dict.fromkeys(self.names, 0)
        layers: dict[tuple[int, int, bool], list[tuple[int, int, frozenset[int] | Interval]]] = {}
        for name, conditions in self.rules.items():  # ordered: conditions first
            depth[name] = 1 + max((depth[q] for q in conditions), default=0)
            for j, (q, condition) in enumerate(conditions.items()):
                key = (depth[name], j, isinstance(condition, Interval))
                layers.setdefault(key, []).append((self.at[name], self.at[q], condition))
        return [self._layer(layer) for _, layer in sorted(layers.items())]

    def _layer(self, conditions: Sequence[tuple[int, int, frozenset[int] | Interval]]) -> Layer:
        """Of conditions (parameter, what it depends on, how), all on categoricals or all on numbers."""
        codes = range(INACTIVE_CODE, int(self.sizes.max(initial=0)))
        tables = [[k in c for k in codes] for _, _, c in conditions if not isinstance(c, Interval)]
        inside = [c for _, _, c in conditions if isinstance(c, Interval)]
        return Layer(
            np.array([k for k, _, _ in conditions]),
            np.array([q for _, q, _ in conditions]),
            np.array(tables, dtype=bool),
            np.array([c.low for c in inside]),
            np.array([c.high for c in inside]),
            np.array([c.idle for c in inside], dtype=bool),
        )

    def encode(self, configurations: Iterable[Params]) -> Array:
        """Rows [n, parameters]; what a configuration lacks is 0: off, or the middle of the range."""
        found: list[list[float]] = []
        for c in configurations:
            row = [place(d, c[name]) if name in c else 0.0 for name, d in self.distributions.items()]
            self._exact |= {(n, row[k]): c[n] for n, k in self._floats if n in c and self._is_inside(n, c[n])}
            found.append(row)
        return np.array(found, dtype=np.float64).reshape(len(found), len(self.names))

    def _is_inside(self, name: str, value: float) -> bool:
        """Whether a number may be proposed as it is."""
        dist = self.distributions[name]
        assert isinstance(dist, FloatDistribution)
        if not dist.low <= value <= dist.high:
            return False
        return not dist.step or abs((value - dist.low) / dist.step % 1.0 - 0.5) > 0.5 - 1e-8

    def expressible(self, params: Params) -> dict[str, Any]:
        """What of a trial's parameters this space knows."""
        each = self.distributions
        return {n: v for n, v in params.items() if n in each and fits(each[n], v)}

    def settings(self, params: Params) -> Settings:
        """The same, to be compared: lists and dicts may be choices."""
        return frozenset((n, frozen(v)) for n, v in self.expressible(params).items())

    def decode(self, row: Array) -> dict[str, Any]:
        """A value of every parameter; what `encode` saw comes back to the bit, so kept stages keep keys."""
        found: dict[str, Any] = {}
        for (name, dist), at in zip(self.distributions.items(), row.tolist(), strict=True):
            exact = self._exact.get((name, at), self)
            found[name] = value_at(dist, at) if exact is self else exact
        return found

    def keep_active(self, params: Params) -> dict[str, Any]:
        active = self.active(self.encode([params]))[0]
        return {n: params[n] for n, a in zip(self.names, active, strict=True) if a and n in params}

    def active(self, rows: Array) -> Mask:
        """Which parameters mean something. [n, parameters]"""
        found = np.ones(rows.shape, dtype=bool)
        for layer in self._layers:
            found[:, layer.of] &= layer.holds(rows, found)
        return found

    def uniform(self, rng: np.random.Generator, count: int) -> Array:
        """Uniform draws of every parameter. [count, parameters]"""
        rows = rng.uniform(-1.0, 1.0, (count, len(self.names)))
        kinds = np.flatnonzero(self.sizes)
        rows[:, kinds] = np.floor(rng.random((count, len(kinds))) * self.sizes[kinds])
        return rows

    def groups(self) -> list[list[str]]:
        """Parameters with equal rules, those without any first."""
        found: dict[Any, list[str]] = {frozenset(): []}
        for name in self.names:
            key = frozenset(self.rules.get(name, {}).items())
            found.setdefault(key, []).append(name)
        return [names for names in found.values() if names]


def space_of(trials: Sequence[FrozenTrial]) -> SearchSpace:
    """Every parameter of these trials, ordered by number, with the range that the newest asked for."""
    found: SearchSpace = {}
    recent = max((t.number for t in trials), default=0) - RECENT
    for trial in trials:
        if trial.number <= recent:
            found |= trial.distributions
            continue
        for name, dist in trial.distributions.items():
            found[name] = joined(found[name], dist) if name in found else dist
    return found


def rules_within(distributions: Distributions, conditions: Conditions) -> Conditions:
    """The declared conditions on and of the parameters that vary."""
    found = {name: each for name, each in conditions.items() if name in distributions}
    found = {n: {q: each[q] for q in each if q in distributions} for n, each in found.items()}
    return {name: each for name, each in found.items() if each}


def learn_rules(distributions: Distributions, examples: Sequence[Params], *, numbers: bool = True) -> Rules:
    """Rules that every example meets, ordered so that no condition depends on a later parameter; `numbers`:
    conditions on them too."""
    names = list(distributions)
    present: Mask = np.array([[n in e for n in names] for e in examples]).reshape(len(examples), len(names))
    counts = present.sum(axis=0)
    order = sorted(range(len(names)), key=lambda k: (-int(counts[k]), k))
    rules: dict[str, dict[str, frozenset[int] | Interval]] = {}
    earlier: list[_Candidate] = []
    for last in (False, True):  # what the more frequent ones do not explain waits for all others
        waiting: list[int] = []
        for k in order:
            has = present[:, k]
            name = names[k]
            dist = distributions[names[k]]
            if not has.any():
                break
            if not has.all():
                conditions, explained = _conditions(name, has, earlier)
                if not (explained or last):
                    waiting.append(k)
                    continue
                rules[name] = conditions
            if not numbers and not isinstance(dist, CategoricalDistribution):
                continue
            places = [place(dist, e[name]) if name in e else math.nan for e in examples]
            earlier.append(_Candidate(name, dist, np.array(places)))
        order = waiting
    return rules


@dataclass(frozen=True)
class _Candidate:
    """A parameter that others may depend on, and its place in every example, NaN where it is not."""

    name: str
    dist: BaseDistribution
    places: Array

    @functools.cached_property
    def codes(self) -> Codes:
        """Of a categorical: its choices counted from 1, and 0 where it is not. [examples]"""
        return np.where(np.isnan(self.places), 0, self.places - INACTIVE_CODE).astype(np.int64)

    def condition(self, has: Mask) -> tuple[frozenset[int] | Interval, Mask] | None:
        """(What holds in all these examples, where it fails in the others); None: it tells nothing."""
        if isinstance(self.dist, CategoricalDistribution):
            allowed = np.zeros(len(self.dist.choices) + 1, dtype=bool)
            allowed[self.codes[has]] = True
            return frozenset((np.flatnonzero(allowed) + INACTIVE_CODE).tolist()), ~allowed[self.codes]
        there = ~np.isnan(self.places)
        is_int = isinstance(self.dist, IntDistribution)
        inside = self.places[has & there]
        idle = bool((has & ~there).any())
        few = 1 if self.levels <= FEW_LEVELS else FEWEST
        if len(inside) < few:
            return None
        low = float(inside.min())
        high = float(inside.max())
        below = there & (self.places < low)
        above = there & (self.places > high)
        if not is_int:  # one end: two of them are chance, as a rule
            below, above = (below, above & False) if below.sum() >= above.sum() else (below & False, above)
        if (below | above).sum() < few:
            return None
        low = self._between(float(self.places[below].max()), low) if below.any() else -math.inf
        high = self._between(high, float(self.places[above].min())) if above.any() else math.inf
        return Interval(low, high, idle), below | above | (~there & (not idle))

    def _between(self, low: float, high: float) -> float:
        """A place that parts two; of integers half-way between two of them."""
        if not isinstance(self.dist, IntDistribution):
            return 0.5 * (low + high)
        return place(self.dist, (value_at(self.dist, low) + value_at(self.dist, high)) // 2 + 0.5)

    @property
    def levels(self) -> float:
        """How many values a number has."""
        if not isinstance(self.dist, IntDistribution):
            return math.inf
        return (self.dist.high - self.dist.low) // self.dist.step + 1

    def rank(self, owner: str) -> tuple[bool, bool, float]:
        """Of two that explain as much: a categorical, the owner of the name, what has fewer values."""
        kind = isinstance(self.dist, CategoricalDistribution)
        return kind, self.name == owner, 0.0 if kind else -self.levels


def _conditions(
    name: str, has: Mask, earlier: Sequence[_Candidate]
) -> tuple[dict[str, frozenset[int] | Interval], bool]:
    """(The fewest conditions, greedily, that hold wherever `name` is and fail where it is not; whether they
    fail wherever it is not.)"""
    left = ~has
    found = dict[str, frozenset[int] | Interval]()
    options: dict[str, tuple[frozenset[int] | Interval, Mask]] = {}
    rank: dict[str, tuple[bool, bool, float]] = {}
    for one in earlier:
        told = one.condition(has)
        if told and told[1].any():
            options[one.name] = told
            rank[one.name] = one.rank(name.partition(".")[0])
    while left.any() and options:
        best = max(options, key=lambda q: (int((options[q][1] & left).sum()), rank[q]))
        condition, fails = options.pop(best)
        if not (fails & left).any():
            break
        found[best] = condition
        left = left & ~fails
    return found, not left.any()
