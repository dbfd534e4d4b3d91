"""Correction: log(measured / predicted) as a Bayesian linear model over techniques and sizes, with its own
doubt.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from techniques.config import Resolved

Array = NDArray[np.float64]

SIZES = ("matrix_lr", "model_dim", "num_layers", "mlp_mult", "iterations")  # settings that bias a prediction

LATEST = 300  # finished trials that a correction remembers: machines change their speed


@dataclass(frozen=True)
class Estimate:
    """exp(log) is the prediction; `spread` and `doubt` are standard deviations of its logarithm."""

    log: float
    spread: float
    doubt: float

    def at(self, spreads: float, doubts: float) -> float:
        """The prediction moved by so many standard deviations."""
        return math.exp(min(700.0, self.log + spreads * self.spread + doubts * self.doubt))


class Correction:
    """log(measured / predicted) = intercept + a term for each technique + a slope for each size, Bayesian."""

    def __init__(self, *, intercept_sd: float, technique_sd: float, slope_sd: float, spread: float):
        self.sds = {"": intercept_sd, "technique": technique_sd, "slope": slope_sd}
        self.prior_spread = spread
        self.index: dict[str, int] = {}
        self.rows: deque[tuple[dict[str, float], float]] = deque(maxlen=LATEST)
        self.centre: dict[str, float] = {}
        self._fit: tuple[Array, Array, float] | None = None

    @staticmethod
    def features(resolved: Resolved) -> dict[str, float]:
        """The model's inputs: 1, 1 for each technique that is on, logarithms of SIZES."""
        sizes = {f"log {n}": math.log(max(1e-9, float(resolved.values[n]))) for n in SIZES}
        return {"": 1.0, **{name: 1.0 for name in resolved.techniques}, **sizes}

    def add(self, features: Mapping[str, float], log_ratio: float) -> None:
        """One finished trial."""
        if not self.centre:
            self.centre = {k: v for k, v in features.items() if k.startswith("log ")}
        for name in features:
            self.index.setdefault(name, len(self.index))
        self.rows.append((dict(features), log_ratio))
        self._fit = None

    def _prior_sd(self, name: str) -> float:
        return self.sds["" if not name else "slope" if name.startswith("log ") else "technique"]

    def _vector(self, features: Mapping[str, float]) -> Array:
        x = np.zeros(len(self.index))
        for name, value in features.items():
            if name in self.index:
                x[self.index[name]] = value - self.centre.get(name, 0.0)
        return x

    def _solved(self) -> tuple[Array, Array, float]:
        """(mean, covariance of the coefficients, spread); refitted once a batch of trials."""
        if self._fit is None:
            x = np.array([self._vector(features) for features, _ in self.rows])
            y = np.array([ratio for _, ratio in self.rows])
            first = self._posterior(x, y, self.prior_spread)
            self._fit = self._posterior(x, y, first[2])
        return self._fit

    def _posterior(self, x: Array, y: Array, spread: float) -> tuple[Array, Array, float]:
        """(mean, covariance, measured spread) when equal runs are believed to differ by `spread`."""
        prior = np.diag([1.0 / self._prior_sd(name) ** 2 for name in self.index])
        covariance = np.asarray(np.linalg.inv(prior + x.T @ x / spread**2), dtype=np.float64)
        mean: Array = covariance @ x.T @ y / spread**2
        squares = float(np.sum((y - x @ mean) ** 2))
        dof = max(0.0, len(y) - float(np.trace(covariance @ x.T @ x)) / spread**2)
        return mean, covariance, math.sqrt((3.0 * self.prior_spread**2 + squares) / (3.0 + dof))

    def estimate(self, log_prediction: float, features: Mapping[str, float]) -> Estimate:
        """The corrected prediction."""
        unseen = sum(
            self._prior_sd(n) ** 2 for n in features if n not in self.index and not n.startswith("log ")
        )
        if not self.rows:
            return Estimate(log_prediction, self.prior_spread, math.sqrt(unseen))
        mean, covariance, spread = self._solved()
        x = self._vector(features)
        doubt = math.sqrt(max(0.0, float(x @ covariance @ x)) + unseen)
        return Estimate(log_prediction + float(x @ mean), spread, doubt)
