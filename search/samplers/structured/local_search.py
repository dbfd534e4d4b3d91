"""climb(...): local search over rows, many starts at once, one or several coordinates a step.

A step scores, for every start, each flip of a gate, each other choice of a categorical and three places of
each number (anywhere, near, very near), then the best few of them together, and takes the best. A
start ends where nothing improves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.samplers.structured.rows import Array, Mask, Rows

Score = Callable[[Array], Array]  # rows [n, parameters] -> what is to be small [n]
AT_ONCE = 200  # rows scored: the memory of larger arrays goes back to the system and is faulted in again
TOGETHER = (2, 4, 8)  # moves at once
NEAR, VERY_NEAR = 0.3, 0.06  # sd of local moves of a number, on [-1, 1]


@dataclass(frozen=True)
class Moves:
    """What may be moved: masks over the parameters."""

    rows: Rows
    free: Mask

    def singles(self, row: Array, rng: np.random.Generator) -> tuple[Array, NDArray[np.int64]]:
        """(rows that differ from `row` in one coordinate, that coordinate)."""
        sizes = self.rows.sizes
        kinds = np.flatnonzero(self.free & (sizes > 1))
        where = np.repeat(kinds, sizes[kinds] - 1)
        shift = np.array([k for n in sizes[kinds].tolist() for k in range(1, n)], dtype=np.float64)
        turned = (row[where] + shift) % sizes[where]
        active = self.rows.active(row[None, :])[0]
        numbers = np.flatnonzero(self.free & (sizes == 0) & active)
        local = row[numbers] + rng.standard_normal((2, len(numbers))) * np.array([[NEAR], [VERY_NEAR]])
        moved = np.concatenate([turned, rng.uniform(-1, 1, len(numbers)), local.clip(-1, 1).ravel()])
        where = np.concatenate([where, numbers, numbers, numbers])
        found = np.repeat(row[None, :], len(where), axis=0)
        found[np.arange(len(where)), where] = moved
        return found, where


def climb(starts: Array, score: Score, moves: Moves, *, rng: np.random.Generator, steps: int) -> Array:
    """The rows [starts, parameters] that the starts ended in."""
    rows, values = starts.copy(), _scored(score, starts)
    alive = set(range(len(rows)))
    for _ in range(steps):
        if not alive:
            break
        live = sorted(alive)
        batch = [moves.singles(rows[k], rng) for k in live]
        counts = np.cumsum([len(b[0]) for b in batch])[:-1]
        scored = np.split(_scored(score, np.concatenate([b[0] for b in batch])), counts)
        joint = [_together(rows[k], *b, s, values[k]) for k, b, s in zip(live, batch, scored, strict=True)]
        counts = np.cumsum([len(j) for j in joint])[:-1]
        both = np.split(_scored(score, np.concatenate(joint)), counts)
        for k, b, s, j, t in zip(live, batch, scored, joint, both, strict=True):
            options, costs = np.concatenate([j, b[0]]), np.concatenate([t, s])
            best = int(np.argmin(costs))
            if costs[best] < values[k] - min(1e-12, 1e-6 * float(np.ptp(costs))):
                rows[k], values[k] = options[best], costs[best]
            else:
                alive.discard(k)
    return rows


def _scored(score: Score, rows: Array) -> Array:
    return np.concatenate([score(rows[k : k + AT_ONCE]) for k in range(0, max(len(rows), 1), AT_ONCE)])


def _together(row: Array, options: Array, where: NDArray[np.int64], scores: Array, value: float) -> Array:
    """The best improving moves of different coordinates, the first two, four and eight at once."""
    order = [int(i) for i in np.argsort(scores) if scores[i] < value]
    best: dict[int, int] = {}
    for i in order:
        best.setdefault(int(where[i]), i)
    chosen = list(best.items())[: TOGETHER[-1]]
    found = np.repeat(row[None, :], len(TOGETHER), axis=0)
    for k, count in enumerate(TOGETHER):
        for coordinate, i in chosen[:count]:
            found[k, coordinate] = options[i, coordinate]
    return found
