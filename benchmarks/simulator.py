"""Instance(seed, variant): a synthetic search problem with the shape of the real one, and its true optimum.

62 parameters (10 always on, 25 gates, 27 settings that mean something only while their gate is on), 14
pairwise interactions, two pairs of gates that exclude each other, four gates that harm. A run has three
stages, train, quantise and evaluate, and every parameter belongs to one of them. Four constraints: artifact
size and evaluation time, which a calculator predicts to 1.2 % and 6 %, memory and divergence, which nothing
predicts; 47 % of uniform draws keep all four. Values are bits per byte (lower is better) with seed noise
whose sd differs by configuration (median 0.00065). Half-way reports are un-annealed: their rank correlation
with the final value rises from 0.33 at 1/32 of the run to 0.62 at one half.

Variants: `three_way` adds interactions of three parameters; `non_quadratic` bends every numeric response
(ramps, cliffs, skewed valleys); `wrong_calculator` lets both calculators err by 5 %; `rank_flip` makes early
order contradict the final one; `null` has no effects at all. Every seed is another problem.

Rows: a configuration as `Instance.rows` encodes it, float64 [n, 62]: gates 0 or 1, categoricals the index of
the choice, numbers scaled to [-1, 1] (in the logarithm where the range is logarithmic).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from scipy.special import expit, ndtri

from search.common.conditions import INACTIVE_CODE, OFF_CODE, ON_CODE, Conditions
from search.common.numeric import place, value_at

Array = NDArray[np.float64]
Params = Mapping[str, Any]
VARIANTS = ("base", "three_way", "non_quadratic", "wrong_calculator", "rank_flip", "null")
STAGES: tuple[str, ...] = ("train", "quantise", "evaluate")  # upstream first
CONSTRAINTS: tuple[str, ...] = ("size", "eval_time", "memory", "divergence")
CALCULATED: tuple[str, ...] = ("size", "eval_time")  # what the calculators predict
CALCULATOR_SD = {"size": 0.012, "eval_time": 0.06}  # of log(predicted / true)
FEASIBLE = 0.47  # share of uniform draws that keep every constraint
NOISE = 0.00065  # BPB, median seed sd (prior art: 20 submissions with at least three seeds)
TRAIN_SECONDS, QUANTISE_SECONDS = 600.0, 60.0
EVAL_LIMIT = 600.0  # seconds
SIZE_SPREAD = 0.0005  # sd over seeds of log(size): a median of 8 kB in 16 MB
PROGRESS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
ORDER = (0.33, 0.40, 0.47, 0.55, 0.62, 1.0)  # correlation with the final value at PROGRESS


@dataclass(frozen=True)
class Parameter:
    """One dimension of the space."""

    name: str
    dist: BaseDistribution
    stage: str
    gate: str = ""  # the gate that must be on; a gate: the gate that must be off

    @property
    def is_gate(self) -> bool:
        return isinstance(self.dist, CategoricalDistribution) and self.dist.choices == (False, True)

    @property
    def is_numeric(self) -> bool:
        return not isinstance(self.dist, CategoricalDistribution)


@dataclass(frozen=True)
class Run:
    """What one run of a configuration showed. `value` is None when it broke off (memory, divergence)."""

    value: float | None  # val_bpb
    constraints: dict[str, float]  # relative violations, at most 0 where kept; only those that were measured
    seconds: dict[str, float]  # of each stage that was computed, recorded (as if nothing were cached)
    noise_sd: float  # of value, BPB

    @property
    def feasible(self) -> bool:
        return self.value is not None and all(v <= 0 for v in self.constraints.values())


@dataclass
class StageCache:
    """Seconds that are really spent when finished stages are kept: `spend(instance, params, run)`."""

    known: set[tuple[str, ...]] = field(default_factory=set)

    def spend(self, instance: Instance, params: Params, run: Run) -> float:
        """GPU seconds of a run; what it computed is known from then on."""
        keys = instance.stage_keys(params)
        spent = sum(s for stage, s in run.seconds.items() if keys[stage] not in self.known)
        self.known |= {keys[stage] for stage in run.seconds if run.value is not None or stage != "evaluate"}
        return spent


def _numeric(rng: np.random.Generator) -> BaseDistribution:
    kind = rng.integers(4)
    if kind == 0:
        return FloatDistribution(1e-4, 1e-1, log=True)
    if kind == 1:
        return IntDistribution(1, int(rng.integers(6, 13)))
    if kind == 2:
        return FloatDistribution(0.01, 1.0, log=True)
    return FloatDistribution(0.0, 1.0)


ALWAYS: tuple[tuple[str, BaseDistribution, str], ...] = (
    ("matrix_lr", FloatDistribution(0.005, 0.08, log=True), "train"),
    ("embed_lr", FloatDistribution(0.05, 1.0, log=True), "train"),
    ("scalar_lr", FloatDistribution(0.005, 0.08, log=True), "train"),
    ("num_layers", IntDistribution(6, 14), "train"),
    ("model_dim", IntDistribution(384, 768, step=32), "train"),
    ("mlp_mult", FloatDistribution(1.5, 4.0), "train"),
    ("warmdown_frac", FloatDistribution(0.1, 0.9), "train"),
    ("muon_momentum", FloatDistribution(0.85, 0.99), "train"),
    ("weight_decay", FloatDistribution(1e-3, 0.3, log=True), "train"),
    ("bits", CategoricalDistribution(("int5", "int6", "int8")), "quantise"),
)
GATES = {"train": 15, "quantise": 4, "evaluate": 6}
SETTINGS = {"train": 15, "quantise": 5, "evaluate": 7}  # conditional parameters of each stage
CATEGORICAL = 4  # of the conditional parameters
SIZES = ("num_layers", "model_dim", "mlp_mult")


def parameters(rng: np.random.Generator) -> list[Parameter]:
    """The 62 parameters of an instance: what is always on, the gates, the settings under them."""
    found = [Parameter(name, dist, stage) for name, dist, stage in ALWAYS]
    gates = [
        Parameter(f"{s}_{k}", CategoricalDistribution((False, True)), s)
        for s in GATES
        for k in range(GATES[s])
    ]
    for first in (
        rng.choice(GATES["train"] // 2, 2, replace=False) * 2
    ):  # the second is asked if the first is off
        gates[first + 1] = Parameter(gates[first + 1].name, gates[first + 1].dist, "train", gates[first].name)
    settings: list[Parameter] = []
    categorical = set(rng.choice(sum(SETTINGS.values()), CATEGORICAL, replace=False).tolist())
    for stage, count in SETTINGS.items():
        owners = [g.name for g in gates if g.stage == stage]
        for _ in range(count):
            gate = str(rng.choice(owners))
            choice = CategoricalDistribution(("a", "b", "c"))
            dist = choice if len(settings) in categorical else _numeric(rng)
            number = sum(p.gate == gate for p in settings)
            settings.append(Parameter(f"{gate}.s{number}", dist, stage, gate))
    return found + gates + settings


def respond(u: Array, shape: Array, kind: NDArray[np.int64]) -> Array:
    """Loss of a number at distance u from its best: 0 there, about 1 at distance 1. [n, numbers]"""
    if not kind.any():
        return u * u
    ramp = np.sqrt(u * u + 0.01) - 0.1
    cliff = expit(8.0 * (np.abs(u) - 0.6)) - expit(-4.8)
    skewed = np.where(u * np.sign(shape) > 0, 0.25 * u * u, np.abs(u) ** 1.5)
    return np.select([kind == 0, kind == 1, kind == 2], [u * u, ramp, cliff], skewed)


class Instance:
    """One problem. Deterministic by (seed, variant); a run's noise comes from the generator it is given."""

    def __init__(self, seed: int, variant: str = "base"):
        if variant not in VARIANTS:
            raise ValueError(f"A variant must be one of {', '.join(VARIANTS)}, but got {variant!r}.")
        self.seed, self.variant = seed, variant
        rng = np.random.default_rng([seed, 62])
        self.parameters = parameters(rng)
        self.names = [p.name for p in self.parameters]
        self.at = {name: k for k, name in enumerate(self.names)}
        self.space = {p.name: p.dist for p in self.parameters}
        self.stage_of = {p.name: p.stage for p in self.parameters}
        self.gates = np.array([k for k, p in enumerate(self.parameters) if p.is_gate])
        self.numbers = np.array([k for k, p in enumerate(self.parameters) if p.is_numeric])
        self.choices = np.array(
            [k for k, p in enumerate(self.parameters) if not p.is_gate and not p.is_numeric]
        )
        self._owner = np.array([self.at[p.gate] if p.gate else -1 for p in self.parameters])
        owned = self._owner >= 0
        self._second = np.flatnonzero(
            owned & np.isin(np.arange(len(owned)), self.gates)
        )  # of exclusive pairs
        self._settings = np.flatnonzero(owned & ~np.isin(np.arange(len(owned)), self.gates))
        self._draw_effects(rng)
        self._draw_costs(rng)
        self._salt = rng.uniform(0.5, 1.5, (4, len(self.names)))
        draws = self.uniform_rows(np.random.default_rng([seed, 1]), 4000)
        self._set_limits(draws)
        self._set_curves(rng, draws)
        self.published = self._publish(np.random.default_rng([seed, 2]))

    # -- what the instance is made of

    def _draw_effects(self, rng: np.random.Generator) -> None:
        size = len(self.names)
        null = self.variant == "null"
        self.gate_effect = np.zeros(size)
        self.gate_effect[self.gates] = -rng.lognormal(math.log(0.0020), 0.7, len(self.gates))
        harmful = rng.choice(self.gates, 4, replace=False)
        self.gate_effect[harmful] = rng.uniform(0.001, 0.005, 4)
        self.best = rng.uniform(-0.8, 0.8, size)
        self.best[[self.at[n] for n in SIZES]] = 1.3  # larger is better; the size constraint says how large
        self.curvature = np.zeros(size)
        self.curvature[self.numbers] = rng.lognormal(math.log(0.0022), 0.6, len(self.numbers))
        self.shape, quadratic = rng.normal(size=size), np.zeros(size, dtype=np.int64)
        kinds = rng.integers(1, 4, size)
        self.kind = kinds if self.variant == "non_quadratic" else quadratic
        self.choice_effect = np.zeros((size, 3))
        self.choice_effect[self.choices] = rng.normal(0.0, 0.0015, (len(self.choices), 3))
        self.choice_effect[self.at["bits"]] = (0.005, 0.0015, 0.0)  # fewer bits, worse and smaller
        self.pairs = self._draw_terms(rng, ("gg",) * 6 + ("gn",) * 5 + ("nn",) * 3, 0.0022)
        triples = self._draw_terms(rng, ("ggg",) * 4 + ("ggn",) * 4, 0.0045)
        self.triples = triples if self.variant == "three_way" else []
        self.scale = 0.0 if null else 1.0

    def _draw_terms(
        self, rng: np.random.Generator, kinds: Iterable[str], sd: float
    ) -> list[tuple[tuple[int, ...], float]]:
        """(indices, coefficient) of products; `g` stands for a gate, `n` for a number."""
        pools = {"g": self.gates, "n": self.numbers}
        terms: list[tuple[tuple[int, ...], float]] = []
        for kind in kinds:
            while True:
                chosen = tuple(int(rng.choice(pools[k])) for k in kind)
                if len(set(chosen)) == len(chosen) and chosen not in [t[0] for t in terms]:
                    break
            terms.append((chosen, float(rng.normal(0.0, sd))))
        return terms

    def _draw_costs(self, rng: np.random.Generator) -> None:
        """Slopes of the logarithm of size, evaluation seconds and memory, and of the divergence score."""
        size = len(self.names)
        stage = np.array([p.stage for p in self.parameters])
        gate, number = np.isin(np.arange(size), self.gates), np.isin(np.arange(size), self.numbers)
        self.slopes = {name: np.zeros(size) for name in CONSTRAINTS}
        for name, value in zip(SIZES, (0.35, 0.30, 0.22), strict=True):
            self.slopes["size"][self.at[name]] = value
            self.slopes["eval_time"][self.at[name]] = 0.6 * value
            self.slopes["memory"][self.at[name]] = 0.7 * value
        self.slopes["size"] += gate * (stage != "evaluate") * rng.uniform(0.0, 0.04, size)
        self.slopes["size"] += gate * (stage == "quantise") * rng.uniform(-0.12, 0.02, size)
        self.slopes["size"][self.at["bits"]] = 0.18  # for each step of the choice
        heavy = gate * (stage == "evaluate")
        self.slopes["eval_time"] += heavy * rng.uniform(0.1, 0.9, size)
        self.slopes["eval_time"] += number * (stage == "evaluate") * rng.uniform(0.0, 0.4, size)
        self.slopes["memory"] += gate * (stage == "train") * rng.uniform(0.0, 0.12, size)
        hot = [self.at[n] for n in ("matrix_lr", "scalar_lr", "muon_momentum")]
        self.slopes["divergence"][hot] = (1.0, 0.4, 0.5)
        shaky = rng.choice(np.flatnonzero(gate * (stage == "train")), 4, replace=False)
        self.slopes["divergence"][shaky] = rng.uniform(-0.5, 0.7, 4)
        self.noise_slopes = gate * rng.normal(0.0, 0.16, size)
        self.bias = {name: gate * rng.normal(0.0, 0.3, size) for name in CALCULATED}  # of the calculators
        self.wrong = float(rng.choice((-1.0, 1.0))) * 0.05 if self.variant == "wrong_calculator" else 0.0

    def _set_limits(self, draws: Array) -> None:
        """Limits at quantiles of uniform draws, such that FEASIBLE of the draws keep all four."""
        x = self.features(draws)
        logs = np.stack([x @ self.slopes[name] for name in CONSTRAINTS], axis=1)
        low, high = 0.5, 1.0
        for _ in range(40):
            q = (low + high) / 2
            limits = np.array(
                [np.quantile(logs[:, k], 1 - (1 - q) * w) for k, w in enumerate((2, 1, 0.7, 0.7))]
            )
            low, high = (low, q) if (logs <= limits).all(axis=1).mean() > FEASIBLE else (q, high)
        self.limits = dict(zip(CONSTRAINTS, limits.tolist(), strict=True))
        noise = x @ self.noise_slopes
        self._noise_level = math.log(NOISE) - float(np.median(noise))
        self.bias_scale = {n: 0.5 / max(1e-9, float((x @ self.bias[n]).std())) for n in CALCULATED}
        self.bias_mean = {n: float((x @ self.bias[n]).mean()) for n in CALCULATED}

    def _set_curves(self, rng: np.random.Generator, draws: Array) -> None:
        """What early values hold besides the final one: the schedule's part, and a chance part."""
        slopes = np.zeros(len(self.names))
        slopes[[self.at[n] for n in ("matrix_lr", "warmdown_frac", "weight_decay")]] = (1.0, -1.2, 0.5)
        slopes[self.gates] = rng.normal(0.0, 0.35, len(self.gates))
        self._early = slopes
        values = self.true(draws)
        self.mean, self.sd = float(values.mean()), float(values.std()) or 0.012
        early = self.features(draws) @ slopes
        self._early_mean = float(early.mean())
        self._early_value = float(np.mean(early * (values - self.mean))) / self.sd**2
        self._early_sd = float((early - self._early_value * (values - self.mean)).std())

    # -- configurations

    def walk(self, pick: Callable[[str], Any]) -> dict[str, Any]:
        """The active parameters, in order: `pick(name)` gives a value (define-by-run, as a trial would)."""
        found: dict[str, Any] = {}
        for p in self.parameters:
            if p.gate and bool(found.get(p.gate, False)) == p.is_gate:
                continue
            found[p.name] = pick(p.name)
        return found

    def keep_active(self, params: Params) -> dict[str, Any]:
        """`params` without what means nothing under its gates."""
        return self.walk(lambda name: params[name])

    def conditions(self) -> Conditions:
        """The same as a table: settings while their gate is on, a second gate while the first is off."""
        return {
            p.name: {p.gate: frozenset((INACTIVE_CODE, OFF_CODE) if p.is_gate else (ON_CODE,))}
            for p in self.parameters
            if p.gate
        }

    def uniform_rows(self, rng: np.random.Generator, count: int) -> Array:
        """Uniform draws of every parameter; inactive ones are there and count for nothing. [count, 62]"""
        rows = rng.uniform(-1.0, 1.0, (count, len(self.names)))
        rows[:, self.gates] = rng.integers(0, 2, (count, len(self.gates)))
        rows[:, self.choices] = rng.integers(0, 3, (count, len(self.choices)))
        return rows

    def rows(self, configurations: Iterable[Params]) -> Array:
        """Configurations as rows; a missing parameter is 0 (off, the middle of its range)."""
        return np.array(
            [
                [place(p.dist, c[p.name]) if p.name in c else 0.0 for p in self.parameters]
                for c in configurations
            ]
        )

    def params(self, row: Array) -> dict[str, Any]:
        """The active parameters of a row; numbers rounded to what the distribution holds."""
        values = {p.name: value_at(p.dist, float(v)) for p, v in zip(self.parameters, row, strict=True)}
        return self.keep_active(values)

    def active(self, rows: Array) -> NDArray[np.bool_]:
        """Which parameters mean something. [n, 62]"""
        found = np.ones(rows.shape, dtype=bool)
        found[:, self._second] = rows[:, self._owner[self._second]] < 0.5
        found[:, self._settings] = ((rows > 0.5) & found)[:, self._owner[self._settings]]
        return found

    def features(self, rows: Array) -> Array:
        """Rows with 0 for what is inactive."""
        return np.where(self.active(rows), rows, 0.0)

    # -- the truth

    def true(self, rows: Array) -> Array:
        """val_bpb without noise. [n]"""
        active = self.active(rows)
        x = np.where(active, rows, 0.0)
        total = x[:, self.gates] @ self.gate_effect[self.gates]
        n = self.numbers
        loss = respond(rows[:, n] - self.best[n], self.shape[n], self.kind[n])
        total += np.where(active[:, n], loss, 0.0) @ self.curvature[n]
        for k in self.choices:
            total += np.where(active[:, k], self.choice_effect[k][np.clip(rows[:, k], 0, 2).astype(int)], 0.0)
        for indices, coefficient in (*self.pairs, *self.triples):
            total += coefficient * np.prod(x[:, list(indices)], axis=1)
        return 1.15 + self.scale * total

    def noise_sd(self, rows: Array) -> Array:
        """Seed sd of val_bpb. [n]"""
        return np.exp(self._noise_level + self.features(rows) @ self.noise_slopes)

    def violations(self, rows: Array) -> Array:
        """Relative violations in the order of CONSTRAINTS, at most 0 where kept. [n, 4]"""
        x = self.features(rows)
        return np.stack([np.expm1(x @ self.slopes[c] - self.limits[c]) for c in CONSTRAINTS], axis=1)

    def feasible(self, rows: Array) -> NDArray[np.bool_]:
        """Whether every constraint is kept. [n]"""
        return np.all(self.violations(rows) <= 0, axis=1)

    def predicted(self, rows: Array) -> Array:
        """The calculators' violations, in the order of CALCULATED. [n, 2]"""
        x = self.features(rows)
        found: list[Array] = []
        for k, name in enumerate(CALCULATED):
            own = self._odd(x, k) * math.sqrt(
                0.75
            )  # a quarter of the error's variance is a bias of the gates
            bias = (x @ self.bias[name] - self.bias_mean[name]) * self.bias_scale[name]
            error = CALCULATOR_SD[name] * (own + bias) + self.wrong
            found.append(np.expm1(x @ self.slopes[name] - self.limits[name] + error))
        return np.stack(found, axis=1)

    def seconds(self, rows: Array) -> Array:
        """Seconds of each stage, in the order of STAGES. [n, 3]"""
        x = self.features(rows)
        quantising = [k for k in self.gates if self.parameters[k].stage == "quantise"]
        train = np.full(len(rows), TRAIN_SECONDS)
        quantise = QUANTISE_SECONDS * (0.5 + 0.25 * x[:, quantising].sum(axis=1))
        over = np.exp(x @ self.slopes["eval_time"] - self.limits["eval_time"])
        return np.stack([train, quantise, np.clip(EVAL_LIMIT * over, 30.0, 1.1 * EVAL_LIMIT)], axis=1)

    def predicted_seconds(self, rows: Array) -> Array:
        """What the calculator says of `seconds`. [n, 3]"""
        found = self.seconds(rows)
        found[:, 2] = np.clip(EVAL_LIMIT * (1.0 + self.predicted(rows)[:, 1]), 30.0, 1.1 * EVAL_LIMIT)
        return found

    def stage_keys(self, params: Params) -> dict[str, tuple[str, ...]]:
        """stage -> identity of its result: the active parameters of it and of the stages before it."""
        keys: dict[str, tuple[str, ...]] = {}
        for k, stage in enumerate(STAGES):
            upstream = STAGES[: k + 1]
            own = (f"{n}={v!r}" for n, v in sorted(params.items()) if self.stage_of[n] in upstream)
            keys[stage] = (stage, *own)
        return keys

    def curve(self, rows: Array, progress: float) -> Array:
        """val_bpb without noise at a share of the run, un-annealed before its end. [n]"""
        final = self.true(rows)
        order = float(np.interp(math.log2(progress), np.log2(PROGRESS), ORDER))
        x = self.features(rows)
        known = x @ self._early - self._early_mean - self._early_value * (final - self.mean)
        early = 0.9 * known / self._early_sd + 0.44 * self._odd(x, 2)
        sign = -1.0 if self.variant == "rank_flip" and progress <= 0.5 else 1.0
        drop = 0.08 * (progress**-0.35 - 1.0) + (0.02 if progress < 1.0 else 0.0)
        lag = self.sd * math.sqrt(1.0 / order**2 - 1.0)
        return self.mean + sign * (final - self.mean) + drop + lag * early

    def _odd(self, x: Array, salt: int) -> Array:
        """A standard normal number of each configuration that no model can foresee. [n]"""
        phase = np.sin((x * self._salt[salt]) @ np.arange(1.0, x.shape[1] + 1) * 12.9898) * 43758.5453
        return ndtri(np.clip(phase - np.floor(phase), 1e-6, 1 - 1e-6))

    # -- runs

    def run(self, params: Params, rng: np.random.Generator) -> Run:
        """One run with a seed of its own. Memory and divergence break it off; oversize does not."""
        row = self.rows([params])
        sd = float(self.noise_sd(row)[0])
        over = dict(zip(CONSTRAINTS, self.violations(row)[0].tolist(), strict=True))
        over["size"] = (1.0 + over["size"]) * math.exp(SIZE_SPREAD * rng.standard_normal()) - 1.0
        seconds = dict(zip(STAGES, self.seconds(row)[0].tolist(), strict=True))
        value = float(self.true(row)[0]) + sd * float(rng.standard_normal())
        if over["memory"] > 0:
            return Run(None, {"memory": over["memory"]}, {"train": 0.05 * seconds["train"]}, sd)
        if over["divergence"] > 0:
            broken = {"memory": over["memory"], "divergence": 1.0}
            return Run(None, broken, {"train": 0.4 * seconds["train"]}, sd)
        return Run(value, {**over, "divergence": -1.0}, seconds, sd)

    def report(self, params: Params, progress: float, run: Run) -> float:
        """The value that `run` reported at a share of itself: it shares the run's noise."""
        row = self.rows([params])
        noise = 0.0 if run.value is None else run.value - float(self.true(row)[0])
        return float(self.curve(row, progress)[0]) + noise

    def admits(self, params: Params, *, margin: float = 0.0) -> bool:
        """Whether both calculators find the configuration within its limits, less a relative margin."""
        return bool((self.predicted(self.rows([params]))[0] <= -margin).all())

    def _publish(self, rng: np.random.Generator) -> dict[str, Any]:
        """A published configuration: feasible, better than chance, far from the best."""
        rows = self.uniform_rows(rng, 400)
        knows = rng.random(rows.shape) < 0.5
        good = np.where(self.gate_effect < 0, 1.0, 0.0)
        rows[:, self.gates] = np.where(knows, good, rows)[:, self.gates]
        rows[:, self.numbers] = np.where(knows, 0.6 * self.best, rows)[:, self.numbers].clip(-1.0, 1.0)
        rows = rows[self.feasible(rows)]
        return self.params(rows[np.argsort(self.true(rows))[len(rows) // 5]])

    @cached_property
    def optimum(self) -> float:
        """The lowest true value among feasible configurations that a strong local search found."""
        return float(self.true(self.optimum_row[None, :])[0])

    @cached_property
    def optimum_row(self) -> Array:
        """The row of the optimum: descents from many starts, then again from what they found."""
        rng = np.random.default_rng([self.seed, 3])
        starts = self.uniform_rows(rng, 4000)
        starts = starts[self.feasible(starts)]
        starts = starts[np.argsort(self.true(starts))[:12]]
        found = np.array([self._descend(row, rng) for row in starts])
        found = found[np.argsort(self.true(found))[:4]]
        for _ in range(2):
            found = np.array([self._descend(self._shaken(row, rng), rng, else_=row) for row in found])
        return found[int(np.argmin(self.true(found)))]

    def _shaken(self, row: Array, rng: np.random.Generator) -> Array:
        rows = np.repeat(row[None, :], 50, axis=0)
        where = rng.random(rows.shape) < 0.08
        rows = np.where(where, self.uniform_rows(rng, 50), rows)
        kept = rows[self.feasible(rows)]
        return kept[0] if len(kept) else row

    def _descend(self, row: Array, rng: np.random.Generator, *, else_: Array | None = None) -> Array:
        """The best feasible neighbour, again and again: one or two coordinates at once, ever finer."""
        best, width = float(self.true(row[None, :])[0]), 0.5
        while width > 0.004:
            tried = self._neighbours(row, rng, width)
            tried = tried[self.feasible(tried)]
            values = self.true(tried) if len(tried) else np.array([np.inf])
            k = int(np.argmin(values))
            if values[k] < best - 1e-7:
                row, best = tried[k], float(values[k])
            else:
                width *= 0.5
        if else_ is not None and float(self.true(else_[None, :])[0]) < best:
            return else_
        return row

    def _neighbours(self, row: Array, rng: np.random.Generator, width: float) -> Array:
        where = np.concatenate([self.gates, *[self.choices] * 3, self.numbers, self.numbers])
        numbers = row[self.numbers]
        steps = np.concatenate([numbers - width, numbers + width]).clip(-1.0, 1.0)
        options = np.repeat([0.0, 1.0, 2.0], len(self.choices))
        one = np.repeat(row[None, :], len(where), axis=0)
        one[np.arange(len(where)), where] = np.concatenate([1.0 - row[self.gates], options, steps])
        first, second = rng.integers(0, len(one), (2, 300))
        two = np.where(one[first] != row, one[first], one[second])
        return np.concatenate([one, two])
