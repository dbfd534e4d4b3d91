"""Rows: configurations as arrays, and the rules of which parameter is active when.

A row holds one number for each parameter of the union space: a categorical the index of its choice, a number
its place in [-1, 1]. A rule says: `p` is active where every one of these categoricals is active with one of
these choices (or is itself inactive). A study's own space declares them (search/space/space.py). For somebody
else's, `learn_rules` finds the fewest conditions that examples with `p` share and none without `p` meets.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution

from search.common.numeric import Distributions, place, value_at
from search.space.space import INACTIVE_CODE, Conditions

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Codes = NDArray[np.int64]
Params = Mapping[str, Any]


class Rows:
    """The union space and its rules."""

    def __init__(self, distributions: Distributions, rules: Conditions):
        self.distributions = dict(distributions)
        self.names = list(distributions)
        self.at = {name: k for k, name in enumerate(self.names)}
        each = distributions.values()
        sizes = [len(d.choices) if isinstance(d, CategoricalDistribution) else 0 for d in each]
        self.sizes: Codes = np.array(sizes, dtype=np.int64)
        self.rules = rules
        self._exact: dict[tuple[str, float], Any] = {}
        self._kinds = np.flatnonzero(self.sizes)
        self._layers = self._compiled()

    def _compiled(self) -> list[tuple[Codes, Codes, Mask]]:
        """The rules as layers of (parameters, the categorical of each, allowed choices), upstream first."""
        depth = dict.fromkeys(self.names, 0)
        layers: dict[tuple[int, int], list[tuple[int, int, Mask]]] = {}
        for name, conditions in self.rules.items():  # ordered: conditions first
            depth[name] = 1 + max((depth[q] for q in conditions), default=0)
            for j, (q, allowed) in enumerate(conditions.items()):
                one = (self.at[name], int(np.searchsorted(self._kinds, self.at[q])), self._table(q, allowed))
                layers.setdefault((depth[name], j), []).append(one)
        widest = 1 + int(self.sizes.max(initial=0))
        return [
            (
                np.array([k for k, _, _ in layer]),
                np.array([q for _, q, _ in layer]),
                np.array([np.pad(table, (0, widest - len(table))) for _, _, table in layer]),
            )
            for _, layer in sorted(layers.items())
        ]

    def _table(self, name: str, allowed: frozenset[int]) -> Mask:
        """allowed?[index of the choice + 1]; the first entry is for an inactive parameter."""
        return np.array([k in allowed for k in range(INACTIVE_CODE, int(self.sizes[self.at[name]]))])

    def encode(self, configurations: Iterable[Params]) -> Array:
        """Rows [n, parameters]; what a configuration lacks is 0: off, or the middle of the range."""
        found: list[list[float]] = []
        for c in configurations:
            row = [place(d, c[name]) if name in c else 0.0 for name, d in self.distributions.items()]
            self._exact |= {(n, at): c[n] for n, at in zip(self.names, row, strict=True) if n in c}
            found.append(row)
        return np.array(found, dtype=np.float64).reshape(len(found), len(self.names))

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
        choices = rows[:, self._kinds].astype(np.int64) + 1
        for k, q, table in self._layers:
            codes = choices[:, q] * found[:, self._kinds[q]]
            found[:, k] &= table[np.arange(len(k)), codes]
        return found

    def uniform(self, rng: np.random.Generator, count: int) -> Array:
        """Uniform draws of every parameter. [count, parameters]"""
        rows = rng.uniform(-1.0, 1.0, (count, len(self.names)))
        kinds = np.flatnonzero(self.sizes)
        rows[:, kinds] = np.floor(rng.random((count, len(kinds))) * self.sizes[kinds])
        return rows

    def groups(self) -> list[list[str]]:
        """Parameters with equal rules, those without any first."""
        found: dict[Any, list[str]] = {(): []}
        for name in self.names:
            key = tuple(sorted((q, tuple(sorted(a))) for q, a in self.rules.get(name, {}).items()))
            found.setdefault(key, []).append(name)
        return [names for names in found.values() if names]


def rules_within(distributions: Distributions, conditions: Conditions) -> Conditions:
    """The declared conditions on and of the parameters that vary."""
    found = {name: each for name, each in conditions.items() if name in distributions}
    found = {n: {q: each[q] for q in each if q in distributions} for n, each in found.items()}
    return {name: each for name, each in found.items() if each}


def learn_rules(distributions: Distributions, examples: Sequence[Params]) -> Conditions:
    """Rules that every example meets, ordered so that no condition depends on a later parameter."""
    names = list(distributions)
    kinds = [n for n, d in distributions.items() if isinstance(d, CategoricalDistribution)]
    present: Mask = np.array([[n in e for n in names] for e in examples]).reshape(len(examples), len(names))
    codes: dict[str, Codes] = {}
    for name in kinds:
        dist = distributions[name]
        codes[name] = np.array([int(place(dist, e[name])) if name in e else INACTIVE_CODE for e in examples])
    counts = present.sum(axis=0)
    order = sorted(range(len(names)), key=lambda k: (-int(counts[k]), k))
    rules: Conditions = {}
    for rank, k in enumerate(order):
        has = present[:, k]
        if has.all() or not has.any():
            continue
        earlier = [names[q] for q in order[:rank] if names[q] in codes]
        rules[names[k]] = _conditions(names[k], has, {q: codes[q] for q in earlier})
    return rules


def _conditions(name: str, has: Mask, codes: Mapping[str, Codes]) -> dict[str, frozenset[int]]:
    """The fewest conditions (greedily) that hold wherever `name` is and fail wherever it is not."""
    left, found = ~has, dict[str, frozenset[int]]()
    options: dict[str, tuple[frozenset[int], Mask]] = {}
    for q, code in codes.items():
        allowed = np.unique(code[has])
        fails = ~np.isin(code, allowed)
        if fails.any():
            options[q] = (frozenset(int(a) for a in allowed), fails)
    owner = name.partition(".")[0]
    while left.any() and options:
        best = max(options, key=lambda q: (int((options[q][1] & left).sum()), q == owner))
        allowed, fails = options.pop(best)
        if not (fails & left).any():
            break
        found[best] = allowed
        left = left & ~fails
    return found
