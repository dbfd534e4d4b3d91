"""The smooth model beside the surrogate: its maths against slow formulas, and who proposes where."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import create_trial

from benchmarks.problems.problem_set import PROBLEMS, branin
from search.samplers.caddie import one_thread
from search.samplers.structured.rows import Rows
from search.samplers.structured.sampler import Prior, StructuredSampler
from search.samplers.structured.smooth import Process, Smooth, bent, left_out, log_improvement, normal_bend
from search.samplers.structured.surrogate import Basis, Surrogate, triangle
from tests.search.samplers.structured.test_sampler import slopes

SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "layers": IntDistribution(2, 9),
    "gate": CategoricalDistribution((False, True)),
    "kind": CategoricalDistribution(("a", "b", "c")),
}
NONE = np.zeros((0, len(SPACE)))


def rig(n: int = 20) -> tuple[Process, np.ndarray]:
    """A process with every hyper-parameter moved, told n values, some with more noise; and its rows."""
    rng = np.random.default_rng(0)
    rows = Rows(SPACE, {"layers": {"gate": frozenset((1,))}})
    one = Process(rows)
    x = rows.uniform(rng, n)
    one.hyper = one.hyper + 0.3 * rng.standard_normal(len(one.hyper))
    noise = 0.3 * rng.random(n) * (rng.random(n) < 0.5)
    one.observe(x, rng.standard_normal(n), noise, running=NONE, fit=False)
    one.best = -0.5
    return one, x


def without(covariance: np.ndarray, y: np.ndarray, k: int) -> float:
    """Log density of y[k] under the model that was told the others."""
    others = np.arange(len(y)) != k
    weights = np.linalg.solve(covariance[np.ix_(others, others)], covariance[others, k])
    mean = weights @ y[others]
    variance = covariance[k, k] - weights @ covariance[others, k]
    return float(-0.5 * (y[k] - mean) ** 2 / variance - 0.5 * math.log(2 * math.pi * variance))


def test_leave_one_out_densities_are_those_of_refits() -> None:
    one, _ = rig()
    covariance = one.factor @ one.factor.T
    found = left_out(one.factor, one.y)
    assert np.allclose(found, [without(covariance, one.y, k) for k in range(len(one.y))], atol=1e-9)


def test_the_surrogate_is_judged_on_the_trials_alone_whatever_runs_beside_them() -> None:
    """Fantasies of running trials stand in its system; they must not tell it the value that is left out."""
    one, x = rig()
    basis = Basis(SPACE)
    columns = basis.columns(x, one.rows.active(x))
    model = Surrogate(basis)
    y = np.random.default_rng(1).standard_normal(len(x))
    one.observe(x, y, np.zeros(len(x)), running=NONE, fit=False)
    model.observe(columns, y)
    alone = Smooth._surrogate(model, len(x), one)
    covariance = model._kernel(model.hyper)[0] + np.diag(model._noise(model.hyper))
    assert np.allclose(alone, [without(covariance, one.y, k) for k in range(len(y))], atol=1e-8)
    model.observe(columns, y, more=columns[:5] * 0.5)
    assert np.allclose(Smooth._surrogate(model, len(x), one), alone, atol=1e-8)
    assert len(model.columns) == len(x) + 5


def test_bent_values_keep_their_order_and_their_densities_are_of_the_values_themselves() -> None:
    one, x = rig(40)
    rng = np.random.default_rng(7)
    y = np.exp(3.0 * rng.standard_normal(20))
    y = np.concatenate([y, y * (1.0 + 1e-7)])
    for share in (math.inf, 1.0, 0.01):
        one.bend = share
        one.observe(x, y, np.zeros(40), running=NONE, fit=False)
        assert np.array_equal(np.argsort(one.y[:20]), np.argsort(y[:20]))
        assert np.isclose(one.y.std(), 1.0)
        slope = (one.y[20:] - one.y[:20]) / (y[20:] - y[:20]) * y.std()
        assert np.allclose(one.stretch[:20], np.log(slope), atol=1e-3)


def test_values_are_bent_only_where_that_makes_them_more_like_normal_ones() -> None:
    rng = np.random.default_rng(8)
    assert normal_bend(rng.standard_normal(50)) == math.inf
    assert normal_bend(-np.exp(rng.standard_normal(50))) == math.inf
    assert normal_bend(54.0 + np.exp(3.0 * rng.standard_normal(50))) == 0.01
    assert normal_bend(np.array([1.0, 1.0, 1.0, 1.0, 5.0])) == math.inf  # no unit to measure by


def test_rounding_is_no_unit_and_a_small_scale_is_one() -> None:
    """Else equal first trials would be told apart by their last bits, and a unit of 1e-300 would overflow."""
    late = np.random.default_rng(11).uniform(0.0, 1.0, 40)
    for first in (1.0 + 2.3e-16 * np.arange(10), 1e-300 * np.arange(10), -1e6 + 1e-10 * np.arange(10)):
        y = np.asarray([*first, *(late * 1e100)], dtype=np.float64)
        with np.errstate(all="raise", under="ignore"):
            assert np.array_equal(bent(y, 0.01)[0], y) and normal_bend(y) == math.inf
    normal = np.random.default_rng(12).standard_normal(50)
    for scale in (1e-60, 1e-12, 1.0, 1e60):
        assert normal_bend(scale * normal) == math.inf
        assert normal_bend(scale * np.exp(3.0 * normal)) == 0.01


def test_the_unit_of_bent_values_does_not_shrink_as_the_search_closes_in() -> None:
    """Else it resolves ever less, and expects nothing below: no needle is looked for."""
    early = np.random.default_rng(9).uniform(1.0, 50.0, 20)
    late = early.min() + 1e-6 * np.arange(100.0)
    both = bent(np.concatenate([early, late]), 0.01)[0]
    assert np.array_equal(both[:20], bent(early, 0.01)[0])
    assert both[20:].max() - both[20:].min() < 1e-3


def test_the_process_of_bent_values_speaks_where_it_foretells_better() -> None:
    def spoken(function: Callable[[np.ndarray], np.ndarray]) -> float:
        study = optuna.create_study(sampler=StructuredSampler(seed=0))
        x = np.random.default_rng(10).random((30, 2))
        space: dict[str, BaseDistribution] = {n: FloatDistribution(0.0, 1.0) for n in ("a", "b")}
        for row, value in zip(x, function(x), strict=True):
            params = {"a": float(row[0]), "b": float(row[1])}
            study.add_trial(create_trial(params=params, distributions=space, value=float(value)))
        study.ask(space)
        smooth = study.sampler._smooth  # pyright: ignore
        assert smooth.process is not None
        return smooth.process.bend

    def waves(x: np.ndarray) -> np.ndarray:
        return np.sin(5.0 * x[:, 0]) + np.cos(4.0 * x[:, 1])

    assert spoken(waves) == math.inf
    assert spoken(lambda x: 54.0 + np.exp(3.0 * waves(x))) < math.inf


def test_the_gradients_are_those_of_finite_differences() -> None:
    one, _ = rig()
    _, gradient = one.objective(one.hyper)
    assert np.allclose(gradient, slopes(lambda h: one.objective(h)[0], one.hyper, 1e-5), atol=1e-5)
    rng = np.random.default_rng(2)
    for x in one.places(one.rows.uniform(rng, 5)):
        value, gradient = one.log_gain_slope(x)
        assert value == pytest.approx(float(one.log_gain(x[None, :])[0]))
        wanted = slopes(lambda at: float(one.log_gain(at[None, :])[0]), x, 1e-6)
        assert np.allclose(gradient, wanted, rtol=1e-3, atol=1e-4)


def test_the_log_expected_improvement_is_that_of_many_draws_and_exact_far_below() -> None:
    draws = np.random.default_rng(3).standard_normal(400_000)
    for z in (-2.0, -1.0, -0.5, 0.0, 2.0):
        wanted = math.log(float(np.maximum(z + draws, 0.0).mean()))
        assert float(log_improvement(np.array([z]))[0]) == pytest.approx(wanted, abs=0.03)
    far = np.array([-8.0, -40.0, -1e3, -1e6])  # φ(z) / z² to the first order
    wanted = -0.5 * far**2 - 0.5 * math.log(2 * math.pi) - 2 * np.log(-far)
    assert np.allclose(log_improvement(far), wanted, atol=0.05)
    assert (np.diff(log_improvement(np.linspace(-60.0, 3.0, 2000))) > 0).all()


def test_a_fantasy_changes_no_mean_and_leaves_less_variance_there() -> None:
    one, x = rig()
    y = one.y.copy()
    noise = np.zeros(len(x))
    running = one.rows.uniform(np.random.default_rng(4), 3)
    one.observe(x, y, noise, running=NONE, fit=False)
    at = one.places(one.rows.uniform(np.random.default_rng(5), 6))
    before = one.moments(at)
    there = one.moments(one.places(running))
    one.observe(x, y, noise, running=running, fit=False)
    assert np.allclose(one.moments(at)[0], before[0], atol=1e-6)
    assert (one.moments(one.places(running))[1] < 0.5 * there[1]).all()


def test_the_kernel_is_positive_definite_with_equal_rows_and_inactive_numbers() -> None:
    rows = Rows(SPACE, {"layers": {"gate": frozenset((1,))}})
    one = Process(rows)
    x = rows.uniform(np.random.default_rng(6), 12)
    x[:, 2] = 0.0  # the gate is off: its number means nothing
    other = x.copy()
    other[:, 1] = -other[:, 1]
    assert np.array_equal(one.places(x), one.places(other))
    one.observe(np.concatenate([x, other]), np.arange(24.0), np.zeros(24), running=NONE, fit=False)
    assert np.isfinite(triangle(one._kernel(one.x)[0], np.full(24, 1e-8))).all()


class Asked:
    """Who made the proposals: `smooth` of `asked`, TPE's left out."""

    def __init__(self, sampler: StructuredSampler):
        self.smooth = 0
        self.asked = 0
        inner = sampler._smooth.propose
        draw = sampler._best_of_a_draw
        notes: Any = sampler
        notes._smooth.propose = lambda *a: self._note(1) or inner(*a)
        notes._best_of_a_draw = lambda *a: self._note(0) or draw(*a)

    def _note(self, smooth: int) -> None:
        self.smooth += smooth
        self.asked += 1


def solved_by(sampler: StructuredSampler, objective: Callable[[optuna.Trial], float], runs: int) -> float:
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=runs)
    return float(study.best_value)


def test_a_smooth_problem_of_two_numbers_is_solved_in_40_trials() -> None:
    sampler = StructuredSampler(seed=3)
    asked = Asked(sampler)

    def objective(trial: optuna.Trial) -> float:
        return branin(np.array([trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)]))

    assert solved_by(sampler, objective, 40) - 0.39788736 < 1e-2
    assert asked.smooth > asked.asked / 2


def test_gates_stay_with_the_structured_model() -> None:
    sampler = StructuredSampler(seed=3)
    asked = Asked(sampler)
    assert solved_by(sampler, PROBLEMS["gates"].of(3), 60) < 1.0
    assert asked.smooth < asked.asked / 4


def test_what_is_refused_or_infeasible_is_not_proposed_by_the_smooth_model() -> None:
    """`admits` cuts the optimum away; a learned constraint cuts away more."""
    refused = lambda p: p["x"] + p["y"] >= 0.4  # noqa: E731
    space: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)}
    late: list[float] = []  # of four seeds: of one the share is luck
    for seed in range(4):
        prior = Prior(distributions=space, admits=refused)
        study = optuna.create_study(sampler=StructuredSampler(seed=seed, prior=prior, tpe_share=0.0))
        for k in range(45):
            trial = study.ask(space)
            x = trial.params["x"]
            y = trial.params["y"]
            assert k == 0 or x + y >= 0.4
            trial.set_constraint("left", 0.2 - x)
            late += [x] if k > 30 else []
            study.tell(trial, (x - 0.1) ** 2 + (y - 0.1) ** 2)
        best = min(float(t.value or 0) for t in study.trials if t.constraints["left"] <= 0)
        assert best < 0.0201  # at (0.2, 0.2): 0.02
    assert np.mean([x >= 0.2 for x in late]) > 0.7


def test_noise_alone_is_not_chased_into_a_corner() -> None:
    rng = np.random.default_rng(0)
    sampler = StructuredSampler(seed=0, tpe_share=0.0)
    study = optuna.create_study(sampler=sampler)
    for _ in range(50):
        trial = study.ask({f"x{k}": FloatDistribution(0.0, 1.0) for k in range(3)})
        study.tell(trial, float(rng.standard_normal()))
    ends = [v in (0.0, 1.0) for t in study.trials[10:] for v in t.params.values()]
    assert np.mean(ends) < 0.5


def test_choices_that_nobody_tried_get_their_trials() -> None:
    """A needle among 30 choices, the others alike: each choice is tried about once."""
    tried: set[int] = set()

    def objective(trial: optuna.Trial) -> float:
        tried.add(choice := int(trial.suggest_categorical("choice", range(30))))
        return float(choice != 17) + 0.01 * trial.suggest_float("x", 0.0, 1.0)

    assert solved_by(StructuredSampler(seed=1), objective, 45) < 0.1 or len(tried) >= 25


@one_thread  # as search.py asks; what waits for another thread is no work of an ask
def test_an_ask_at_200_trials_of_163_parameters_stays_cheap_with_the_process() -> None:
    """Few gates on, 39 active parameters: it is asked. CPU seconds, of which a mean of 0.1 was measured."""
    rng = np.random.default_rng(0)
    off = CategoricalDistribution((False, True))
    on = FloatDistribution(0.0, 1.0)
    below = {f"g{k}": [f"g{k}.x{j}" for j in range(6 if k < 23 else 0)] for k in range(25)}
    sampler = StructuredSampler(seed=0, tpe_share=0.0)
    study = optuna.create_study(sampler=sampler)
    for _ in range(200):
        params: dict[str, Any] = {gate: bool(rng.random() < 0.08) for gate in below}
        params |= {name: float(rng.random()) for g, names in below.items() if params[g] for name in names}
        dists: dict[str, BaseDistribution] = {n: off if n in below else on for n in params}
        value = math.exp(sum((params[n] - 0.4) ** 2 for n in params if n not in below))
        study.add_trial(create_trial(params=params, distributions=dists, value=value))
    took: list[float] = []
    for _ in range(9):
        began = time.process_time()
        trial = study.ask()
        gates = [g for g in below if trial.suggest_categorical(g, (False, True))]
        found = [trial.suggest_float(name, 0.0, 1.0) for g in gates for name in below[g]]
        took.append(time.process_time() - began)
        study.tell(trial, math.exp(sum((x - 0.4) ** 2 for x in found)))
    assert sampler._smooth.process is not None, "it was not asked"
    assert np.mean(took[1:]) < 0.3, took
