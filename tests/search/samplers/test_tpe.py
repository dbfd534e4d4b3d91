"""The quick ways of search/samplers/tpe.py against Optuna's own, on studies of every kind of trial."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy import stats

from search.common.numeric import draw
from search.samplers.tpe import BATCH, GroupedTpe, Numbers, Observed, Parzen, log_mass

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "gate": CategoricalDistribution((False, True)),
    "kind": CategoricalDistribution(("a", "b", "c")),
    "rate": FloatDistribution(0.001, 0.5, log=True),
    "share": FloatDistribution(-2.0, 3.0),
    "layers": IntDistribution(2, 9),
    "rows": IntDistribution(16, 4096, log=True),
    "heads": IntDistribution(2, 16, step=2),
    "gate.gain": FloatDistribution(0.1, 10.0, log=True),
    "gate.last": IntDistribution(1, 4),
}
INNER = ("gate.gain", "gate.last")
GROUPS = [[n for n in DISTRIBUTIONS if n not in INNER], list(INNER)]


def planted(count: int, rng: np.random.Generator, study: optuna.Study, *, running: int = 0) -> None:
    """Complete, pruned (with reports, NaN reports and none), infeasible and failed trials; then running."""
    for k in range(count):
        params = {name: draw(dist, rng) for name, dist in DISTRIBUTIONS.items()}
        if not params["gate"]:
            params = {n: v for n, v in params.items() if n not in INNER}
        state = (TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[k % 4]
        reports = {j: float(rng.normal()) for j in range(1, int(rng.integers(1, 4)))}
        if k % 24 == 2:
            reports[9] = float("nan")
        study.add_trial(
            optuna.create_trial(
                state=state,
                value=round(float(rng.normal()), 1) if state == TrialState.COMPLETE else None,  # with ties
                params=params,
                distributions={n: DISTRIBUTIONS[n] for n in params},
                intermediate_values=reports if k % 3 else {},
                constraints={"bytes": float(rng.normal(-0.5, 0.5)), "run": -1.0},
            )
        )
    for k in range(running):
        trial = study.ask()
        for name in list(DISTRIBUTIONS)[: 3 + k]:
            trial._suggest(name, DISTRIBUTIONS[name])


def stock(seed: int) -> TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed)


class Slow:
    """What GroupedTpe computes, by Optuna's own functions and nothing else."""

    def __init__(self, seed: int):
        self.tpe = stock(seed)

    def begin(self, study: optuna.Study, trials: list[FrozenTrial]) -> None:
        known = [t for t in trials if t.state != TrialState.FAIL]
        finished = sum(t.state != TrialState.RUNNING for t in known)
        parts = _split_trials(study, known, default_gamma(finished))
        self.fitted: list[Any] = []
        for names in GROUPS:
            group = {name: DISTRIBUTIONS[name] for name in sorted(names)}
            made = [
                self.tpe._build_parzen_estimator(study, group, part, handle_below=good)
                for part, good in zip(parts, (True, False), strict=True)
            ]
            self.fitted.append((group, *made))

    def propose(self, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{} for _ in range(count)]
        for group, below, above in self.fitted:
            candidates = below.sample(self.tpe._rng.rng, count * 24)
            gains = self.tpe._compute_acquisition_func(candidates, below, above).reshape(count, 24)
            for k, at in enumerate(gains.argmax(axis=1)):
                found[k] |= {
                    n: d.to_external_repr(candidates[n][24 * k + at].item()) for n, d in group.items()
                }
        return found


@pytest.mark.parametrize("direction", list(StudyDirection)[1:])
@pytest.mark.parametrize("seed", range(2))
def test_the_same_proposals_as_by_optunas_functions(seed: int, direction: StudyDirection):
    rng, study = np.random.default_rng(seed), optuna.create_study(direction=direction)
    ours = GroupedTpe(GROUPS, DISTRIBUTIONS, startup_trials=10, candidates=24, seed=seed)
    theirs = Slow(seed)
    for more in (25, 40, 150):  # what was seen before is not read again
        planted(more, rng, study, running=3)
        trials = study.get_trials(deepcopy=False)
        ours.begin(study, trials)
        theirs.begin(study, trials)
        found = [ours.propose() for _ in range(1 + 3 * BATCH)]
        assert found == [one for count in (1, BATCH, BATCH, BATCH) for one in theirs.propose(count)]


@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_densities_are_optunas(count: int):
    rng = np.random.default_rng(count)
    rows = np.array(
        [[d.to_internal_repr(draw(d, rng)) for d in DISTRIBUTIONS.values()] for _ in range(count)]
    ).reshape(count, len(DISTRIBUTIONS))
    settings = stock(0)._parzen_estimator_parameters
    quick = Parzen(rows, DISTRIBUTIONS, settings)
    slow = _ParzenEstimator({n: rows[:, k] for k, n in enumerate(DISTRIBUTIONS)}, DISTRIBUTIONS, settings)
    x = quick.sample(Numbers(np.random.RandomState(0), 60 * (1 + len(DISTRIBUTIONS))), 60)
    expected = slow.log_pdf({n: x[:, k] for k, n in enumerate(DISTRIBUTIONS)})
    np.testing.assert_allclose(quick.log_pdf(x), expected, rtol=0, atol=1e-9)


def test_masses_hold_in_both_tails():
    a = np.array([-3.0, -40.0, 20.0, 0.0, -1.0, 5.0])
    b = np.array([2.0, -39.0, 21.0, 1e-9, 0.0, 5.001])
    expected = stats.norm.logsf(np.abs([a[1], a[2]]) - [1.0, 0.0])  # nearly all of it is at the near end
    found = log_mass(a, b)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[[1, 2]], expected, atol=1e-8)
    central = np.log(stats.norm.cdf(b[[0, 3, 4]]) - stats.norm.cdf(a[[0, 3, 4]]))
    np.testing.assert_allclose(found[[0, 3, 4]], central, rtol=1e-6)


def test_a_trial_is_read_once():
    study = optuna.create_study()
    planted(12, np.random.default_rng(0), study)
    trials = [t for t in study.get_trials() if t.state != TrialState.FAIL]
    observed = Observed(DISTRIBUTIONS)
    rows, ranks = observed.finished(trials, 1.0)
    reads: list[Any] = []
    observed.row = lambda params: reads.append(params) or rows[0]  # type: ignore[method-assign]
    again, _ = observed.finished(trials[3:], 1.0)
    assert not reads
    np.testing.assert_array_equal(again, rows[3:])
    assert ranks.shape == (len(trials), 4)
