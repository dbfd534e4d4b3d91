"""Ledgers against slow optimisation, on synthetic trials whose factors are known."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import t as student

from search.costs.factors import LATEST, Bill, CostModel, Part, student_quantile

SDS = {"all": 0.2, "kind": 0.15, "technique": 0.05, "log size": 0.1}
TRUE = {
    "all": -0.25,
    "kind:a": 0.2,
    "kind:b": -0.1,
    "kind:c": 0.05,
    "technique:t": 0.04,
    "log size:dim": 0.08,
}


def cost_model() -> CostModel:
    return CostModel(SDS, spread=0.02, least_spread=0.001)


def draw(rng: np.random.Generator) -> Bill:
    """One to three kinds of very different amounts, a technique or not, a size."""
    kinds = rng.choice(("a", "b", "c"), size=int(rng.integers(1, 4)), replace=False)
    parts = tuple(Part(float(rng.lognormal(10, 1)), {f"kind:{k}": 1.0}) for k in kinds)
    common = {"all": 1.0, "log size:dim": math.log(rng.uniform(50, 500))}
    return Bill(parts, common | ({"technique:t": 1.0} if rng.random() < 0.5 else {}))


def truth(bill: Bill, *, noise: float = 0.0, centre: float = math.log(200)) -> float:
    def factor(factors: dict[str, float]) -> float:
        return sum(TRUE[n] * (e - (centre if n.startswith("log") else 0.0)) for n, e in factors.items())

    whole = sum(part.amount * math.exp(factor(dict(part.factors))) for part in bill.parts)
    return whole * math.exp(factor(dict(bill.common)) + noise)


def moved(name: str, exponent: float) -> float:
    return exponent - math.log(200) if name.startswith("log") else exponent


def test_known_factors_are_recovered():
    rng, learnt = np.random.default_rng(0), cost_model()
    for _ in range(150):
        bill = draw(rng)
        learnt.add(bill, truth(bill, noise=rng.normal(0, 0.01)))
    held_out = [draw(rng) for _ in range(50)]
    errors = [math.log(learnt.estimate(b).value / truth(b)) for b in held_out]
    assert max(map(abs, errors)) < 0.02
    assert max(abs(math.log(b.total / truth(b))) for b in held_out) > 0.2  # what was there to learn
    one = Bill((Part(1.0, {"kind:a": 1.0}),), {"all": 1.0})
    other = Bill((Part(1.0, {"kind:b": 1.0}),), {"all": 1.0})
    ratio = learnt.estimate(one).value / learnt.estimate(other).value
    assert math.log(ratio) == pytest.approx(TRUE["kind:a"] - TRUE["kind:b"], abs=0.02)
    assert learnt.estimate(held_out[0]).spread == pytest.approx(0.01, rel=0.3)


def test_the_fit_is_the_posterior_mode():
    """The obvious slow version: minimise the sum of squares and prior by a general optimiser."""
    rng, learnt = np.random.default_rng(1), cost_model()
    bills = [draw(rng) for _ in range(12)]
    measured = [truth(b, noise=rng.uniform(-0.01, 0.01)) for b in bills]
    for bill, value in zip(bills, measured, strict=True):
        learnt.add(bill, value)
    fit = learnt._solved()  # pyright: ignore[reportPrivateUsage]
    names = list(learnt.columns)
    spread = fit.spread  # that of the last step but one, to the third digit

    def loss(theta: np.ndarray) -> float:
        at = dict(zip(names, theta, strict=True))
        total = sum((t / SDS[n.partition(":")[0]]) ** 2 for n, t in at.items())
        for bill, value in zip(bills, measured, strict=True):
            common = sum(at[n] * (e - learnt.centre[n]) for n, e in bill.common.items())
            parts = sum(p.amount * math.exp(sum(at[n] for n in p.factors)) for p in bill.parts)
            total += ((math.log(value) - common - math.log(parts)) / spread) ** 2
        return total

    found = minimize(loss, np.zeros(len(names)), method="BFGS", options={"gtol": 1e-8})
    assert np.abs(found.x - fit.mean).max() < 2e-3


def test_no_trial_is_the_calculator_and_a_few_misleading_ones_are_bounded():
    learnt, rng = cost_model(), np.random.default_rng(2)
    bill = draw(rng)
    assert learnt.estimate(bill).value == pytest.approx(bill.total)
    learnt.add(bill, 1.5 * bill.total)  # one odd trial of one kind
    other = Bill((Part(1e4, {"kind:unseen": 1.0}),), {"log size:dim": math.log(100)})
    assert learnt.estimate(other).value == pytest.approx(other.total)  # shares nothing: says nothing
    for _ in range(60):
        bill = draw(rng)
        learnt.add(bill, truth(bill, noise=rng.normal(0, 0.01)))
    held_out = [draw(rng) for _ in range(50)]
    clean = [abs(math.log(learnt.estimate(b).value / truth(b))) for b in held_out]
    for _ in range(3):  # the machine stalled three times
        bill = draw(rng)
        learnt.add(bill, 4.0 * truth(bill))
    stalled = [abs(math.log(learnt.estimate(b).value / truth(b))) for b in held_out]
    assert np.mean(stalled) < np.mean(clean) + 0.01


def test_the_bound_holds_as_often_as_it_says():
    """Held-out trials below their 80 % and 97.5 % bounds, from the first trials to the hundredth."""
    kept: dict[float, list[bool]] = {0.8: [], 0.975: []}
    for seed in range(8):
        rng, learnt = np.random.default_rng(seed), cost_model()
        effects = {n: rng.normal(0, SDS[n.partition(":")[0]]) for n in TRUE}
        for k in range(45):
            bill = draw(rng)
            factors = [(p.amount, {**p.factors, **bill.common}) for p in bill.parts]
            sizes = {
                n: e - math.log(200) if n.startswith("log") else e for _, f in factors for n, e in f.items()
            }
            value = sum(a * math.exp(sum(effects[n] * sizes[n] for n in f)) for a, f in factors)
            value *= math.exp(rng.normal(0, 0.03))
            if k >= 3:
                for probability, found in kept.items():
                    found.append(value <= learnt.estimate(bill).upper(probability))
            learnt.add(bill, value)
    assert 0.74 < np.mean(kept[0.8]) < 0.88
    assert 0.95 < np.mean(kept[0.975]) <= 1.0


def test_equal_measurements_do_not_make_it_sure():
    """Seeds differ even where a hundred trials did not."""
    learnt = cost_model()
    bill = Bill((Part(1e6, {"kind:a": 1.0}),), {"all": 1.0})
    for _ in range(LATEST + 20):
        learnt.add(bill, 9e5)
    estimate = learnt.estimate(bill)
    assert estimate.value == pytest.approx(9e5, rel=1e-3)
    assert estimate.upper(0.975) > 9e5 * (1 + 1.9 * 0.001)
    assert len(learnt.rows) == LATEST


def test_it_costs_milliseconds():
    rng, learnt = (
        np.random.default_rng(3),
        CostModel({**SDS, "technique": 0.05}, spread=0.02, least_spread=0.001),
    )
    for _ in range(200):
        bill = draw(rng)
        more = {f"technique:{k}": 1.0 for k in rng.choice(60, 12, replace=False)}
        learnt.add(Bill(bill.parts, {**bill.common, **more}), truth(bill))
    began = time.process_time()
    for _ in range(5):
        learnt.add(bill, truth(bill))
        learnt.estimate(bill)
    assert (time.process_time() - began) / 5 < 0.1  # 4 ms on a free core


def test_a_fit_of_many_rows_waits_for_a_share_of_new_ones() -> None:
    """Fitted again when 5 % of the rows are new, or at once for a factor that it does not know."""
    rng, learnt = np.random.default_rng(0), CostModel(SDS, spread=0.1, least_spread=0.01)
    bills = [Bill((Part(float(a), {"kind:a": 1.0}),), {}) for a in rng.uniform(1.0, 9.0, 112)]
    for bill in bills[:100]:
        learnt.add(bill, bill.total)
    before = learnt.estimate(bills[0])
    for bill in bills[100:105]:
        learnt.add(bill, 5.0 * bill.total)
        assert learnt.estimate(bills[0]) == before
    learnt.add(bills[105], 5.0 * bills[105].total)
    renewed = learnt.estimate(bills[0])
    assert renewed.spread > before.spread
    learnt.add(Bill((Part(2.0, {"kind:b": 1.0}),), {}), 20.0)
    assert learnt.estimate(bills[0]) != renewed


@pytest.mark.parametrize("dof", [1.0, 7.5, 250.0, 1e6, 1e7])
def test_students_quantiles_are_scipys(dof: float) -> None:
    for probability in (0.01, 0.5, 0.9, 0.975, 0.995):
        assert student_quantile(dof, probability) == pytest.approx(student.ppf(probability, dof), abs=2e-6)
