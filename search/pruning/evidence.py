"""final = a + b·early + Σ offsets of the parameters + noise, at one point of the budget, of feasible trials.

Offsets are what a technique or a setting shifts between early and late: weight averages, warm-downs, late
quantisation and test-time training help at the end and not before. They are shrunk towards 0 as strongly as
predicts left-out trials best. The early order counts as shown to predict the final one when b is positive
beyond doubt and so is the rank agreement of left-out predictions with the finals, at the lower end of its
interval (Fisher's z; variance 1.06/(n - 3) for ranks: Fieller, Hartley & Pearson 1957).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.costs.factors import student_quantile

Array = NDArray[np.float64]
STRENGTHS = (0.001, 0.03, 0.1, 0.2, 0.4)  # prior sd of an offset, in sd of the finals: the candidates
SURE = 0.975  # of an interval's one side


@dataclass(frozen=True)
class Point:
    """A trial at one point of its budget; `features` as of `with_rates`."""

    early: float  # val_bpb
    features: Mapping[str, float]
    final: float = math.nan  # val_bpb at the end; unknown for a running trial


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation and the lower end of its one-sided interval."""

    rank: float
    lower: float


def ranks(values: Array) -> Array:
    """Ranks from 0, ties at their mean."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count) - 1.0
    return (last - 0.5 * (count - 1.0))[place]


def agreement(left: Array, right: Array) -> Agreement:
    """Of two lists of the same trials. Fewer than 5, or a constant list, agree on nothing."""
    if len(left) < 5 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return Agreement(0.0, -1.0)
    rank = float(np.corrcoef(ranks(left), ranks(right))[0, 1])
    z = math.atanh(max(-0.999999, min(0.999999, rank)))
    return Agreement(rank, math.tanh(z - 1.96 * math.sqrt(1.06 / (len(left) - 3))))


def cap_of(values: Array) -> float:
    """Above it all runs are equally hopeless: where they would bend the line, they are taken as this bad."""
    middle = float(np.median(values))
    return middle + 3.0 * (middle - float(values.min()))


class Evidence:
    """The regression above; `predict` needs at least 5 finished trials. The order of `points` is nothing."""

    def __init__(self, points: Sequence[Point]):
        self.names = sorted({name for point in points for name in point.features})
        self._columns = {name: k for k, name in enumerate(self.names)}
        self.count = len(points)
        early = np.array([point.early for point in points])
        self.finals: Array = np.array([point.final for point in points])
        self.raw = agreement(early, self.finals)
        self.usable = self.count >= 5
        self.best_early = float(early.min()) if self.count else math.inf
        if not self.usable:
            self.shown = Agreement(0.0, -1.0)
            return
        self.cap_early, self.finals = cap_of(early), np.minimum(self.finals, cap_of(self.finals))
        early = np.minimum(early, self.cap_early)
        self.centre_early, self.centre = float(early.mean()), np.zeros(len(self.names))
        z = np.zeros((self.count, len(self.names)))
        for row, point in zip(z, points, strict=True):
            row[[self._columns[name] for name in point.features]] = list(point.features.values())
        self.centre = z.mean(axis=0)
        self.unit = float(self.finals.std()) or 1e-9
        x = np.column_stack((np.ones(self.count), early - self.centre_early, z - self.centre))
        fits = [self._fit(x, strength) for strength in STRENGTHS]
        best = min(fits, key=lambda fit: float(np.sum(fit[2] ** 2)))
        self.covariance, self.coefficients, left_out = best[0], best[1], best[2]
        self.dof = max(1.0, best[4])
        self.sd = math.sqrt(best[3])
        self.shown = agreement(self.finals - left_out, self.finals)

    def _fit(self, x: Array, strength: float) -> tuple[Array, Array, Array, float, float]:
        """(covariance / noise variance, coefficients, left-out residuals, noise variance, dof) of a ridge."""
        noise = 0.25 * self.unit**2
        precision = np.full(x.shape[1], noise / (strength * self.unit) ** 2)
        precision[:2] = (1e-9, noise)  # the mean is free, the slope's prior sd is 1
        covariance = np.asarray(np.linalg.inv(x.T @ x + np.diag(precision)), dtype=np.float64)
        coefficients = covariance @ (x.T @ self.finals)
        residuals = self.finals - x @ coefficients
        leverage = np.sum((x @ covariance) * x, axis=1)
        dof = max(1.0, self.count - float(leverage.sum()))
        left_out = residuals / np.maximum(1e-6, 1.0 - leverage)
        return covariance, coefficients, left_out, float(np.sum(residuals**2)) / dof, dof

    @property
    def slope(self) -> tuple[float, float]:
        """(b, the lower end of its interval)."""
        error = self.sd * math.sqrt(float(self.covariance[1, 1]))
        b = float(self.coefficients[1])
        return b, b - student_quantile(round(self.dof, 1), SURE) * error

    def tells(self, least: float) -> bool:
        """Whether the early order has been shown to predict the final one, by at least this agreement."""
        return self.usable and self.shown.lower >= least and self.slope[1] > 0.0

    def predict(self, point: Point) -> tuple[float, float]:
        """(mean, standard deviation) of the final; wide for parameters never seen at this value."""
        features = np.array([point.features.get(name, 0.0) for name in self.names]) - self.centre
        x = np.concatenate(([1.0, min(point.early, self.cap_early) - self.centre_early], features))
        mean = float(x @ self.coefficients)
        return mean, self.sd * math.sqrt(1.0 + max(0.0, float(x @ self.covariance @ x)))

    def probability_worse(self, point: Point, standard: float) -> float:
        from scipy.special import stdtr  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

        mean, sd = self.predict(point)
        return float(stdtr(self.dof, (mean - standard) / sd))  # pyright: ignore[reportUnknownArgumentType]

    def offsets(self) -> list[tuple[str, float, float]]:
        """(parameter, shift of the final given the early BPB, its standard deviation), the surest first."""
        errors = self.sd * np.sqrt(np.diag(self.covariance))[2:]
        found = zip(self.names, self.coefficients[2:].tolist(), errors.tolist(), strict=True)
        return sorted(found, key=lambda row: -abs(row[1]) / max(1e-12, row[2]))
