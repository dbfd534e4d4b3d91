"""CostModel: measured = Σ_parts amount·exp(Σ its factors' logarithms)·noise; the factors are learnt.

A part of a bill is an exact amount (bits of a kind of tensor, FLOPs of a kind of work) and the names of the
factors that correct it. A factor has a normal prior on its logarithm, of mean 0 unless a `Learnt` knows more:
no trial means no correction, few mean a small one. The posterior's mode comes from a few Gauss-Newton steps
under a Student likelihood (4 degrees of freedom): one stalled trial does not move the rest. The doubt of an
estimate is the posterior's, plus the prior's for factors never seen; its spread is what remains between the
fit and the measurements, never less than what two seeds of one configuration differ by.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LATEST = 300  # finished trials that a model remembers: machines change their speed
RENEWED = 0.05  # share of new rows from which the fit is made again
CARRIED = 100  # trials of other studies that it begins with; each of its own displaces one
STUDENT = 4.0  # degrees of freedom of the likelihood
CLIPPED_SQUARES = 0.767  # E[w z²] of a standard normal z under the weights below: makes the spread unbiased
PRIOR_TRIALS = 3.0  # trials that the prior's spread counts as
MANY = 1e7  # degrees of freedom
STEPS = 4  # of Gauss-Newton, from the last fit; the first is not weighted


@dataclass(frozen=True)
class Part:
    """A share of a bill: its amount and the factors that correct it (name -> exponent)."""

    amount: float
    factors: Mapping[str, float]


@dataclass(frozen=True)
class Bill:
    """What a run should cost, before any correction: the sum of its parts' amounts."""

    parts: tuple[Part, ...]
    common: Mapping[str, float]  # factors of every part

    @property
    def total(self) -> float:
        return sum(part.amount for part in self.parts)


@dataclass(frozen=True)
class Learnt:
    """What recorded trials taught beforehand: name -> (mean, sd, centre) of a factor's logarithm, and the
    spread that remained, worth so many `trials`. The centre is where a `log ` factor's exponent counts 0."""

    factors: Mapping[str, tuple[float, float, float]]
    spread: float
    trials: float


def read_prior(models: Mapping[str, Any]) -> dict[str, Learnt]:
    """As the file has it: kind -> spread, trials and factors, name -> [mean, sd] or [mean, sd, centre].
    ValueError for what is no number, and for what must be positive."""
    for kind, facts in models.items():
        sds = {f"sd of {name}": numbers[1] for name, numbers in facts["factors"].items()}
        others = {n: x for n, (mean, _, *centre) in facts["factors"].items() for x in (mean, *centre)}
        positive = {"spread": facts["spread"], "trials": facts["trials"], **sds}
        wrong = [n for n, x in others.items() if not math.isfinite(x)]
        wrong += [n for n, x in positive.items() if not 0.0 < x < math.inf]
        if wrong:
            raise ValueError(
                f"A prior of costs has finite numbers, and sds, spread and trials above 0, but {kind} has "
                f"others: {', '.join(wrong[:3])}. Write it again: python -m benchmarks.costs.prior --write."
            )
    return {
        kind: Learnt(
            {name: (mean, sd, sum(centre)) for name, (mean, sd, *centre) in facts["factors"].items()},
            spread=facts["spread"],
            trials=facts["trials"],
        )
        for kind, facts in models.items()
    }


@functools.cache
def student_quantile(dof: float, probability: float) -> float:
    """Of Student's t; from MANY degrees on the normal's, without SciPy: its import takes half a second."""
    if dof >= MANY:
        return NormalDist().inv_cdf(probability)
    from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    return float(cast("Any", stdtrit)(dof, probability))


def student_probability(dof: float, value: float) -> float:
    """That Student's t lies below the value."""
    if dof >= MANY:
        return NormalDist().cdf(value)
    from scipy.special import stdtr  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    return float(cast("Any", stdtr)(dof, value))


@dataclass(frozen=True)
class Estimate:
    """`sure` + exp(log) is the prediction; `spread` and `doubt` are standard deviations of the logarithm."""

    log: float
    spread: float  # between equal runs, and what no factor explains
    doubt: float  # of the factors
    dof: float = math.inf  # degrees of freedom of the spread
    sure: float = 0.0  # what is known beforehand, in the unit of what is measured
    most: float = math.inf  # what it is brought down to, if it is more

    @property
    def value(self) -> float:
        return min(self.most, self.sure + math.exp(min(700.0, self.log)))

    def upper(self, probability: float) -> float:
        """The bound that a measurement stays below with this probability."""
        k = student_quantile(round(self.freedom, 1), probability)
        bound = self.sure + math.exp(min(700.0, self.log + k * math.hypot(self.spread, self.doubt)))
        return min(self.most, bound)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of noise and doubt together (Satterthwaite): only the spread was estimated."""
        share = 1.0 + (self.doubt / self.spread) ** 2 if self.spread else math.inf
        return min(MANY, self.dof * share**2)

    def chance(self, limit: float) -> float:
        """The probability that a measurement is at most the limit; doubt counts against it."""
        if self.most <= limit:
            return 1.0
        room = math.log(limit - self.sure) - self.log if limit > self.sure else -math.inf
        sd = math.hypot(self.spread, self.doubt)
        return student_probability(self.freedom, room / sd) if sd else float(room >= -1e-9)

    def without_doubt(self) -> Estimate:
        """The best case for who is judged: factors half of whose doubt speaks for it."""
        return replace(self, log=self.log - self.doubt, doubt=0.0)


class _Rows:
    """Trials as flat arrays: what a fit reads."""

    def __init__(self, rows: list[_Row], width: int):
        counts = [len(row.logs) for row in rows]
        self.starts = np.cumsum([0, *counts[:-1]])
        self.owner = np.repeat(np.arange(len(rows)), counts)
        self.logs = np.concatenate([row.logs for row in rows])
        self.y = np.array([row.y for row in rows])
        self.shape = (len(rows), width)
        self.parts = np.concatenate([row.parts + start for row, start in zip(rows, self.starts, strict=True)])
        self.columns = np.concatenate([row.columns for row in rows])
        self.values = np.concatenate([row.values for row in rows])
        self.cells = self.owner[self.parts] * width + self.columns
        self.common: Array = np.zeros(self.shape)  # exponents of the factors that a trial's parts share
        for own, row in zip(self.common, rows, strict=True):
            own[row.common] = row.exponents

    def totals(self, theta: Array) -> tuple[Array, Array]:
        """(log total of each trial, its gradient [trials, factors]); zero exponents are left out."""
        corrections = np.bincount(self.parts, self.values * theta[self.columns], len(self.logs))
        parts = np.exp(self.logs + corrections)
        totals = np.add.reduceat(parts, self.starts)
        shares = parts / totals[self.owner]
        gradient = np.bincount(self.cells, shares[self.parts] * self.values, self.common.size)
        return np.log(totals) + self.common @ theta, gradient.reshape(self.shape) + self.common


@dataclass(frozen=True)
class _Row:
    """A bill, and what a finished trial measured: logarithms of amounts and measurement, (part, column,
    exponent) of the parts' own factors, (column, exponent) of those that all parts share."""

    logs: Array
    parts: NDArray[np.intp]
    columns: NDArray[np.intp]
    values: Array
    common: NDArray[np.intp]
    exponents: Array
    y: float = math.nan


@dataclass(frozen=True)
class _Fit:
    mean: Array
    covariance: Array
    spread: float
    dof: float


class CostModel:
    """The factors of one kind of bill. `sds`: prior sds of logarithms, by a name's part before the colon, for
    factors that `learnt` does not know."""

    def __init__(
        self, sds: Mapping[str, float], *, spread: float, least_spread: float, learnt: Learnt | None = None
    ):
        self.sds = sds
        self.least_spread = least_spread
        self.learnt = learnt or Learnt({}, spread, PRIOR_TRIALS)
        self.rows: deque[_Row] = deque(maxlen=LATEST)
        self.carried: deque[_Row] = deque(maxlen=CARRIED)  # of other studies, what goes first at the left
        self.columns = {name: column for column, name in enumerate(self.learnt.factors)}
        self.centre = {name: centre for name, (_, _, centre) in self.learnt.factors.items()}
        self._fit: _Fit | None = None
        self._new = 0  # trials since the last fit
        self._last = self._prior_means()

    def _prior_means(self) -> Array:
        return np.array([mean for mean, _, _ in self.learnt.factors.values()], dtype=np.float64)

    def add(self, bill: Bill, measured: float, *, carried: bool = False) -> None:
        """One finished trial; `measured` > 0. One that is `carried` over makes room for this study's."""
        for factors in (bill.common, *(part.factors for part in bill.parts)):
            for name, exponent in factors.items():
                if name not in self.columns:
                    self.columns[name] = len(self.columns)
                    self.centre[name] = exponent if name.startswith("log ") else 0.0
        row = replace(self._flat(bill), y=math.log(measured))
        (self.carried if carried else self.rows).append(row)
        if self.carried and not carried:
            self.carried.popleft()
        self._new += 1

    def forget_carried(self) -> bool:
        """From here on its own trials alone; False when there were no others."""
        had = bool(self.carried)
        self.carried.clear()
        self._last = self._prior_means()
        self._fit = None
        return had

    def estimate(self, bill: Bill) -> Estimate:
        row, fit = self._flat(bill), self._solved()
        x = np.zeros((len(row.logs), len(self.columns)))
        x[:, row.common] = row.exponents
        x[row.parts, row.columns] = row.values
        amounts = np.exp(row.logs + x @ fit.mean)
        total = float(amounts.sum())
        shares = amounts / total
        gradient = shares @ x
        variance = max(0.0, float(gradient @ fit.covariance @ gradient)) + self._unseen(bill, shares)
        return Estimate(math.log(total), fit.spread, math.sqrt(variance), fit.dof)

    def prior_sd(self, name: str) -> float:
        known = self.learnt.factors.get(name)
        return self.sds[name.partition(":")[0]] if known is None else known[1]

    def _unseen(self, bill: Bill, shares: Array) -> float:
        weight = {name: 1.0 for name in bill.common if name not in self.columns}
        for part, share in zip(bill.parts, shares, strict=True):
            for name, exponent in part.factors.items():
                if name not in self.columns:
                    weight[name] = weight.get(name, 0.0) + float(share) * exponent
        return sum((w * self.prior_sd(n)) ** 2 for n, w in weight.items() if not n.startswith("log "))

    def _flat(self, bill: Bill) -> _Row:
        parts = list[int]()
        columns = list[int]()
        values = list[float]()
        shared = {n: e - self.centre[n] for n, e in bill.common.items() if n in self.columns}
        for i, part in enumerate(bill.parts):
            for name, exponent in part.factors.items():
                if name in self.columns and name not in shared:
                    parts.append(i)
                    columns.append(self.columns[name])
                    values.append(exponent - self.centre[name])
        return _Row(
            logs=np.log([part.amount for part in bill.parts]),
            parts=np.array(parts, dtype=np.intp),
            columns=np.array(columns, dtype=np.intp),
            values=np.array(values),
            common=np.array([self.columns[name] for name in shared], dtype=np.intp),
            exponents=np.array(list(shared.values())),
        )

    def _solved(self) -> _Fit:
        """The fit to all rows; made again once trials came, of many rows once a share of them is new."""
        known = len(self.rows) + len(self.carried)
        new_factors = self._fit is not None and len(self._fit.mean) < len(self.columns)
        if self._fit is None or new_factors or self._new > RENEWED * known:
            self._fit, self._new = self._solve(), 0
        return self._fit

    def _solve(self) -> _Fit:
        width, known = len(self.columns), [*self.carried, *self.rows]
        precision = np.diag([1.0 / self.prior_sd(name) ** 2 for name in self.columns])
        means = np.pad(self._prior_means(), (0, width - len(self.learnt.factors)))
        pull = precision @ means
        spread = self.learnt.spread
        before = self.learnt.trials
        if not known:
            return _Fit(means, np.linalg.inv(precision), spread, before)
        rows = _Rows(known, width)
        dof = before
        theta = np.pad(self._last, (0, width - len(self._last)))  # new factors at their prior's mean
        weights = np.ones(len(known))
        covariance = precision
        logs, gradient = rows.totals(theta)
        for step in range(STEPS):
            weighted = gradient.T * (weights / spread**2)
            information = weighted @ gradient
            covariance = np.asarray(np.linalg.inv(precision + information), dtype=np.float64)
            theta = covariance @ (weighted @ (rows.y - logs + gradient @ theta) + pull)
            logs, gradient = rows.totals(theta)
            residuals = rows.y - logs
            free = max(0.0, len(residuals) - float(np.sum(covariance * information)))
            squares = float(np.sum(weights * residuals**2)) / (CLIPPED_SQUARES if step else 1.0)
            dof = before + free
            spread = math.sqrt((before * self.learnt.spread**2 + squares) / dof)
            spread = max(spread, self.least_spread)
            weights = np.minimum(1.0, (STUDENT + 1.0) / (STUDENT + (residuals / spread) ** 2))
        self._last = theta
        return _Fit(theta, covariance, spread, dof)
