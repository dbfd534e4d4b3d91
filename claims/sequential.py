"""judge(differences) -> Verdict: a paired t test that may be looked at after every pair, its error rate kept.

Differences are new minus base on one seed each, in bits per byte or nats per token: negative is better. After
pair n (FIRST to LAST) a one-sided p of Student's t counts once it is at most c·FIRST/n. Under the null,
whatever the scale, some look has that with probability LEVELS[c] (8 million simulated one-sided sequences of
LAST normal pairs). "Helps" and "hurts" ask for CAUTION times that c, so that an arm whose noise alone is as
skewed as an exponential keeps the level, too (`python -m benchmarks.claims` repeats it). The plan is the same
however many seeds were asked for, so that asking again for more of them spends nothing twice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import nctdtrinc, ndtri, stdtr, stdtrit  # pyright: ignore[reportMissingTypeStubs]

FIRST = 4  # pairs at the first look
LAST = 64  # and at the last one
LEVEL = 0.01  # of a wrong "helps" or "hurts" where there is no difference, both together
CAUTION = 0.7  # of the c that normal noise would allow: where it is skewed in one arm 1.25 % crossed that
SAME_LEVEL = 0.05  # of "no difference larger than d" where it is d
WITHIN = 0.01  # bits per byte: d where nobody says
SURE = 0.9  # with which a number of seeds tells what is said of it
POWER = 0.8  # with which the seeds that are told to be missing would tell
# c, 2 % low, -> probability that a null sequence has p <= c·FIRST/n at some look, one-sided
LEVELS: dict[float, float] = {
    1.69e-05: 0.0001,
    3.34e-05: 0.0002,
    5.31e-05: 0.0003,
    9.29e-05: 0.0005,
    0.000201: 0.001,
    0.000431: 0.002,
    0.000675: 0.003,
    0.00119: 0.005,
    0.00261: 0.01,
    0.00583: 0.02,
    0.00941: 0.03,
    0.0174: 0.05,
    0.0413: 0.1,
    0.0697: 0.15,
    0.102: 0.2,
    0.176: 0.3,
    0.264: 0.4,
    0.362: 0.5,
}
SUM_OF_SHARES = sum(FIRST / n for n in range(FIRST, LAST + 1))  # probability / c is never above it

Array = np.ndarray[Any, np.dtype[np.float64]]
Kind = Literal["helps", "hurts", "same", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """What the pairs so far tell; `low` and `high` hold at every look at once with 1 - level."""

    kind: Kind
    pairs: int  # all that were given
    mean: float  # of the differences
    sd: float  # of the differences; nan for one pair
    low: float
    high: float
    p: float  # two-sided, valid whenever one stops
    more: int = 0  # pairs beyond these that would probably tell; 0 once decided


def crossing(c: float) -> float:
    """Probability under the null that some look has a one-sided p of at most c·FIRST/n."""
    known = sorted(LEVELS)
    if c < known[0]:
        return min(c * SUM_OF_SHARES, LEVELS[known[0]])
    if c >= known[-1]:
        return 1.0
    return math.exp(np.interp(math.log(c), np.log(known), np.log([LEVELS[k] for k in known])))


def critical(probability: float) -> float:
    """The c of that probability."""
    known = sorted(LEVELS)
    chances = [LEVELS[k] for k in known]
    if probability < chances[0]:
        return probability / SUM_OF_SHARES
    return math.exp(np.interp(math.log(probability), np.log(chances), np.log(known)))


def threshold(level: float) -> float:
    """The c of "helps" or "hurts", both together of this level."""
    return CAUTION * critical(level / 2)


def valid_p(c: float) -> float:
    """One-sided, of the least c at which a sequence would have decided."""
    return crossing(min(1.0, c / CAUTION))


def quantile_at(n: int | Array, c: float) -> Array:
    """What |t| must exceed at pair n."""
    return -stdtrit(np.asarray(n) - 1.0, np.minimum(0.5, c * FIRST / n))


def moments(d: Array) -> tuple[Array, Array, Array]:
    """[..., n] -> 1 to n, and of the first so many: mean, standard error (nan for one)."""
    first: Array = d[..., :1]
    n: Array = np.arange(1.0, 1.0 + d.shape[-1])
    centred: Array = np.cumsum(d - first, axis=-1) / n  # about the first: equal ones have no spread
    spread: Array = np.maximum(np.cumsum((d - first) ** 2, axis=-1) / n - centred**2, 0.0)
    with np.errstate(invalid="ignore"):
        return n, first + centred, np.sqrt(spread / (n - 1))


def scaled_p(differences: Sequence[float] | Array, shift: float = 0.0) -> Array:
    """[..., n] -> [..., looks]: n/FIRST times the one-sided p of "the mean is below `shift`"."""
    d: Array = np.asarray(differences, dtype=float)
    if d.shape[-1] < FIRST:
        return np.ones((*d.shape[:-1], 0))
    n, mean, error = moments(d)
    mean = mean - shift
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(mean == 0.0, 0.0, mean / error)
    looks = slice(FIRST - 1, LAST)
    return (stdtr(n - 1, t) * n / FIRST)[..., looks]


def decisions(differences: Array, *, within: float = WITHIN, level: float = LEVEL) -> tuple[Array, Array]:
    """[studies, n] -> the look (from 0, -1: none) and the sign (-1 helps, 1 hurts, 0 same) of the first
    decision of each."""
    c = threshold(level)
    same_c = critical(SAME_LEVEL)
    below = scaled_p(differences)
    above = scaled_p(-differences)
    differs = np.minimum(below, above) <= c
    same = np.zeros_like(differs)
    if within > 0.0:
        same = np.maximum(scaled_p(differences, within), scaled_p(-differences, within)) <= same_c
    decided = differs | same
    at = np.where(decided.any(-1), decided.argmax(-1), -1)
    pick = (np.arange(len(at)), at)
    sign = np.where(differs[pick], np.where(below[pick] <= c, -1.0, 1.0), 0.0)
    return at, sign


def best_p(differences: Sequence[float], shift: float = 0.0) -> float:
    """One-sided p of "the mean is below `shift`", valid whenever one stops; 1 before the first look."""
    found = scaled_p(differences, shift)
    return valid_p(float(found.min())) if found.size else 1.0


def bounds(differences: Array, level: float) -> tuple[float, float]:
    """What the intervals of all looks so far have in common: they hold together, so a "helps" or "hurts" that
    one look found stays outside 0. A look that has nothing in common with those before it is passed over."""
    n, mean, error = (part[FIRST - 1 : LAST] for part in moments(differences))
    half = quantile_at(n, threshold(level)) * error
    low = np.maximum.accumulate(mean - half)
    high = np.minimum.accumulate(mean + half)
    last = np.flatnonzero(low <= high)[-1]
    return float(low[last]), float(high[last])


def judge(differences: Sequence[float], *, within: float = WITHIN, level: float = LEVEL) -> Verdict:
    """The first decision among the looks, and figures of all pairs. `within=0` never says "same"."""
    d = np.asarray(differences, dtype=float)
    count = len(d)
    mean = float(d.mean()) if count else math.nan
    sd = float(d.std(ddof=1)) if count > 1 else math.nan
    if count < FIRST:
        more = FIRST - count if count < 2 else missing(mean, sd, count, within=within, level=level)
        return Verdict("undecided", count, mean, sd, -math.inf, math.inf, 1.0, more)
    at, sign = (float(found[0]) for found in decisions(d[None], within=within, level=level))
    kind: Kind = "undecided" if at < 0 else "helps" if sign < 0 else "hurts" if sign > 0 else "same"
    low, high = bounds(d, level)
    below = scaled_p(d)
    above = scaled_p(-d)
    p = min(1.0, 2.0 * valid_p(float(min(below.min(), above.min()))))
    more = missing(mean, sd, count, within=within, level=level) if kind == "undecided" else 0
    return Verdict(kind, count, mean, sd, low, high, p, more)


def least_told(seeds: int, level: float = LEVEL) -> float:
    """The difference, in standard deviations of one seed, that so many seeds of two independent arms tell
    with probability SURE. By the last look alone: those before it add a little."""
    beyond = nctdtrinc(seeds - 1.0, 1.0 - SURE, quantile_at(seeds, threshold(level)))
    return float(beyond) * math.sqrt(2.0 / seeds)


def missing(mean: float, sd: float, count: int, *, within: float, level: float = LEVEL) -> int:
    """Pairs beyond `count` that would decide with probability POWER if mean and sd were the truth; LAST:
    more than the test has."""
    c = threshold(level)
    same_c = critical(SAME_LEVEL)
    sure = float(ndtri(POWER))
    for n in range(max(count + 1, FIRST), LAST + 1):
        scale = sd / math.sqrt(n)
        needed, same = (float(quantile_at(n, of)) for of in (c, same_c))
        if abs(mean) >= (needed + sure) * scale or within - abs(mean) >= (same + sure) * scale:
            return n - count
    return LAST
