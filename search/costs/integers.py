"""Bits of the integers that a matrix is stored as: entropies of rounded Gaussian rows, arithmetic alone.

A row's σ in steps is what counts: qmax over how many σ its largest integer stands for. That is the rule's
number (sdclip), or the row's largest weight; under a floor of the step it falls with σ itself. Pruning takes
the least |w| of all matrices; a budget of bits is met on the average.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

FINE = 4.0  # steps of a σ from which sums are integrals
HALVINGS = 20  # of the range that the threshold of pruning lies in
NORMAL = NormalDist()


@dataclass(frozen=True)
class Rounded:
    """One matrix: how its rows are rounded."""

    bits: float  # qmax = 2^(bits − 1) − 1
    columns: int
    sigma: float  # of its weights
    largest: float = 0.0  # σs that the largest integer stands for; 0: the row's largest weight
    floor: bool = False  # whether a step is at least 1 / qmax
    pruned: float = 0.0  # share of the integers that are no zeros, made so

    @property
    def step(self) -> float:
        """In weights."""
        clip = (self.largest or largest_of(self.columns)) * self.sigma
        return (max(1.0, clip) if self.floor else clip) / max(0.5, 2.0 ** (self.bits - 1.0) - 1.0)

    def ones(self) -> float:
        """Share of ±1 among the integers that are no zeros."""
        zero, one = (within(edge * self.step / self.sigma) for edge in (0.5, 1.5))
        return min(0.99, (one - zero) / max(1e-9, 1.0 - zero))

    def entropy(self, wider: float = 1.0) -> float:
        """Bits of an integer; if σ were `wider` by this factor."""
        made = replace(self, sigma=self.sigma * wider) if wider != 1.0 else self
        steps = made.sigma / made.step
        bits = gaussian_bits(round(steps, 4), round(made.pruned, 4))
        return max(0.02, min(float(self.bits), bits))

    def sensitivity(self) -> float:
        """d ln entropy / d ln σ: 0 unless a floor holds the step."""
        if not self.floor or self.largest:
            return 0.0
        return math.log(self.entropy(1.1) / self.entropy(1.0 / 1.1)) / (2.0 * math.log(1.1))


@functools.cache
def largest_of(columns: int) -> float:
    """E max |w| / σ of so many normal weights."""
    root = math.sqrt(2.0 * math.log(2.0 * max(4, columns)))
    return root - (math.log(math.log(2.0 * max(4, columns))) + math.log(4.0 * math.pi) - 1.154) / (2.0 * root)


@functools.lru_cache(1 << 15)
def gaussian_bits(sigma: float, pruned: float = 0.0) -> float:
    """Entropy of round(x), x normal with this σ, after a share of what is not zero, the least, became so."""
    sigma = max(0.05, sigma)
    if sigma > FINE:
        zero = pruned + (1.0 - pruned) * within(0.5 / sigma) if pruned else 0.0
        edge = NORMAL.inv_cdf(0.5 + 0.5 * zero)
        square = 1.0 + edge * NORMAL.pdf(edge) / (0.5 * (1.0 - zero))  # E[u²], |u| beyond the edge
        rest = math.log2(sigma * math.sqrt(2.0 * math.pi) * (1.0 - zero)) + 0.5 * square / math.log(2.0)
        return mixed(zero) + (1.0 - zero) * rest
    edges = [0.0, *(NORMAL.cdf((n + 0.5) / sigma) - 0.5 for n in range(20))]
    sides = [b - a for a, b in itertools.pairwise(edges)]  # of one sign; the first is half of the zeros
    left = pruned * (1.0 - 2.0 * sides[0])
    for n in range(1, len(sides)):
        fallen = min(left, 2.0 * sides[n])
        left -= fallen
        sides[n] -= fallen / 2.0
        sides[0] += fallen / 2.0
    shares = [2.0 * sides[0], *sides[1:], *sides[1:]]
    return -sum(share * math.log2(share) for share in shares if share > 1e-12)


def within(edge: float) -> float:
    """P(|u| < edge), u normal."""
    return math.erf(edge / math.sqrt(2.0))


def mixed(share: float) -> float:
    """Entropy of a choice of two."""
    return -sum(p * math.log2(p) for p in (share, 1.0 - share) if 0.0 < p < 1.0)


def pruned(matrices: Sequence[Rounded], elements: Sequence[int], fraction: float) -> list[Rounded]:
    """The same after the least of all weights that are not zero, so many of them, became so."""
    sigmas = [m.sigma for m in matrices]
    zeros = [within(0.5 * m.step / m.sigma) for m in matrices]
    wanted = fraction * sum(n * (1.0 - z) for n, z in zip(elements, zeros, strict=True))
    low, high = 0.0, 8.0 * max(sigmas, default=0.0)

    def fallen(edge: float) -> list[float]:
        return [max(0.0, within(edge / s) - z) for s, z in zip(sigmas, zeros, strict=True)]

    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        enough = sum(n * f for n, f in zip(elements, fallen(middle), strict=True)) > wanted
        low, high = (low, middle) if enough else (middle, high)
    shares = [min(0.99, f / max(1e-9, 1.0 - z)) for f, z in zip(fallen(low), zeros, strict=True)]
    return [replace(m, pruned=share) for m, share in zip(matrices, shares, strict=True)]


def budgeted(bits: float, columns: int, share: float, low: float, high: float) -> float:
    """Bits on the average of matrices whose bytes, under their rows' maxima, come to a share of those at
    `bits`, between `low` and `high`."""
    plain = Rounded(bits, columns, 1.0).entropy()
    return min(high, max(low, bits - (1.0 - share) * plain))
