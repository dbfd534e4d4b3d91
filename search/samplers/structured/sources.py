"""Sources: what earlier studies of a changed space say about this study's function f, and how far that goes.

Source s observes c (t f(x) + √(1 - t²) d(x)) + b + noise: b its level, d a function of its own with the prior
of f, c its scale, and t in (0, 1) the trust, the correlation of its effects with this study's. Its trials are
further rows of the surrogate's system (an intrinsic coregionalisation: Bonilla et al. 2007, Multi-task
Gaussian process prediction; transfer by one correlation: Cao et al. 2010). c, t and the noise maximise the
marginal likelihood with all other variances: a source that this study's own trials contradict is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]
CENTRES = np.array(
    [0.0, 2.0, math.log(0.02)]
)  # priors' centres: log c, logit t (0.88), log variance of noise
SPREADS = np.array([0.3, 1.5, 1.5])
BIAS = 4.0  # prior variance of b; each source's values have mean 0, all values together sd 1
BOUNDS = [(-3.0, 3.0), (-6.0, 6.0), (-9.0, 2.0)]


@dataclass(frozen=True)
class Source:
    """Trials of an earlier study as configurations of the new space."""

    name: str
    params: tuple[Mapping[str, Any], ...]
    values: Array  # [n], of the same objective and direction
    noise_sd: Array  # [n], beyond the common one, in its units
    constraints: tuple[Mapping[str, float], ...]  # relative violations under this study's limits, as known
    feasible: tuple[bool, ...]


class Coupling:
    """The rows' sources under some hyper-parameters. `which` [n]: 0 this study, s the s-th source."""

    def __init__(self, which: Index, hyper: Array):
        self.which = which
        self.count = len(hyper)
        own = np.array([[0.0, np.inf, 0.0]])  # c = t = 1
        log_scale, logit, self.log_noise = np.concatenate([own, hyper]).T
        self.trust = 1.0 / (1.0 + np.exp(-logit))
        self.gain = np.exp(log_scale) * self.trust
        self.rest = np.exp(2.0 * log_scale) * (1.0 - self.trust**2)  # variance of d, over that of f

    def rows(self) -> Array:
        """Covariance of each row with f, over that of a row of this study. [n]"""
        return self.gain[self.which]

    def couple(self, kernel: Array) -> Array:
        """Covariance of the rows, without noise, by that of f at them. [n, n]"""
        return kernel * self._factor() + BIAS * self._same() * (self.which > 0)

    def _same(self) -> Array:
        return (self.which[:, None] == self.which) * 1.0

    def _factor(self) -> Array:
        return np.outer(self.rows(), self.rows()) + self._same() * self.rest[self.which]

    def noise(self, own: float) -> Array:
        """Variance of each row's common noise. [n]"""
        return np.concatenate([[own], np.exp(self.log_noise[1:])])[self.which]

    def gradient(self, a: Array, kernel: Array) -> tuple[Array, Array]:
        """(a [n, n] as the kernel's own parameters see it, tr(a dK) by each of `hyper` [sources, 3])."""
        by_kernel = a * self._factor()
        each = by_kernel * kernel
        found = np.zeros((self.count, 3))
        for s in range(1, self.count + 1):
            inside = self.which == s
            found[s - 1, 0] = 2.0 * each[inside].sum()
            found[s - 1, 1] = 2.0 * (1.0 - self.trust[s]) * each[inside][:, ~inside].sum()
            found[s - 1, 2] = math.exp(self.log_noise[s]) * float(np.diag(a)[inside].sum())
        return by_kernel, found

    def observed(self, f: Array, other: Callable[[], Array], rng: np.random.Generator) -> Array:
        """Draws [n] of what the rows observe, without noise; `f` [n] at them, `other()` more like it."""
        found = self.rows() * f
        for s in range(1, self.count + 1):
            at = self.which == s
            level = math.sqrt(BIAS) * rng.standard_normal()
            found[at] += math.sqrt(self.rest[s]) * other()[at] + level
        return found
