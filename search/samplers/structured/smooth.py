"""Smooth: a Gaussian process beside the surrogate, for what has several optima, curved valleys and needles.

Kernel: 1 + trend · (numbers, their squares, choices) + amplitude · Matérn 5/2 of the distance over all
parameters, numbers scaled to a range of 1, the choices of a categorical at the distance 1 from each other, a
length scale for each parameter (ARD); what is inactive stands at one place. Where good values stand close
together below a wide range of others, what decides is too small for a stationary kernel to see: two such
processes are fitted, one to the values, one to logarithms of how far they are above the best (`bent`); the
better speaks, by log densities of the values themselves. Hyper-parameters maximise the marginal likelihood
times log-normal priors; length scales are expected to grow with the root of the number of active parameters
(Hvarfner et al. 2024). Which model proposes, the trials say: with Δ the difference of the summed leave-one-
out log densities (closed form: Rasmussen and Williams 2006, 5.4.2) of both models on equal trials and se its
standard error, the smooth one has the chance Φ(Δ/se). It proposes the largest log expected improvement
(Ament et al. 2023) over its best posterior mean among good trials; where neither model says more than a
constant does, it proposes what is far from all trials: noise is not chased.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize  # pyright: ignore
from scipy.special import erfcx, log_ndtr, ndtr  # pyright: ignore

from search.samplers.structured.beliefs import GROWTH, Beliefs, Data
from search.samplers.structured.local_search import Moves, climb
from search.samplers.structured.rows import Array, Mask, Rows
from search.samplers.structured.surrogate import Surrogate, inverse, solved, triangle

LEAST = 10  # complete trials without which it is not asked
LENGTH = -0.5  # of the logarithm of a length scale, for one parameter
LENGTH_WIDTH = 1.0
AMPLITUDE = 0.0  # the same of the amplitude; y has sd 1
AMPLITUDE_WIDTH = 1.0
TREND = math.log(0.1)  # and of the trend's variance
TREND_WIDTH = 1.5
NOISE = math.log(1e-4)  # and of the noise's variance
NOISE_WIDTH = 3.0
LEAST_NOISE = math.log(1e-8)
NEWEST = 5  # complete trials whose feasibility tells whether it may go on
ROUNDING = 1e-12  # of a kernel's trace, which the Cholesky decomposition needs to be defined; of values
TINY = 1e-100  # beside which no values are told apart
BENDS = (math.inf, 1.0, 0.1, 0.01)  # of the values, see `bent`
FIT_STEPS = 30  # of L-BFGS
WIDE = 20.0  # active parameters beyond which its chance falls, by the square: long steps of many fail more
MOST_ACTIVE = 40.0  # and beyond which it is not asked
DRAWS = 60  # uniform ones that a spread first trial is chosen from
POOL = 256  # uniform draws, good trials that are mutated, local searches
GOOD = 5
STARTS = 6
SEARCHED = 300  # parameters of all local searches together: what an ask can afford
NUDGES = (0.3, 0.1, 0.03, 0.01, 0.003)  # sds of mutations of numbers, on [-1, 1]
CLIMB = 10  # steps of the local search; of L-BFGS over the numbers
REFINE = 40
PENALTY = 4.0  # nats for each sd of a constraint's expected excess
ROOT5 = math.sqrt(5.0)


class Process:
    """The Gaussian process over rows: `observe`, then `moments` and `log_gain`."""

    def __init__(self, rows: Rows):
        sizes = rows.sizes
        self.rows = rows
        self.bend = math.inf  # of the values, see `bent`
        self.count = len(sizes)
        self.numbers = np.flatnonzero(sizes == 0)
        self.gates = np.flatnonzero(sizes == 2)
        many = [(k, c) for k, n in enumerate(sizes.tolist()) if n == 1 or n > 2 for c in range(n)]
        self.many = np.array([k for k, _ in many], dtype=np.int64)
        self.choice = np.array([c for _, c in many], dtype=np.float64)
        self.owner = np.concatenate([self.numbers, self.gates, self.many])
        self.centre = np.concatenate([np.full(self.count, LENGTH), [TREND, AMPLITUDE, NOISE]])
        self.widths = np.concatenate(
            [np.full(self.count, LENGTH_WIDTH), [TREND_WIDTH, AMPLITUDE_WIDTH, NOISE_WIDTH]]
        )
        self.hyper = self.centre.copy()  # logarithms: length scales, trend, amplitude, noise
        self._keep(np.zeros((0, len(self.owner))))
        self.y: Array = np.zeros(0)
        self.extra: Array = np.zeros(0)
        self.stretch: Array = np.zeros(0)  # logarithm of the derivative of y, as learned, by y of sd 1
        self.alive = 1.0  # mean number of active parameters
        self.best = 0.0  # what is to be improved on, y scaled

    def places(self, rows: Array) -> Array:
        """Coordinates [n, m] of rows [n, parameters], before the length scales."""
        active = self.rows.active(rows)
        numbers = np.where(active[:, self.numbers], 0.5 * rows[:, self.numbers], 0.0)
        gates = np.where(active[:, self.gates], rows[:, self.gates], 0.0)
        one_hot = (rows[:, self.many] == self.choice) & active[:, self.many]
        return np.concatenate([numbers, gates, one_hot * math.sqrt(0.5)], axis=1)

    def observe(self, rows: Array, y: Array, noise_sd: Array, *, running: Array, fit: bool) -> None:
        """Condition on y [n] of rows [n, parameters], `noise_sd` [n] beyond the common noise, and on the
        means at `running` rows (fantasies); `fit` the hyper-parameters first."""
        self._keep(self.places(rows))
        self.alive = max(float(self.rows.active(rows).sum(axis=1).mean()), 1.0)
        self.centre[: self.count] = LENGTH + 0.5 * math.log(self.alive)
        values, slope = bent(y, self.bend)
        scale = float(values.std()) or 1.0
        self.y = (values - values.mean()) / scale
        self.extra = (noise_sd * slope / scale) ** 2
        self.stretch = np.log(slope * (float(y.std()) or 1.0) / scale)
        if fit:
            self._fit()
        self._condition()
        if len(running):
            x = self.places(running)
            fantasy = self._kernel(x)[0] @ self.alpha
            self._keep(np.concatenate([self.x, x]))
            self.y = np.concatenate([self.y, fantasy])
            self.extra = np.concatenate([self.extra, np.zeros(len(x))])
            self._condition()

    def _keep(self, x: Array) -> None:
        """Coordinates of the data, and what no hyper-parameter changes in their kernel."""
        self.x, self.trends = x, self._trend(x)
        self._products = self.trends @ self.trends.T

    def _fit(self) -> None:
        limits = [(-5.0, 8.0)] * self.count + [(-9.0, 4.0), (-4.0, 4.0), (LEAST_NOISE, 2.0)]
        settings: dict[str, Any] = {"jac": True, "bounds": limits, "options": {"maxiter": FIT_STEPS}}
        found: list[Any] = [
            minimize(self.objective, start, method="L-BFGS-B", **settings)  # pyright: ignore
            for start in (self.hyper, self.centre)
        ]
        self.hyper = np.asarray(min(found, key=lambda f: f.fun).x, dtype=np.float64)

    def _condition(self) -> None:
        k = self._kernel(self.x)[0]
        self.factor = triangle(k, self._noise(k, self.hyper))
        self.alpha = solved(self.factor, self.y)

    def _noise(self, kernel: Array, hyper: Array) -> Array:
        return math.exp(hyper[-1]) + self.extra + ROUNDING * float(np.trace(kernel))

    def _kernel(self, a: Array, hyper: Array | None = None) -> tuple[Array, Array, Array]:
        """Covariances [q, n] of coordinates a [q, m] with the data, the trend's part of them, and the slope
        of the other part by the squared distance."""
        hyper = self.hyper if hyper is None else hyper
        own = a is self.x
        scales = np.exp(-hyper[self.owner])
        trend = math.exp(hyper[-3]) * (self._products if own else self._trend(a) @ self.trends.T)
        a = a * scales
        b = a if own else self.x * scales
        square = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2.0 * (a @ b.T)
        far = ROOT5 * np.sqrt(np.maximum(square, 0.0))
        decay = math.exp(hyper[-2]) * np.exp(-far)
        smooth = decay * (1.0 + far + far * far / 3.0)
        return 1.0 + trend + smooth, trend, -5.0 / 6.0 * decay * (1.0 + far)

    def _trend(self, x: Array) -> Array:
        """What the trend is linear in: numbers on [-1, 1], choices, squares. [n, m + numbers]"""
        u = 2.0 * x[:, : len(self.numbers)]
        return np.concatenate([u, x[:, len(self.numbers) :], u * u], axis=1)

    def _own(self, x: Array) -> Array:
        """Prior variances. [q]"""
        t = self._trend(x)
        return 1.0 + math.exp(self.hyper[-3]) * np.einsum("ij,ij->i", t, t) + math.exp(self.hyper[-2])

    def objective(self, hyper: Array) -> tuple[float, Array]:
        """(negative log of marginal likelihood × priors, its gradient)."""
        k, trend, slope = self._kernel(self.x, hyper)
        factor = triangle(k, self._noise(k, hyper))
        alpha = solved(factor, self.y)
        away = (hyper - self.centre) / self.widths
        value = 0.5 * self.y @ alpha + np.log(np.diag(factor)).sum() + 0.5 * away @ away
        a = np.outer(alpha, alpha) - inverse(factor)
        weights = a * slope
        x = self.x * np.exp(-hyper[self.owner])
        by_column = 2.0 * (weights.sum(axis=1) @ (x * x) - np.einsum("ij,ij->j", weights @ x, x))
        gradient = np.zeros(len(hyper))
        gradient[: self.count] = -2.0 * np.bincount(self.owner, by_column, minlength=self.count)
        gradient[-3] = float((a * trend).sum())
        gradient[-2] = float((a * (k - trend - 1.0)).sum())
        gradient[-1] = math.exp(hyper[-1]) * float(np.trace(a))
        return float(value), -0.5 * gradient + away / self.widths

    def moments(self, x: Array) -> tuple[Array, Array]:
        """Posterior mean and variance [q] at coordinates [q, m], y scaled."""
        k = self._kernel(x)[0]
        variance = self._own(x) - np.einsum("ij,ji->i", k, solved(self.factor, k.T))
        return k @ self.alpha, np.maximum(variance, 1e-12)

    def log_gain(self, x: Array) -> Array:
        """Logarithm [q] of the expected improvement over `best`, y scaled."""
        mean, variance = self.moments(x)
        sd = np.sqrt(variance)
        return np.log(sd) + log_improvement((self.best - mean) / sd)

    def log_gain_slope(self, x: Array) -> tuple[float, Array]:
        """(`log_gain`, its gradient [m]) at one place x [m]."""
        k, _, slope = self._kernel(x[None, :])
        weights = solved(self.factor, k[0])
        mean = float(k[0] @ self.alpha)
        sd = math.sqrt(max(float(self._own(x[None, :])[0] - k[0] @ weights), 1e-12))
        z = (self.best - mean) / sd
        log_h = float(log_improvement(np.array([z]))[0])
        by_mean = -math.exp(float(log_ndtr(z)) - log_h) / sd
        by_sd = math.exp(-0.5 * z * z - 0.5 * math.log(2.0 * math.pi) - log_h) / sd
        each = by_mean * self.alpha - by_sd * weights / sd  # by the covariance with each trial
        away = (x - self.x) * np.exp(-2.0 * self.hyper[self.owner])
        gradient = 2.0 * ((each * slope[0]) @ away)
        t = self._trend(x[None, :])[0]
        by_trend = math.exp(self.hyper[-3]) * (each @ self.trends + by_sd / sd * t)
        count = len(self.numbers)
        gradient[:count] += 2.0 * by_trend[:count] + 8.0 * x[:count] * by_trend[len(x) :]
        gradient[count:] += by_trend[count : len(x)]
        return math.log(sd) + log_h, gradient


def log_improvement(z: Array) -> Array:
    """log(φ(z) + z Φ(z)), exact far below 0."""
    low = np.minimum(z, -1.0)
    tail = np.sqrt(0.5 * np.pi) * erfcx(-low / math.sqrt(2.0))  # Φ(z) / φ(z)
    lost = np.where(low > -1e4, np.log1p(np.maximum(low * tail, -1.0 + 1e-16)), -2.0 * np.log(-low))
    far = -0.5 * low * low - 0.5 * math.log(2.0 * math.pi) + lost
    high = np.maximum(z, -1.0)
    near = np.log(np.exp(-0.5 * high * high) / math.sqrt(2.0 * math.pi) + high * ndtr(high))
    return np.where(z > -1.0, near, far)


def bent(y: Array, share: float) -> tuple[Array, Array]:
    """(log(share + how far each y is above the lowest, over that of the first ones' median), its derivative
    [n]) of y [n]; y itself for a share of inf, and where the unit is rounding. The unit is of the first
    values: one that shrank with the search would resolve ever less, and let nothing be expected below it: no
    needle."""
    low = float(y[:LEAST].min())
    middle = float(np.median(y[:LEAST]))
    unit = middle - low
    if share == math.inf or unit <= max(TINY, ROUNDING * abs(low), ROUNDING * abs(middle)):
        return y, np.ones(len(y))
    away = share + (y - y.min()) / unit
    return np.log(away), 1.0 / (away * unit)


def normal_bend(y: Array) -> float:
    """The share of BENDS under which y is most like normal numbers, by likelihood."""

    def loss(share: float) -> float:
        values, slope = bent(y, share)
        return math.log(max(TINY, float(values.std()))) - float(np.log(slope).mean())

    return min(BENDS, key=loss)


def left_out(factor: Array, y: Array) -> Array:
    """Log density [n] of each y given the others; `factor` is the triangle of their covariance."""
    precision = inverse(factor)
    variance = 1.0 / precision.diagonal()
    away = (precision @ y) * variance
    return -0.5 * (away**2 / variance + np.log(2.0 * np.pi * variance))


def foretold(one: Process, data: Data) -> Array:
    """Log density [n] of each value, scaled to sd 1, by a process fitted to it and given the others."""
    one.observe(data.rows, data.y, data.noise_sd, running=data.running[:0], fit=True)
    return left_out(one.factor, one.y) + one.stretch


def chance_of(gained: Array) -> float:
    """Φ(sum / its standard error) of log densities [n] that one model has beyond another."""
    return float(ndtr(float(gained.sum()) / (math.sqrt(len(gained)) * float(gained.std()) + 1e-12)))


@dataclass
class Smooth:
    """For one sampler: `chance`, then perhaps `propose`, which alone reads trials that came after a fit."""

    process: Process | None = None  # the one that foretells better: of the values, or of bent ones
    _pair: tuple[Process, ...] = ()  # the two
    _fitted: int = 0  # trials that the hyper-parameters were fitted to
    _chance: float = 0.0  # by that fit
    _doubt: float = 0.0  # the probability that a constant says as much

    def chance(self, beliefs: Beliefs) -> float:
        """The probability that it should propose rather than the surrogate."""
        data = beliefs.data
        count = len(data.y)
        if not float(data.y.std()):
            return 0.0
        if self.process is None or self.process.rows is not beliefs.rows:
            self._pair = Process(beliefs.rows), Process(beliefs.rows)
            self._fitted = 0
        due = count >= max(self._fitted + 3, math.ceil(GROWTH * self._fitted)) or count < self._fitted
        if due:
            self._fitted = count
            self._compare(data, beliefs.objective.model)
        return self._share * beliefs.recently_kept(NEWEST) ** 2  # constraints: only the surrogate knows them

    def _compare(self, data: Data, model: Surrogate) -> None:
        """Fit, and ask all models for each value without it."""
        count = len(data.y)
        whole = data.noise_sd == 0.0
        plain, logs = self._pair
        own = foretold(plain, data)
        self.process = plain
        logs.bend = normal_bend(data.y)
        if logs.bend < math.inf:
            other = foretold(logs, data)
            if other[whole].sum() > own[whole].sum():
                self.process = logs
                own = other
        rival = self._surrogate(model, count, plain)
        flat = left_out(triangle(np.ones((count, count)), 1.0 + plain.extra), plain.y)
        narrow = min(1.0, WIDE / plain.alive) ** 2
        chance = chance_of((own - rival)[whole])
        self._chance = narrow * chance
        self._doubt = narrow * chance_of((flat - (own if chance > 0.5 else rival))[whole])

    @property
    def _share(self) -> float:
        """Of proposals that are not the surrogate's."""
        return self._chance + (1.0 - self._chance) * self._doubt

    @staticmethod
    def _surrogate(model: Surrogate, count: int, one: Process) -> Array:
        """The surrogate's log densities of the same values."""
        kernel = model._kernel(model.hyper)[0][:count, :count]  # pyright: ignore[reportPrivateUsage]
        noise = model._noise(model.hyper)[:count]  # pyright: ignore[reportPrivateUsage]
        return left_out(triangle(kernel, noise), one.y)

    def propose(
        self, beliefs: Beliefs, rng: np.random.Generator, accepts: Callable[[Array], bool]
    ) -> Array | None:
        """The accepted row with the best gain that was found; None without one."""
        one = self.process
        best = beliefs.incumbents(GOOD)
        if one is None or not best:
            return None
        if rng.random() * self._share < self._doubt:
            return spread(beliefs, rng, accepts)
        data = beliefs.data
        one.observe(data.rows, data.y, data.noise_sd, running=data.running, fit=False)
        one.best = float(one.moments(one.places(beliefs.seen[best]))[0].min())

        def score(rows: Array) -> Array:
            return PENALTY * beliefs.excess(beliefs.columns_of(rows)) - one.log_gain(one.places(rows))

        pool = np.concatenate(
            [beliefs.rows.uniform(rng, POOL), mutated(beliefs.seen[best], beliefs.rows, rng)]
        )
        pool = pool[np.unique(one.places(pool), axis=0, return_index=True)[1]]  # each configuration once
        order = np.argsort(score(pool))
        starts = min(STARTS, max(1, SEARCHED // one.count))
        ends = pool[order[:starts]]
        free = np.ones(len(beliefs.rows.names), dtype=bool)
        if len(one.numbers) < one.count:
            ends = climb(ends, score, Moves(beliefs.rows, free), rng=rng, steps=CLIMB)
        if not beliefs.constraints:
            ends = np.array([self._refined(one, row) for row in ends])
        rows = np.concatenate([ends, pool[order]])
        rows[: len(ends)] = beliefs.rows.encode([beliefs.rows.decode(row) for row in ends])  # rounded
        ranked = np.concatenate([np.argsort(score(rows[: len(ends)])), np.arange(len(ends), len(rows))])
        return next((rows[k] for k in ranked if accepts(rows[k])), None)

    @staticmethod
    def _refined(one: Process, row: Array) -> Array:
        """`row`, its active numbers moved to a local optimum."""
        active: Mask = one.rows.active(row[None, :])[0]
        moving = np.flatnonzero(active[one.numbers])
        if not len(moving):
            return row
        x = one.places(row[None, :])[0]

        def cost(u: Array) -> tuple[float, Array]:
            at = x.copy()
            at[moving] = u
            value, slope = one.log_gain_slope(at)
            return -value, -slope[moving]

        settings: dict[str, Any] = {"jac": True, "options": {"maxiter": REFINE}}
        settings["bounds"] = [(-0.5, 0.5)] * len(moving)
        found: Any = minimize(cost, x[moving], method="L-BFGS-B", **settings)  # pyright: ignore
        row = row.copy()
        row[one.numbers[moving]] = 2.0 * np.asarray(found.x, dtype=np.float64)  # pyright: ignore
        return row


def spread(beliefs: Beliefs, rng: np.random.Generator, accepts: Callable[[Array], bool]) -> Array | None:
    """The accepted one of some uniform draws that is farthest from all trials; None without one. The ends of
    a range count as neighbours, else the first trials would crowd into the corners."""
    one = Process(beliefs.rows)
    known = np.concatenate([beliefs.data.rows, beliefs.data.running])
    rows = beliefs.rows.uniform(rng, DRAWS)
    if len(known):
        away = np.abs(one.places(rows)[:, None, :] - one.places(known))
        count = len(one.numbers)
        away[:, :, :count] = np.minimum(away[:, :, :count], 1.0 - away[:, :, :count])
        rows = rows[np.argsort(-(away * away).sum(axis=2).min(axis=1))]
    return next((row for row in rows if accepts(row)), None)


def mutated(good: Array, rows: Rows, rng: np.random.Generator) -> Array:
    """Good rows with about one, two or four parameters drawn anew, or with their numbers moved a little."""
    found: list[Array] = []
    share = np.array([1.0, 2.0, 4.0]) / max(good.shape[1], 1)
    for row in good:
        anew = rows.uniform(rng, 30)
        moved = rng.random(anew.shape) < np.repeat(share, 10)[:, None]
        found.append(np.where(moved, anew, row))
        near = np.repeat(row[None, :], 2 * len(NUDGES), axis=0)
        numbers = np.flatnonzero(rows.sizes == 0)
        steps = rng.standard_normal((len(near), len(numbers))) * np.repeat(NUDGES, 2)[:, None]
        near[:, numbers] = (near[:, numbers] + steps).clip(-1.0, 1.0)
        found.append(near)
    return np.concatenate(found)
