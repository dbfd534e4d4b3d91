"""The pruning rule: late, by more than noise, against feasible and equally annealed trials only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from search.constraints import CONSTRAINTS, feasible, set_all
from search.pruning import PREFLIGHT, REPORTS, Pruner, remember
from tests.search.fakes import make_study

GRID = (0.25, 0.5, 0.75)
FINE: dict[str, float] = {key: -0.5 for key in CONSTRAINTS}
TOO_BIG = {**FINE, "bytes": 0.1}


def scale(progress: float, warmdown: float) -> float:
    """The learning-rate scale of a linear warm-down over the last share of the budget."""
    return min(1.0, (1.0 - progress) / warmdown) if warmdown else 1.0


def curve(bpb: float, warmdown: float = 0.4, until: float = 1.0) -> list[dict[str, Any]]:
    """Reports of a run that ends near `bpb`; BPB falls with the learning rate, by 0.1 in all."""
    return [
        {
            "progress": p,
            "lr_scale": scale(p, warmdown),
            "val_bpb": bpb + 0.4 * (1 - p) + 0.1 * scale(p, warmdown),
        }
        for p in GRID
        if p <= until
    ]


def finished(
    reports: Sequence[dict[str, Any]],
    constraints: dict[str, float] | None = None,
    state: TrialState = TrialState.COMPLETE,
):
    kept = [[r["progress"], r["val_bpb"], r["lr_scale"]] for r in reports]
    value = reports[-1]["val_bpb"] if state == TrialState.COMPLETE else None
    return create_trial(
        state=state,
        value=value,
        user_attrs={REPORTS: kept},
        constraints=FINE if constraints is None else constraints,
    )


@pytest.fixture
def rig(tmp_path: Path):
    study = make_study(tmp_path, "[pruning]\nfrom = 0.5\nmargin = 0.02\nmin_trials = 5")
    return Pruner(study), optuna.create_study()


def test_worse_than_like_trials_by_more_than_the_margin(rig: tuple[Pruner, optuna.Study]):
    pruner, study = rig
    for k in range(6):
        study.add_trial(finished(curve(2.0 + 0.002 * k)))
    assert pruner.verdict(study, 99, curve(2.0 + 0.015, until=0.5)) is None  # within the noise
    assert pruner.verdict(study, 99, curve(3.0, until=0.25)) is None  # too early, however bad
    reason = pruner.verdict(study, 99, curve(2.1, until=0.5))
    assert reason and "50%" in reason and "6 like feasible trials" in reason
    assert pruner.verdict(study, 99, []) is None


def test_too_few_comparable_trials_prune_nothing(rig: tuple[Pruner, optuna.Study]):
    pruner, study = rig
    for _ in range(4):
        study.add_trial(finished(curve(2.0)))
    assert pruner.verdict(study, 99, curve(9.0)) is None
    study.add_trial(finished(curve(2.0)))
    assert pruner.verdict(study, 99, curve(9.0))


def test_the_warmdown_trap(rig: tuple[Pruner, optuna.Study]):
    """Long warm-downs look 0.03 better half-way; the short one that ends best must not be killed by them."""
    pruner, study = rig
    for _ in range(8):
        study.add_trial(finished(curve(2.0, warmdown=0.9)))
    late_bloomer = curve(1.95, warmdown=0.1)
    assert (
        late_bloomer[1]["val_bpb"]
        > curve(1.97, warmdown=0.9)[1]["val_bpb"]
        > curve(1.95, warmdown=0.9)[1]["val_bpb"]
    )
    assert pruner.verdict(study, 99, curve(2.05, warmdown=0.1, until=0.75)) is None
    assert pruner.verdict(study, 99, curve(2.05, warmdown=0.9, until=0.75))


def test_equal_scales_reached_along_other_ways_are_not_compared(rig: tuple[Pruner, optuna.Study]):
    pruner, study = rig
    for _ in range(8):
        study.add_trial(finished(curve(2.0, warmdown=1.0)))
    held = curve(2.1, warmdown=0.5)  # 0.5 at 75 %
    held[-1]["lr_scale"] = 0.25  # the others' scale there, after a much later fall
    assert pruner.verdict(study, 99, held) is None


def test_the_infeasible_set_no_standard(rig: tuple[Pruner, optuna.Study]):
    """20 oversize trials at 1.00 must not kill a feasible 1.20 where feasible trials reach 1.30."""
    pruner, study = rig
    for _ in range(20):
        study.add_trial(finished(curve(1.0), TOO_BIG))
    for _ in range(5):
        study.add_trial(finished(curve(1.3)))
    assert pruner.verdict(study, 99, curve(1.2)) is None
    assert pruner.verdict(study, 99, curve(1.4))


def test_pruned_trials_count_and_running_ones_only_when_predicted_feasible(rig: tuple[Pruner, optuna.Study]):
    pruner, study = rig
    for _ in range(3):
        study.add_trial(finished(curve(2.0)))
    study.add_trial(finished(curve(2.0, until=0.5), state=TrialState.PRUNED))
    running = study.ask()
    remember(running, curve(2.0, until=0.5))
    assert pruner.verdict(study, 99, curve(9.0, until=0.5)) is None
    running.set_user_attr(PREFLIGHT, {"artifact_bytes": 1})
    assert pruner.verdict(study, 99, curve(9.0, until=0.5))
    assert pruner.verdict(study, running.number, curve(9.0, until=0.5)) is None  # it is no rival of itself


def test_a_report_without_numbers_is_skipped(rig: tuple[Pruner, optuna.Study]):
    pruner, study = rig
    for _ in range(6):
        study.add_trial(finished(curve(2.0)))
    assert pruner.verdict(study, 99, [{"progress": 0.5, "val_bpb": float("nan"), "lr_scale": 1.0}]) is None
    assert pruner.verdict(study, 99, [{"progress": 0.5}]) is None


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
