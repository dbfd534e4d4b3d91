"""The pruning rule: only where early was shown to tell final, against feasible trials, by technique."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from search.common.attributes import PREFLIGHT, REPORTS, SPARED
from search.pruning.evidence import Evidence, Point, agreement, ranks
from search.pruning.pruner import Pruner, is_spared, points, remember
from search.report.pruning import print_evidence, pruning_summary, seconds_saved, spared_wrongly
from search.study.limits import CONSTRAINTS, feasible, set_all
from search.study.model import Pruning
from tests.search.fakes import make_study

FINE: dict[str, float] = {key: -0.5 for key in CONSTRAINTS}
TOO_BIG = {**FINE, "bytes": 0.1}
DISTS = {
    "ema": CategoricalDistribution((False, True)),
    "qat": CategoricalDistribution((False, True)),
    "lr": FloatDistribution(0.01, 0.1, log=True),
}
SETTINGS = Pruning(start=0.5, spare=0.0)
OFFSET = -0.1  # what `ema` gains after the report


def params_of(rng: np.random.Generator) -> dict[str, Any]:
    return {"ema": bool(rng.integers(2)), "qat": False, "lr": float(np.exp(rng.uniform(-4.5, -2.4)))}


def trial_of(
    params: dict[str, Any],
    final: float | None,
    early: float,
    *,
    constraints: dict[str, float] | None = None,
    state: TrialState = TrialState.COMPLETE,
    **attrs: Any,
) -> FrozenTrial:
    return create_trial(
        state=state,
        value=final if state == TrialState.COMPLETE else None,
        params=params,
        distributions=DISTS,
        user_attrs={REPORTS: [[0.25, early + 0.3, 1.0], [0.5, early, 1.0]], **attrs},
        constraints=FINE if constraints is None else constraints,
        intermediate_values={1: early + 0.3, 2: early},
    )


def filled(count: int = 40, *, sign: float = 1.0, seed: int = 0) -> optuna.Study:
    """Finals around 2.0 +- 0.05; early = final + 0.2, and `ema` looks 0.1 worse than it is."""
    study, rng = optuna.create_study(), np.random.default_rng(seed)
    for _ in range(count):
        params, merit = params_of(rng), float(rng.normal(0, 0.05))
        early = 2.2 + sign * merit - OFFSET * params["ema"] + float(rng.normal(0, 0.004))
        study.add_trial(trial_of(params, 2.0 + merit, early))
    return study


def asks(study: optuna.Study, params: dict[str, Any], early: float, pruner: Pruner) -> str | None:
    """The verdict on a running trial that reports `early` half-way."""
    study.add_trial(trial_of(params, None, early, state=TrialState.RUNNING))
    number = study.trials[-1].number
    seen = {0.25: early + 0.3, 0.5: early}
    reports = [{"progress": at, "val_bpb": bpb, "lr_scale": 1.0} for at, bpb in seen.items()]
    verdict = pruner.verdict(study, number, reports)
    assert verdict is None or not verdict.spared
    return verdict.reason if verdict else None


PLAIN = {"ema": False, "qat": False, "lr": 0.03}


def test_what_will_surely_be_worse_is_given_up_and_nothing_else():
    study, pruner = filled(), Pruner(SETTINGS)
    reason = asks(study, PLAIN, 2.25, pruner)  # leads to 2.05
    assert reason and "50% of the budget leads to 2.0" in reason and "40 feasible trials" in reason
    assert asks(study, PLAIN, 2.13, pruner) is None  # leads to 1.93, about the best tenth
    assert asks(study, PLAIN, 2.0, pruner) is None  # better than every feasible trial at this point
    assert pruner.verdict(study, 99, []) is None


def test_a_technique_that_pays_late_is_judged_with_its_offset():
    """At 2.22 a plain run leads to 2.02; one with `ema` to 1.92, among the best."""
    study, pruner = filled(60), Pruner(SETTINGS)
    assert asks(study, PLAIN, 2.22, pruner)
    assert asks(study, {**PLAIN, "ema": True}, 2.22, pruner) is None
    assert asks(study, {**PLAIN, "ema": True}, 2.36, pruner)


def test_a_technique_without_evidence_goes_on_longer():
    """Nobody knows what `qat` does later: the same early BPB convicts less surely."""
    evidence = Pruner(SETTINGS)
    study = filled(60)
    evidence.look(study.trials)
    known = evidence.evidence(0.5)
    features = {"ema=False": 1.0, "lr": 0.0, "lr_scale": 1.0, "mean lr_scale": 1.0}
    sure = known.predict(Point(2.25, {**features, "qat=False": 1.0}))[1]
    odd = known.predict(Point(2.25, {**features, "ema=True": 1.0}))[1]  # both: never seen
    assert odd > sure


def test_a_training_that_met_the_standard_may_try_what_comes_behind_it():
    """One training, two scorers: the early BPB says nothing of the second."""
    for final, goes_on in ((1.9, True), (2.1, False)):
        study = filled()
        assert asks(study, PLAIN, 2.33, Pruner(SETTINGS))
        study.add_trial(trial_of(PLAIN, 2.1, 2.33))
        taken_over = trial_of(PLAIN, final, 2.33)
        taken_over.user_attrs.pop(REPORTS)  # it did not train, and told what was kept
        study.add_trial(taken_over)
        assert (asks(study, PLAIN, 2.33, Pruner(SETTINGS)) is None) == goes_on
        assert asks(study, PLAIN, 2.3301, Pruner(SETTINGS)), "another training"
        assert asks(study, PLAIN, 2.33, Pruner(SETTINGS, exact=False)), "digits of a log are no proof"


def test_too_early_or_too_few_prunes_nothing():
    study, pruner = filled(19), Pruner(SETTINGS)
    assert asks(study, PLAIN, 9.0, pruner) is None
    study, pruner = filled(40), Pruner(SETTINGS)
    reports = [{"progress": 0.25, "val_bpb": 9.0, "lr_scale": 1.0}]
    study.add_trial(trial_of(PLAIN, None, 9.0, state=TrialState.RUNNING))
    assert pruner.verdict(study, 40, reports) is None


@pytest.mark.parametrize("sign", [-1.0, 0.0])
def test_an_order_that_contradicts_or_says_nothing_prunes_nothing(sign: float):
    study, pruner = filled(60, sign=sign), Pruner(SETTINGS)
    for early in (2.1, 2.3, 2.5, 3.0):
        assert asks(study, PLAIN, early, pruner) is None


def test_the_infeasible_set_no_standard():
    """Oversize trials at 1.00 must not kill a feasible one that is among the best of the feasible."""
    study, pruner = filled(), Pruner(SETTINGS)
    for k in range(20):
        study.add_trial(trial_of(PLAIN, 1.0, 1.2 + 0.001 * k, constraints=TOO_BIG))
        study.add_trial(trial_of(PLAIN, None, 1.2, state=TrialState.PRUNED))
    assert asks(study, PLAIN, 2.13, pruner) is None
    assert asks(study, PLAIN, 2.25, pruner)
    assert pruner.standard() > 1.8


def test_some_run_on_and_tell_how_often_it_was_wrong():
    share = np.mean([is_spared(number, 0.1) for number in range(4000)])
    assert 0.08 < share < 0.12 and is_spared(7, 0.1) == is_spared(7, 0.1)
    study, pruner = filled(), Pruner(Pruning(start=0.5, spare=1.0))
    study.add_trial(trial_of(PLAIN, None, 2.25, state=TrialState.RUNNING))
    verdict = pruner.verdict(study, 40, [{"progress": 0.5, "val_bpb": 2.25, "lr_scale": 1.0}])
    assert verdict and verdict.spared and verdict.predicted == pytest.approx(2.05, abs=0.02)
    facts: dict[str, Any] = {SPARED: verdict.facts}
    told: dict[str, Any] = {PREFLIGHT: {"train_seconds": 100.0, "eval_seconds": 10.0}}
    trials = [
        trial_of(PLAIN, 1.9, 2.25, **facts),  # it would have been lost
        trial_of(PLAIN, 2.05, 2.25, **facts),
        trial_of(PLAIN, 1.8, 2.25, constraints=TOO_BIG, **facts),
        trial_of(PLAIN, None, 2.25, state=TrialState.PRUNED, **told),
        trial_of(PLAIN, None, 2.25, state=TrialState.PRUNED, constraints={**FINE, "run": 1.0}, **told),
    ]
    assert spared_wrongly(trials) == (3, 1)
    assert seconds_saved(trials) == pytest.approx(60.0)
    assert pruning_summary(trials).startswith(
        "pruning: 1 trial given up, about 60 s saved; 3 more were spared, 1"
    )
    assert pruning_summary([]) == ""


def test_the_evidence_is_told():
    console = Console(file=io.StringIO(), width=160)
    print_evidence(console, filled(60).trials, SETTINGS)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert "at 50% of 60 trials" in text and "; used" in text and "; not used" in text and "ema=" in text


def test_evidence_is_a_ridge_regression():
    """Left-out residuals and coefficients against the obvious loop."""
    rng = np.random.default_rng(3)
    pts = [
        Point(float(e), {"a": float(a), "b": float(b)}, float(0.8 * e + 0.3 * a + rng.normal(0, 0.1)))
        for e, a, b in rng.normal(size=(40, 3))
    ]
    evidence = Evidence(pts)
    assert evidence.slope[0] == pytest.approx(0.8, abs=0.1) and evidence.slope[1] > 0.5
    found = {name: shift for name, shift, _ in evidence.offsets()}
    assert found["a"] == pytest.approx(0.3, abs=0.1) and abs(found["b"]) < 0.1
    x = np.column_stack((np.ones(40), rng.normal(size=(40, 2))))
    _, coefficients, left_out, _, _ = evidence._fit(x, 0.1)  # pyright: ignore[reportPrivateUsage]
    noise = 0.25 * evidence.unit**2
    penalty = np.diag([1e-9, noise, noise / (0.1 * evidence.unit) ** 2])
    for i in range(40):
        keep = np.arange(40) != i
        beta = np.linalg.solve(x[keep].T @ x[keep] + penalty, x[keep].T @ evidence.finals[keep])
        assert left_out[i] == pytest.approx(evidence.finals[i] - x[i] @ beta, abs=1e-9)
    assert coefficients.shape == (3,)


def test_agreement_is_spearman_with_an_interval():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 9, (2, 30)).astype(float)
    told = agreement(left, right)
    assert told.rank == pytest.approx(float(spearmanr(left, right)[0]))  # type: ignore[arg-type]
    assert told.lower < told.rank
    assert ranks(np.array([3.0, 1.0, 3.0])).tolist() == [1.5, 0.0, 1.5]
    assert agreement(left[:4], right[:4]).lower == -1.0


def test_a_report_without_numbers_is_skipped(tmp_path: Path):
    assert points([{"progress": 0.5, "val_bpb": float("nan"), "lr_scale": 1.0}, {"progress": 0.5}]) == []
    study = optuna.create_study()
    trial = study.ask()
    remember(trial, [{"progress": 0.5, "val_bpb": 2.0, "lr_scale": 1.0}])
    assert study.trials[0].user_attrs[REPORTS] == [[0.5, 2.0, 1.0]]
    settings = make_study(tmp_path, "[pruning]\nfrom = 0.6\nspare = 0.2").pruning
    assert (settings.start, settings.spare) == (0.6, 0.2)


def test_constraints_are_written_once_and_seen():
    study = optuna.create_study()
    trial = study.ask()
    set_all(trial, FINE)
    set_all(trial, TOO_BIG)  # Optuna keeps the first; no warning, no change
    study.tell(trial, 1.0)
    assert study.trials[0].constraints == FINE and feasible(study.trials[0])
    assert study.trials[0].user_attrs["violation_bytes"] == -0.5
    broken = study.ask()
    set_all(broken, {**FINE, "train": float("nan")})
    study.tell(broken, state=TrialState.PRUNED)
    assert not feasible(study.trials[1])
    with pytest.raises(ValueError, match="has the constraints bytes, train, eval, run"):
        set_all(study.ask(), {"run": 1.0})


def test_evidence_is_of_the_latest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("search.pruning.pruner.LATEST", 30)
    pruner = Pruner(SETTINGS)
    pruner.look(filled(60).trials)
    assert pruner.evidence(0.5).count == 30
    assert pruner.evidence(0.5) is pruner.evidence(0.5)
