"""Surrogate: y = intercept + mains + shrunken pairs + noise, Bayesian, with exact Thompson draws.

Every parameter p has a relevance s_p, the prior variance of its effects; a product of two columns has the
prior variance rho s_p s_q: a pair needs two parameters that matter (heredity). A number has the Legendre
polynomials P1..P4 of its scaled value, the last two (`bend`) with a smaller variance; a gate has one column,
a categorical one for each choice. What switches (False, True) do on average, and how numbers curve on
average, are two columns more: a handful of trials tells more of them than of each alone. Relevances, rho,
bend and the noise maximise the marginal likelihood times log-normal priors (automatic relevance
determination). Draws follow Matheron's rule: a draw from the prior, corrected by the kernel system of the
data, exact and n² for n trials (Wilson et al. 2020, Pathwise conditioning; kernel: Duvenaud et al. 2011,
Additive Gaussian processes, orders 1 and 2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
from scipy.linalg import cho_solve, lapack  # pyright: ignore
from scipy.optimize import minimize  # pyright: ignore

from search.common.numeric import Distributions
from search.samplers.structured import sources as earlier
from search.samplers.structured.sources import Array, Coupling, Index

Mask = NDArray[np.bool_]
QUADRATIC, QUARTIC = 0.6, 0.6  # prior variance of P2 over P1, of P4 over P3
# centres of the priors, as logarithms, and their sds; y has sd 1
START = {k: math.log(v) for k, v in {"relevance": 0.05, "rho": 0.1, "bend": 0.05, "noise": 0.02}.items()}
WIDTH = {"relevance": 1.3, "rho": 1.0, "bend": 1.0, "noise": 1.5}
JITTER = 1e-6


class Basis:
    """Columns of main effects and of the factors that pairs are made of. No data, only the space."""

    def __init__(self, distributions: Distributions):
        self.dists = list(distributions.values())
        sizes = [len(d.choices) if isinstance(d, CategoricalDistribution) else 0 for d in self.dists]
        self.numbers: Index = np.array([k for k, n in enumerate(sizes) if n == 0], dtype=np.int64)
        self.gates: Index = np.array([k for k, n in enumerate(sizes) if n == 2], dtype=np.int64)
        many = [(k, c, n) for k, n in enumerate(sizes) if n > 2 for c in range(n)]
        self.many: Index = np.array([k for k, _, _ in many], dtype=np.int64)
        self.choice = np.array([c for _, c, _ in many], dtype=np.float64)
        self.share = np.array([1.0 / n for _, _, n in many], dtype=np.float64)
        k = len(self.numbers)
        self.switches: Mask = np.array([d.choices == (False, True) for d in self._of(self.gates)], dtype=bool)
        self.shared = [j for j, n in enumerate((self.switches.sum(), k)) if n > 1]  # of switches, of numbers
        self.count = len(sizes) + len(self.shared)  # of relevances
        means = np.arange(len(sizes), self.count)
        self.owner = np.concatenate(
            [self.gates, self.many, *[self.numbers] * 4, means]
        )  # of every main column
        ones = np.ones(len(self.gates) + len(self.many))
        each = [1.0, 1.0, QUADRATIC, 1.0, QUARTIC, 1.0]
        self.weight = np.repeat(each, [len(ones), k, k, k, k, len(means)])
        self.bent: Mask = np.repeat([False, True, False], [len(ones) + 2 * k, 2 * k, len(means)])
        self.factors = len(ones) + k  # the first columns, unweighted, also make pairs

    def _of(self, kinds: Index) -> list[Any]:
        return [self.dists[k] for k in kinds]

    def columns(self, rows: Array, active: Mask) -> Array:
        """Main columns [n, m] of rows [n, parameters]. What is inactive counts as off (a gate) or 0."""
        gates = np.where(active[:, self.gates], rows[:, self.gates], 0.0) - 0.5
        one_hot = (rows[:, self.many] == self.choice) - self.share
        u, on = rows[:, self.numbers], active[:, self.numbers]
        square = u * u
        p2, p3 = 1.5 * square - 0.5, u * (2.5 * square - 1.5)
        p4 = (4.375 * square - 3.75) * square + 0.375
        bends = [u * on, p2 * on, p3 * on, p4 * on]
        sums = np.stack([gates @ self.switches, bends[1].sum(axis=1)], axis=1)[:, self.shared]
        return np.concatenate([gates, one_hot * active[:, self.many], *bends, sums], axis=1)


@dataclass(frozen=True)
class Function:
    """intercept + columns · main + factors · pair · factors: one draw, or the mean."""

    intercept: float
    main: Array  # [m]
    pair: Array  # [factors, factors], or empty

    def __call__(self, columns: Array) -> Array:
        """Values [n] of columns [n, m]."""
        mains = self.intercept + columns @ self.main
        if not len(self.pair):
            return mains
        z = columns[:, : len(self.pair)]
        return mains + np.einsum("ij,ij->i", z @ self.pair, z)


@dataclass(frozen=True)
class Hyper:
    """Logarithms of the variances; see the head of this file."""

    relevance: Array  # [parameters]
    rho: float
    bend: float
    noise: float
    sources: Array = field(default_factory=lambda: np.zeros((0, 3)))  # search/samplers/structured/sources.py

    def flat(self) -> Array:
        """The sources' first."""
        return np.concatenate([self.sources.ravel(), self.relevance, [self.rho, self.bend, self.noise]])

    @staticmethod
    def of(flat: Array, sources: int = 0) -> Hyper:
        cut = 3 * sources
        each = flat[:cut].reshape(sources, 3)
        return Hyper(flat[cut:-3], float(flat[-3]), float(flat[-2]), float(flat[-1]), each)


def vector(values: Mapping[str, float], count: int) -> Array:
    """As `Hyper.flat` orders them: `relevance` for each of `count` parameters, rho, bend and noise."""
    return np.array([values["relevance"]] * count + [values[k] for k in ("rho", "bend", "noise")])


class Surrogate:
    """Fitted by `observe`; then `mean`, `draw` and `variance`."""

    def __init__(self, basis: Basis, *, pairs: bool = True):
        self.basis, self.pairs = basis, pairs
        self.hyper = Hyper.of(vector(START, basis.count))
        self.columns: Array = np.zeros((0, len(basis.owner)))
        self.y: Array = np.zeros(0)
        self.extra: Array = np.zeros(0)
        self.which: Index = np.zeros(0, dtype=np.int64)  # 0: this study, else the source of each row
        self.centre, self.scale = 0.0, 1.0
        self._factor: Array = np.zeros((0, 0))

    def observe(
        self,
        columns: Array,
        y: Array,
        *,
        noise_sd: Array | None = None,
        more: Array | None = None,
        fit: int = 0,
        source: Index | None = None,
    ) -> None:
        """Condition on values y [n] of columns [n, m], and at `more` columns [q, m] on their posterior means
        (fantasies). `noise_sd` [n], in units of y, is noise beyond the common one (shorter runs). `fit` steps
        of L-BFGS improve the variances first. `source` [n]: 0 for this study's own, s for the s-th source."""
        noise_sd = np.zeros(len(y)) if noise_sd is None else noise_sd
        self.which = np.zeros(len(y), dtype=np.int64) if source is None else source
        if new := int(self.which.max(initial=0)) - len(self.hyper.sources):
            grown = np.concatenate([self.hyper.sources, np.tile(earlier.CENTRES, (max(new, 0), 1))])
            self.hyper = replace(self.hyper, sources=grown[: int(self.which.max(initial=0))])
        self._standardise(columns, y, noise_sd)
        if fit and len(y) > 4:
            start = self.hyper.flat()
            sources = len(self.hyper.sources)
            limits = [(-12.0, 4.0)] * (len(start) - 3 * sources - 1) + [(-9.0, 2.0)]
            limits = earlier.BOUNDS * sources + limits
            settings: dict[str, Any] = {"jac": True, "bounds": limits, "options": {"maxiter": fit}}
            found: Any = minimize(self.objective, start, method="L-BFGS-B", **settings)  # pyright: ignore
            self.hyper = Hyper.of(np.asarray(found.x, dtype=np.float64), sources)  # pyright: ignore
        if more is None or not len(more) or not len(y):
            self._factor = triangle(self._coupled(self._kernel(self.hyper)[0]), self._noise(self.hyper))
            return
        n, noise = len(y), self._noise(self.hyper)
        self.columns = np.concatenate([columns, more])
        self.which = np.concatenate([self.which, np.zeros(len(more), dtype=np.int64)])
        k = self._coupled(self._kernel(self.hyper)[0])  # once, for both systems
        alpha = solved(triangle(k[:n, :n], noise), self.y)
        fantasy = self.centre + self.scale * (k[n:, :n] @ alpha)
        noise_sd = np.concatenate([noise_sd, np.zeros(len(more))])
        self._standardise(self.columns, np.concatenate([y, fantasy]), noise_sd)
        self._factor = triangle(k, self._noise(self.hyper))

    def _standardise(self, columns: Array, y: Array, noise_sd: Array) -> None:
        """Keeps the data, y with mean 0 (each source's own) and together sd 1."""
        self.columns = columns
        own = self.which == 0
        self.centre = float(y[own].mean() if own.any() else y.mean()) if len(y) else 0.0
        each = [y[self.which == s] for s in self._sources()]  # one of many may be left without rows
        centres = [self.centre] + [float(v.mean()) if len(v) else 0.0 for v in each]
        off = y - np.array(centres)[self.which]
        self.scale = float(off.std()) if len(y) > 1 and off.std() > 0 else 1.0
        self.y = off / self.scale
        self.extra = (noise_sd / self.scale) ** 2

    def _sources(self) -> range:
        return range(1, 1 + len(self.hyper.sources))

    def _coupling(self, hyper: Hyper) -> Coupling | None:
        return Coupling(self.which, hyper.sources) if len(hyper.sources) else None

    def _coupled(self, kernel: Array) -> Array:
        coupling = self._coupling(self.hyper)
        return coupling.couple(kernel) if coupling else kernel

    def _scales(self, hyper: Hyper) -> tuple[Array, Array]:
        """Prior variances of the main columns [m] and of the factors of pairs [factors]."""
        relevance = np.exp(hyper.relevance)[self.basis.owner]
        main = relevance * self.basis.weight * np.where(self.basis.bent, math.exp(hyper.bend), 1.0)
        return main, relevance[: self.basis.factors]

    def _noise(self, hyper: Hyper) -> Array:
        coupling = self._coupling(hyper)
        own = math.exp(hyper.noise)
        return (coupling.noise(own) if coupling else own) + self.extra + JITTER

    def _kernel(self, hyper: Hyper) -> tuple[Array, Array, Array, Array]:
        """(K [n, n] without noise, scaled columns, T [n, n] of the factors among them, K of pairs)."""
        scaled = self.columns * np.sqrt(self._scales(hyper)[0])
        z = scaled[:, : self.basis.factors]
        rest = scaled[:, self.basis.factors :]
        t = z @ z.T
        k = t + rest @ rest.T + 1.0
        if not self.pairs:
            return k, scaled, t, np.zeros((0, 0))
        squares = z * z
        pairs = 0.5 * math.exp(hyper.rho) * (t * t - squares @ squares.T)
        return k + pairs, scaled, t, pairs

    def objective(self, flat: Array) -> tuple[float, Array]:
        """(negative log of marginal likelihood × priors, its gradient) at `Hyper.flat()`."""
        sources = len(self.hyper.sources)
        count = self.basis.count
        hyper = Hyper.of(flat, sources)  # the first of the kernel's own
        first = 3 * sources
        k, scaled, t, pairs = self._kernel(hyper)
        coupling = self._coupling(hyper)
        factor = triangle(coupling.couple(k) if coupling else k, self._noise(hyper))
        alpha = solved(factor, self.y)
        widths = np.concatenate([np.tile(earlier.SPREADS, sources), vector(WIDTH, count)])
        away = (flat - np.concatenate([np.tile(earlier.CENTRES, sources), vector(START, count)])) / widths
        value = 0.5 * self.y @ alpha + np.log(np.diag(factor)).sum() + 0.5 * away @ away
        a = np.outer(alpha, alpha) - inverse(factor)
        gradient = np.zeros(len(flat))
        gradient[-1] = math.exp(hyper.noise) * float(
            np.trace(a) if not sources else a.diagonal() @ (self.which == 0)
        )
        if coupling:
            a, by_source = coupling.gradient(a, k)
            gradient[:first] = by_source.ravel()
        own = slice(first, first + count)
        z = scaled[:, : self.basis.factors]
        rest = scaled[:, self.basis.factors :]
        by_factor = quadratic(a * (1.0 + math.exp(hyper.rho) * t) if self.pairs else a, z)
        if self.pairs:
            by_factor -= math.exp(hyper.rho) * quadratic(a, z * z)
            gradient[-3] = float((a * pairs).sum())
        by_column = np.concatenate([by_factor, quadratic(a, rest)])
        gradient[own] = np.bincount(self.basis.owner, by_column, minlength=count)
        gradient[-2] = by_column[self.basis.bent].sum()
        return float(value), -0.5 * gradient + away / widths

    def _posterior(self, intercept: float, main: Array, pair: Array, wrong: Array) -> Function:
        """A prior's function corrected by `wrong` [n]: y less it and a draw of noise (Matheron's rule)."""
        scales, factors = self._scales(self.hyper)
        if len(self.y):
            alpha = self._gain() * solved(self._factor, wrong)
            z = self.columns[:, : self.basis.factors]
            intercept += float(alpha.sum())
            main = main + scales * (self.columns.T @ alpha)
            if self.pairs:
                half = 0.5 * math.exp(self.hyper.rho)
                moved = half * np.outer(factors, factors) * (z.T @ (alpha[:, None] * z))
                np.fill_diagonal(moved, 0.0)
                pair = pair + moved
        return Function(self.centre + self.scale * intercept, self.scale * main, self.scale * pair)

    def _gain(self) -> Array | float:
        """Covariance of each row with the function, over that of a row of this study. [n]"""
        coupling = self._coupling(self.hyper)
        return coupling.rows() if coupling else 1.0

    def trusts(self) -> list[float]:
        """Of each source, from 0 (ignored) to 1 (as if its trials were this study's own)."""
        coupling = self._coupling(self.hyper)
        return [float(t) for t in coupling.trust[1:]] if coupling else []

    def mean(self) -> Function:
        """The posterior mean, in units of y."""
        size = self.basis.factors if self.pairs else 0
        return self._posterior(0.0, np.zeros(len(self.basis.owner)), np.zeros((size, size)), self.y)

    def draw(self, rng: np.random.Generator) -> Function:
        """A function drawn from the posterior, in units of y."""
        found = self._prior_draw(rng)
        noise = np.sqrt(self._noise(self.hyper)) * rng.standard_normal(len(self.y))
        observed = found(self.columns)
        if coupling := self._coupling(self.hyper):
            observed = coupling.observed(observed, lambda: self._prior_draw(rng)(self.columns), rng)
        return self._posterior(found.intercept, found.main, found.pair, self.y - observed - noise)

    def _prior_draw(self, rng: np.random.Generator) -> Function:
        """Of the function, y scaled to sd 1."""
        scales, factors = self._scales(self.hyper)
        size = self.basis.factors if self.pairs else 0
        pair = np.zeros((size, size))
        if self.pairs:
            sd = math.sqrt(math.exp(self.hyper.rho)) * np.sqrt(np.outer(factors, factors))
            pair = np.triu(sd * rng.standard_normal((size, size)), 1)
            pair = 0.5 * (pair + pair.T)
        main = np.sqrt(scales) * rng.standard_normal(len(scales))
        return Function(float(rng.standard_normal()), main, pair)

    def cross(self, columns: Array) -> Array:
        """Prior covariance [q, n] of q points with the observed ones, y scaled to sd 1."""
        main, factor = self._scales(self.hyper)
        k = (columns * main) @ self.columns.T + 1.0
        if self.pairs:
            size = self.basis.factors
            a, b = columns[:, :size] * np.sqrt(factor), self.columns[:, :size] * np.sqrt(factor)
            k += 0.5 * math.exp(self.hyper.rho) * ((a @ b.T) ** 2 - (a * a) @ (b * b).T)
        return k * self._gain()

    def variance(self, columns: Array) -> Array:
        """Posterior variance [q] of the function (not of an observation), in squared units of y."""
        main, factor = self._scales(self.hyper)
        own = 1.0 + (columns * columns) @ main
        if self.pairs:
            squares = columns[:, : self.basis.factors] ** 2 * factor
            total = squares.sum(axis=1)
            own += 0.5 * math.exp(self.hyper.rho) * (total**2 - (squares**2).sum(axis=1))
        if len(self.y):
            cross = self.cross(columns)
            own -= np.einsum("ij,ji->i", cross, solved(self._factor, cross.T))
        return np.maximum(own, 0.0) * self.scale**2

    def contrast_sd(self, columns: Array) -> Array:
        """Posterior sd [q] of `columns @ main` in units of y, for differences of columns; without pairs."""
        main = self._scales(self.hyper)[0]
        cross = (columns * main) @ self.columns.T * self._gain()
        own = (columns * columns) @ main - np.einsum("ij,ji->i", cross, solved(self._factor, cross.T))
        return self.scale * np.sqrt(np.maximum(own, 0.0))

    def noise_sd(self) -> float:
        """sd of one full run's noise and of what the model cannot express, in units of y."""
        return self.scale * math.sqrt(math.exp(self.hyper.noise) + JITTER)


def settled(values: Array) -> Array:
    """Values with a far upper tail pulled in: one hopeless run must not set the scale of all others. Where
    most are equal, the scale is how far the best is below them; where none is, nothing is pulled."""
    if len(values) < 8:
        return values
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.75])
    spread = max(high - low, middle - low) or high - values.min() or np.ptp(values)
    return np.minimum(values, high + 2.0 * spread)


def triangle(kernel: Array, noise: Array) -> Array:
    """L [n, n] of kernel [n, n], which stays as it is, + noise (variances [n]) = L Lᵀ."""
    system = kernel.copy()
    np.fill_diagonal(system, kernel.diagonal() + noise)
    return np.asarray(np.linalg.cholesky(system), dtype=np.float64)


def quadratic(a: Array, columns: Array) -> Array:
    """cᵀ a c of each column c [n] of `columns` [n, m]. [m]"""
    return np.einsum("ij,ij->j", a @ columns, columns)


def solved(factor: Array, right: Array) -> Array:
    """x of L Lᵀ x = right, for the lower triangle `factor` = L."""
    return np.asarray(cho_solve((factor, True), right), dtype=np.float64)


def inverse(factor: Array) -> Array:
    """Of L Lᵀ, for the lower triangle `factor` = L: a third of the work of solving for the identity."""
    found: Any = lapack.dpotri(factor.T, lower=0)  # pyright: ignore
    upper: Array = np.triu(np.asarray(found[0], dtype=np.float64))
    return upper + np.triu(upper, 1).T
