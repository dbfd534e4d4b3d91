"""Earlier studies in the surrogate, against dense formulas; and in a search, helpful and misleading."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from search.common.numeric import draw, place
from search.common.paths import ROOT
from search.samplers.structured import beliefs as beliefs_module
from search.samplers.structured.beliefs import Beliefs
from search.samplers.structured.rows import Rows
from search.samplers.structured.sampler import Prior, StructuredSampler
from search.samplers.structured.sources import BIAS, CENTRES, SPREADS, Source
from search.samplers.structured.surrogate import START, WIDTH, Basis, Surrogate, vector
from search.space.native import native_space
from search.study.load import find_study
from techniques import catalog
from tests.search.samplers.structured.test_sampler import SPACE, dense, rig, slopes

WHICH = np.array([0] * 7 + [1] * 8 + [2] * 6)


def model_of(seed: int = 0, pairs: bool = True) -> tuple[Surrogate, np.ndarray, np.ndarray, np.ndarray]:
    """A surrogate that observed this study and two earlier ones, all hyper-parameters moved."""
    model, columns, y, extra = rig(len(WHICH), seed)
    model.pairs = pairs
    y = y + np.array([0.0, 5.0, -3.0])[WHICH]
    model.observe(columns, y, noise_sd=extra, source=WHICH)  # now it knows how many there are
    rng = np.random.default_rng(seed + 9)
    moved = model.hyper.flat() + 0.3 * rng.standard_normal(len(model.hyper.flat()))
    model.hyper = type(model.hyper).of(moved, 2)
    model.observe(columns, y, noise_sd=extra, source=WHICH)
    return model, columns, y, extra


def slow(model: Surrogate, columns: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, ...]:
    """(covariance of the rows with noise, of new points with them, of new points) entry by entry."""
    phi, prior = dense(model, np.concatenate([columns, new]))
    if not model.pairs:
        main = 1 + columns.shape[1]
        phi = phi[:, :main]
        prior = prior[:main]
    k = phi @ np.diag(prior) @ phi.T
    scale, logit, noise = np.concatenate([[[0.0, np.inf, model.hyper.noise]], model.hyper.sources]).T
    trust = 1 / (1 + np.exp(-logit))
    n = len(columns)
    rows = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            a = WHICH[i]
            b = WHICH[j]
            factor = math.exp(scale[a] + scale[b]) * (trust[a] * trust[b] if a != b else 1.0)
            rows[i, j] = k[i, j] * factor + (BIAS if a == b and a > 0 else 0.0)
    rows += np.diag(np.exp(noise)[WHICH] + model.extra + 1e-6)
    gain = (np.exp(scale) * trust)[WHICH]
    return rows, k[n:, :n] * gain, k[n:, n:]


@pytest.mark.parametrize("pairs", [True, False])
def test_the_posterior_is_the_dense_gaussian_conditional(pairs: bool) -> None:
    model, columns, y, _ = model_of(pairs=pairs)
    new = rig(9, seed=1)[1]
    rows, cross, own = slow(model, columns, new)
    centres = np.array([y[WHICH == s].mean() for s in range(3)])
    off = y - centres[WHICH]
    expected = centres[0] + cross @ np.linalg.solve(rows, off)
    assert model.scale == pytest.approx(off.std())
    assert np.allclose(model.mean()(new), expected, atol=1e-8)
    left = own - cross @ np.linalg.solve(rows, cross.T)
    assert np.allclose(model.variance(new), np.diag(left) * model.scale**2, atol=1e-8)


def test_draws_have_the_posterior_mean_and_covariance() -> None:
    model, columns, _, _ = model_of()
    new = rig(4, seed=2)[1]
    rng = np.random.default_rng(3)
    draws = np.array([model.draw(rng)(new) for _ in range(4000)])
    rows, cross, own = slow(model, columns, new)
    covariance = (own - cross @ np.linalg.solve(rows, cross.T)) * model.scale**2
    sd = np.sqrt(np.diag(covariance))
    assert np.allclose(draws.mean(axis=0), model.mean()(new), atol=5 * sd.max() / math.sqrt(4000))
    assert np.allclose(np.cov(draws.T), covariance, atol=0.1 * sd.max() ** 2)


@pytest.mark.parametrize("pairs", [True, False])
def test_the_objective_is_the_marginal_likelihood_and_its_gradient(pairs: bool) -> None:
    model, columns, _, _ = model_of(pairs=pairs)
    flat = model.hyper.flat()
    k = slow(model, columns, columns[:1])[0]
    centres = np.concatenate([np.tile(CENTRES, 2), vector(START, model.basis.count)])
    away = (flat - centres) / np.concatenate([np.tile(SPREADS, 2), vector(WIDTH, model.basis.count)])
    expected = 0.5 * model.y @ np.linalg.solve(k, model.y) + 0.5 * np.linalg.slogdet(k)[1]
    value, gradient = model.objective(flat)
    assert value == pytest.approx(expected + 0.5 * away @ away)
    found = slopes(lambda h: model.objective(h)[0], flat, 1e-5)
    assert np.allclose(gradient, found, rtol=1e-6, atol=1e-5)


def test_fantasies_are_this_studys_own() -> None:
    model, columns, y, extra = model_of()
    more = rig(5, seed=4)[1]
    fantasy = model.mean()(more)
    model.observe(columns, y, noise_sd=extra, more=more, source=WHICH)
    assert (model.which == [*WHICH, *[0] * 5]).all()
    again = Surrogate(model.basis)
    again.hyper = model.hyper
    again.observe(
        np.concatenate([columns, more]),
        np.concatenate([y, fantasy]),
        noise_sd=np.concatenate([extra, np.zeros(5)]),
        source=np.array([*WHICH, *[0] * 5]),
    )
    new = rig(9, seed=2)[1]
    assert np.allclose(model.mean()(new), again.mean()(new), atol=1e-9)


def test_a_contrast_has_the_sd_of_its_draws() -> None:
    model, _, _, _ = model_of(pairs=False)
    new = rig(6, seed=2)[1]
    rng = np.random.default_rng(3)
    contrast = new[:3] - new[3:]
    draws = np.array([(f := model.draw(rng))(new[:3]) - f(new[3:]) for _ in range(4000)])
    assert np.allclose(draws.std(axis=0), model.contrast_sd(contrast), rtol=0.06)


def learnt(sign: float, *, noise: float = 0.01, level: float = 0.0, scale: float = 1.0) -> Surrogate:
    """60 earlier trials of `sign` times this study's function, 40 of its own."""
    rng = np.random.default_rng(5)
    basis = Basis(SPACE)
    rows = Rows(SPACE, {}).uniform(rng, 100)
    columns = basis.columns(rows, np.ones(rows.shape, dtype=np.bool_))
    values = columns @ rng.standard_normal(columns.shape[1]) * 0.1
    which = np.array([1] * 60 + [0] * 40)
    seen = np.where(which == 1, level + scale * sign * values + noise * rng.standard_normal(100), values)
    model = Surrogate(basis)
    model.observe(columns, seen + 0.005 * rng.standard_normal(100), source=which, fit=60)
    return model


def test_a_study_that_agrees_is_trusted_and_one_that_does_not_is_ignored() -> None:
    same = learnt(1.0, level=7.0)
    flipped = learnt(-1.0)
    assert same.trusts()[0] > 0.9 and flipped.trusts()[0] < 0.2
    half = learnt(1.0, scale=0.5)  # another scale is none of trust's business
    assert half.trusts()[0] > 0.9 and math.exp(half.hyper.sources[0, 0]) == pytest.approx(0.5, rel=0.2)
    noisy = learnt(1.0, noise=0.3)
    assert noisy.hyper.sources[0, 2] > same.hyper.sources[0, 2] + 2 and noisy.trusts()[0] > 0.5


LOSS: dict[str, BaseDistribution] = {
    **{f"x{k}": FloatDistribution(0.0, 1.0) for k in range(8)},
    **{f"g{k}": CategoricalDistribution((False, True)) for k in range(8)},
}


def loss(p: Any) -> float:
    found = sum((p[f"x{k}"] - 0.1 * (k + 1)) ** 2 for k in range(8))
    return found + sum((0.1 if k % 2 else -0.1) * p[f"g{k}"] for k in range(8))


def source(sign: float = 1.0, count: int = 60, *, feasible: Callable[[Any], bool] = lambda p: True) -> Source:
    rng = np.random.default_rng(1)
    rows = Rows(LOSS, {})
    params = tuple(rows.decode(row) for row in rows.uniform(rng, count))
    values = np.array([sign * loss(p) + 3.0 for p in params])
    kept = tuple(feasible(p) for p in params)
    broken = tuple({"size": -0.5 if k else 0.5} for k in kept)
    return Source("old", params, values, np.zeros(count), broken, kept)


def ask_and_tell(sampler: StructuredSampler, runs: int) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=sampler)
    asked = list[dict[str, Any]]()
    for _ in range(runs):
        trial = study.ask(LOSS)
        asked.append(dict(trial.params))
        study.tell(trial, loss(trial.params))
    return asked


def sampler_of(*sources: Source, seed: int = 0, **more: Any) -> StructuredSampler:
    start = {n: 0.5 if n[0] == "x" else False for n in LOSS}
    prior = Prior(LOSS, conditions={}, start=start, sources=sources, **more)
    return StructuredSampler(seed=seed, prior=prior)


def test_it_begins_with_the_start_and_the_best_of_the_earlier_study_that_is_admitted() -> None:
    old = source(feasible=lambda p: not p["g0"])
    sampler = sampler_of(old, admits=lambda p: p["x0"] > 0.3)
    asked = ask_and_tell(sampler, 3)
    assert asked[0] == {n: 0.5 if n[0] == "x" else False for n in LOSS}
    allowed = [p for p, ok in zip(old.params, old.feasible, strict=True) if ok and p["x0"] > 0.3]
    assert asked[1] in allowed and loss(asked[1]) <= np.quantile([loss(p) for p in allowed], 0.2)
    assert asked[2] not in old.params  # from there on it searches
    assert list(sampler.trusts()) == ["old"]


def test_a_helpful_study_saves_runs_and_a_misleading_one_costs_few() -> None:
    best = {
        kind: np.median([min(map(loss, ask_and_tell(sampler_of(*given, seed=s), 24))) for s in range(5)])
        for kind, given in {"none": (), "same": (source(),), "flipped": (source(-1.0),)}.items()
    }
    first = np.median([min(map(loss, ask_and_tell(sampler_of(source(), seed=s), 8))) for s in range(5)])
    assert first < best["none"], (first, best)
    assert best["flipped"] < best["none"] + 0.1, best


def test_their_constraints_count_and_their_configurations_are_not_tried() -> None:
    old = source(feasible=lambda p: not p["g0"])
    beliefs = Beliefs(LOSS, {}, sources=[old])
    beliefs.learn([])
    assert not beliefs.tried and not beliefs.complete and beliefs.incumbents(3) == []
    on, off = ({n: 0.5 if n[0] == "x" else n == "g0" and gate for n in LOSS} for gate in (True, False))
    excess = beliefs.excess(beliefs.columns_of(beliefs.rows.encode([on, off])))
    assert excess[0] > 0.5 > excess[1]
    assert beliefs.known() > 20


def test_of_many_earlier_trials_the_best_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beliefs_module, "LARGEST", 20)
    monkeypatch.setattr(beliefs_module, "EARLIER", 10)
    beliefs = Beliefs(LOSS, {}, sources=[source(count=60)])
    beliefs.learn([])
    assert len(beliefs.objective.model.y) == 20
    assert (np.diff(beliefs.earlier.values) >= 0).all()


@pytest.mark.filterwarnings("error")
def test_a_study_all_of_whose_trials_are_worse_than_others_may_be_left_without_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beliefs_module, "LARGEST", 20)
    monkeypatch.setattr(beliefs_module, "EARLIER", 10)
    flat = source()
    flat = Source("flat", flat.params, 0.0 * flat.values, flat.noise_sd, flat.constraints, flat.feasible)
    for given in ([flat, source()], [source(), flat]):
        beliefs = Beliefs(LOSS, {}, sources=given)
        beliefs.learn([])
        assert (
            1 <= len(beliefs.objective.model.trusts()) <= 2 and np.isfinite(beliefs.objective.model.y).all()
        )
        assert len(beliefs.best_earlier()) > 20


def test_maximising_turns_the_earlier_values_too() -> None:
    beliefs = Beliefs(LOSS, {}, sign=-1.0, sources=[source()])
    beliefs.learn([])
    best = beliefs.rows.decode(beliefs.best_earlier()[0][1])
    assert loss(best) > np.quantile([loss(p) for p in source().params], 0.8)


def test_an_ask_at_200_trials_beside_200_earlier_ones_stays_cheap() -> None:
    """163 parameters; CPU seconds, of which 0.1 a mean was measured on a busy machine."""
    space = native_space(find_study(ROOT / "studies" / "laptop.toml"), catalog.metadata())
    rng = np.random.default_rng(0)
    dists = space.distributions
    drawn = [space.keep_active({n: draw(d, rng) for n, d in dists.items()}) for _ in range(400)]
    values = np.array([sum(place(dists[n], v) for n, v in p.items()) for p in drawn])
    none = tuple({} for _ in range(200))
    all_ = (True,) * 200
    old = Source("old", tuple(drawn[:200]), values[:200], np.zeros(200), none, all_)
    prior = Prior(dists, conditions=space.conditions(), keep_active=space.keep_active, sources=(old,))
    study = optuna.create_study(sampler=StructuredSampler(seed=0, prior=prior, tpe_share=0.0))
    for p, value in zip(drawn[200:], values[200:], strict=True):
        study.add_trial(create_trial(params=p, distributions={n: dists[n] for n in p}, value=float(value)))
    took = list[float]()
    for _ in range(7):
        began = time.process_time()
        trial = study.ask()
        params = space.keep_active(trial.relative_params)
        took.append(time.process_time() - began)
        study.tell(trial, sum(place(dists[n], v) for n, v in params.items()))
    assert np.mean(took[1:]) < 0.3, took
