"""The simulator is what its head says: shape, feasibility, noise, curves, calculators, stages."""

import numpy as np
import pytest
from scipy.stats import rankdata

from benchmarks.simulator import VARIANTS, Instance, StageCache


def order(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation."""
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


@pytest.fixture(scope="module")
def instance() -> Instance:
    return Instance(100)


def test_the_shape_is_as_stated(instance: Instance) -> None:
    gates = [p for p in instance.parameters if p.is_gate]
    under = [p for p in instance.parameters if p.gate and not p.is_gate]
    assert (len(instance.parameters), len(gates), len(under)) == (62, 25, 27)
    assert sum(bool(g.gate) for g in gates) == 2, "two pairs exclude each other"
    assert (instance.gate_effect > 0).sum() == 4 and len(instance.pairs) == 14


@pytest.mark.parametrize("seed", [100, 101])
def test_feasibility_noise_curves_and_calculators(seed: int) -> None:
    one = Instance(seed)
    rows = one.uniform_rows(np.random.default_rng(seed), 4000)
    assert abs(one.feasible(rows).mean() - 0.47) < 0.03
    assert abs(np.median(one.noise_sd(rows)) - 0.00065) < 0.00003
    final = one.true(rows)
    orders = [order(one.curve(rows, p), final) for p in (1 / 32, 1 / 2, 1.0)]
    assert abs(orders[0] - 0.33) < 0.06 and abs(orders[1] - 0.62) < 0.06 and orders[2] > 0.999
    error = np.log1p(one.predicted(rows)) - np.log1p(one.violations(rows)[:, :2])
    assert np.allclose(error.std(axis=0), (0.012, 0.06), rtol=0.1)


def test_rows_and_params_are_two_spellings_of_one_configuration(instance: Instance) -> None:
    for row in instance.uniform_rows(np.random.default_rng(0), 40):
        params = instance.params(row)
        again = instance.rows([params])
        active = instance.active(again)[0]
        assert set(params) == {n for n, a in zip(instance.names, active, strict=True) if a}
        assert instance.params(again[0]) == pytest.approx(params)
        for name, value in params.items():
            assert instance.space[name]._contains(instance.space[name].to_internal_repr(value))


def test_an_inactive_setting_changes_nothing(instance: Instance) -> None:
    rng = np.random.default_rng(1)
    rows, other = instance.uniform_rows(rng, 200), instance.uniform_rows(rng, 200)
    mixed = np.where(instance.active(rows), rows, other)
    mixed[:, instance._second] = rows[:, instance._second]  # a gate is what decides about others
    for facts in (instance.true, instance.violations, instance.noise_sd, instance.predicted):
        assert np.array_equal(facts(rows), facts(mixed))


def test_the_variants_do_what_they_say() -> None:
    rows = Instance(101).uniform_rows(np.random.default_rng(0), 1000)
    by_name = {v: Instance(101, v) for v in VARIANTS}
    values = {v: one.true(rows) for v, one in by_name.items()}
    assert np.ptp(values["null"]) == 0.0
    assert np.array_equal(values["base"], values["rank_flip"])
    assert not np.allclose(values["base"], values["three_way"], atol=1e-4)
    assert not np.allclose(values["base"], values["non_quadratic"], atol=1e-4)
    flipped = by_name["rank_flip"]
    assert order(flipped.curve(rows, 0.25), values["base"]) < -0.3
    wrong = np.log1p(by_name["wrong_calculator"].predicted(rows)) - np.log1p(by_name["base"].predicted(rows))
    assert np.allclose(np.abs(wrong), 0.05)


def test_a_cached_stage_is_free(instance: Instance) -> None:
    rng, cache = np.random.default_rng(0), StageCache()
    params = dict(instance.published)
    first = instance.run(params, rng)
    assert first.feasible and cache.spend(instance, params, first) == sum(first.seconds.values())
    changed = params | {"bits": "int5" if params["bits"] != "int5" else "int6"}
    second = instance.run(changed, rng)
    expected = second.seconds["quantise"] + second.seconds["evaluate"]
    assert cache.spend(instance, changed, second) == expected
    assert cache.spend(instance, changed, instance.run(changed, rng)) == 0.0


def test_no_random_draw_beats_the_optimum() -> None:
    one = Instance(104)
    rows = one.uniform_rows(np.random.default_rng(5), 20_000)
    feasible = rows[one.feasible(rows)]
    assert one.optimum < one.true(feasible).min() - 0.01
    assert one.feasible(one.optimum_row[None, :])[0]
