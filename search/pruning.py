"""Pruner.verdict(study, number, reports) -> why to give a running trial up, or None.

A trial is pruned at a report when its BPB is worse, by more than `margin`, than the `quantile` of
comparable trials at the same share of the budget. Comparable is

- feasible: every constraint kept, or still running and predicted feasible (the sampler's `preflight`
  attribute); what breaks a limit sets no standard, however good it looks;
- equally annealed: the learning-rate scale at that point within `annealing_tolerance`, and the mean scale
  so far too. Until a warm-down starts, runs that differ only in it are identical, and during it BPB falls
  by more than most techniques gain (0.1 BPB between none and 40 %): a point at another scale says nothing
  about the end.

Nothing is pruned before `from` (measured rank correlation with the final BPB, single runs: 0.57 at 50 %,
0.75 at 75 %), nor with fewer than `min_trials` comparable trials. The margin must exceed the noise: a
seed's standard deviation is 0.005 to 0.010 BPB at the laptop's size. No EMA correction across warm-downs is
made: EMA's early BPB orders runs worse than the raw one (0.30 against 0.57).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.constraints import feasible
from search.study import Study

REPORTS = "reports"  # user attribute: [[progress, val_bpb, lr_scale], …]
PREFLIGHT = "preflight"  # user attribute that the sampler writes for what it predicted feasible
SAME_POINT = (
    0.02  # progress of two reports of one grid point differs by less (a step of many is a grid's error)
)
Point = tuple[float, float, float]  # progress, val_bpb, lr_scale


def remember(trial: optuna.Trial, reports: Sequence[Mapping[str, Any]]) -> None:
    """Keeps a trial's reports where other workers' pruners find them."""
    trial.set_user_attr(REPORTS, [list(point) for point in points(reports)])


def points(reports: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The reports that can be compared: those with three finite numbers."""
    found: list[Point] = []
    for report in reports:
        values = [report.get(key) for key in ("progress", "val_bpb", "lr_scale")]
        if all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            found.append(cast("Point", tuple(float(cast("float", v)) for v in values)))
    return found


def remembered(trial: FrozenTrial) -> list[Point]:
    """What `remember` kept."""
    kept = cast("list[list[float]]", trial.user_attrs.get(REPORTS, []))
    return [cast("Point", tuple(point)) for point in kept]


def sets_a_standard(trial: FrozenTrial) -> bool:
    """Whether other trials may be judged by this one."""
    if trial.state == TrialState.RUNNING:
        return PREFLIGHT in trial.user_attrs
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and feasible(trial)


def mean_scale(curve: Sequence[Point], progress: float) -> float:
    """Mean learning-rate scale of the reports up to `progress`: how the run came to where it is."""
    scales = [scale for at, _, scale in curve if at <= progress + SAME_POINT]
    return sum(scales) / len(scales)


class Pruner:
    """The rule above under a study's [pruning] settings."""

    def __init__(self, study: Study):
        self.settings = study.pruning
        self._finished: dict[
            int, list[Point]
        ] = {}  # number -> reports of a finished trial that sets a standard
        self._seen: set[int] = set()

    def _curves(self, study: optuna.Study, number: int) -> list[list[Point]]:
        """The reports of every other trial that sets a standard."""
        running: list[list[Point]] = []
        for trial in study.get_trials(deepcopy=False):
            if trial.number == number or trial.number in self._seen:
                continue
            if trial.state.is_finished():
                self._seen.add(trial.number)
                if sets_a_standard(trial):
                    self._finished[trial.number] = remembered(trial)
            elif sets_a_standard(trial):
                running.append(remembered(trial))
        return [*self._finished.values(), *running]

    def verdict(
        self, study: optuna.Study, trial_number: int, reports: Sequence[Mapping[str, Any]]
    ) -> str | None:
        """Why the trial should stop at its newest report, in one line; None to go on."""
        curve, rule = points(reports), self.settings
        if not curve:
            return None
        progress, bpb, scale = curve[-1]
        if progress < rule.start - SAME_POINT:
            return None
        own_mean, rivals = mean_scale(curve, progress), list[float]()
        for other in self._curves(study, trial_number):
            same = [point for point in other if abs(point[0] - progress) <= SAME_POINT]
            if not same or abs(same[0][2] - scale) > rule.annealing_tolerance:
                continue
            if abs(mean_scale(other, progress) - own_mean) <= rule.annealing_tolerance:
                rivals.append(same[0][1])
        if len(rivals) < rule.min_trials:
            return None
        standard = sorted(rivals)[min(len(rivals) - 1, int(rule.quantile * len(rivals)))]
        if bpb <= standard + rule.margin:
            return None
        return (
            f"val_bpb {bpb:.4f} at {progress:.0%} of the budget is more than {rule.margin:g} above "
            f"{standard:.4f}, the {rule.quantile:.0%} quantile of {len(rivals)} like feasible trials"
        )
