"""Pruner.verdict(study, number, reports) -> why to give a running trial up, or None.

A trial is given up at a report when its final BPB is predicted (search/pruning/evidence.py, at that share of
the budget) to be worse than the standard, the `quantile` of the finals of feasible trials plus `margin`, with
probability `confidence`. The prediction is used only where

- at least `min_trials` feasible trials have ended that reported there; the infeasible, however good they
  look, set no standard and are no evidence;
- the early order has been shown to predict the final one: `agreement` at the lower end of its interval, and
  a positive slope of the final on the early BPB;
- the budget's share `from` is over (measured rank correlation with the final BPB, single runs: 0.57 at 50 %,
  0.75 at 75 %), and some feasible trial was better at this point.

What the evidence lacks has an unknown offset, hence a wide prediction, and goes on. So does a trial whose
reports are, to the bit, those of a trial which met the standard (taken over from a kept training or not): its
training so far is the same, and it tries what comes behind, of which no early BPB tells. The share `spare` of
the trials that would be given up run on all the same: they keep the evidence honest and tell what was wrong.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from search.common.attributes import REPORTS
from search.common.numeric import place
from search.pruning.evidence import Evidence, Point
from search.study.limits import feasible
from search.study.model import Pruning

SAME_POINT = 0.02  # progress of two reports of one grid point differs by less (a step's error)
LATEST = 600  # feasible trials that evidence is fitted to: the newest are nearest to what is tried now
MORE = 1.05  # times as many trials, before evidence is fitted again
Report = tuple[float, float, float]  # progress, val_bpb, lr_scale
Curve = tuple[tuple[int, float], ...]  # grid point, val_bpb


@dataclass(frozen=True)
class Verdict:
    """The trial should end here; unless `spared`, it does."""

    reason: str  # one line
    spared: bool
    progress: float
    predicted: float  # val_bpb at the end
    standard: float  # val_bpb that it would have to reach

    @property
    def facts(self) -> dict[str, float]:
        predicted = round(self.predicted, 6)
        standard = round(self.standard, 6)
        return {"progress": self.progress, "predicted": predicted, "standard": standard}


def remember(trial: optuna.Trial, reports: Sequence[Mapping[str, Any]]) -> None:
    """Keeps a trial's reports where other workers' pruners find them."""
    trial.set_user_attr(REPORTS, [list(point) for point in points(reports)])


def points(reports: Sequence[Mapping[str, Any]]) -> list[Report]:
    """The reports that can be compared: those with three finite numbers."""
    found: list[Report] = []
    for report in reports:
        values = [report.get(key) for key in ("progress", "val_bpb", "lr_scale")]
        if all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            found.append(cast("Report", tuple(float(cast("float", v)) for v in values)))
    return found


def remembered(trial: FrozenTrial) -> list[Report]:
    return [cast("Report", tuple(point)) for point in trial.user_attrs.get(REPORTS, [])]


def curve_of(trial: FrozenTrial) -> Curve:
    """All that a trial told, also of a training that it took over, which it does not remember."""
    return tuple(sorted(trial.intermediate_values.items()))


def is_evidence(trial: FrozenTrial) -> bool:
    """Whether the trial shows how an early BPB ends, and what a feasible trial can reach."""
    return trial.state == TrialState.COMPLETE and trial.value is not None and feasible(trial)


def features_of(trial: FrozenTrial) -> dict[str, float]:
    """Of its parameters: choices (0 or 1), numbers (-1 to 1 over their range); not where nothing varies."""
    found: dict[str, float] = {}
    distributions = trial.distributions
    for name, value in trial.params.items():
        dist = distributions[name]
        if dist.single():
            continue
        if isinstance(dist, CategoricalDistribution):
            found[f"{name}={value}"] = 1.0
        else:
            found[name] = place(dist, value)
    return found


def with_rates(configuration: Mapping[str, float], curve: list[Report], progress: float) -> dict[str, float]:
    """The configuration's features, and the learning-rate scale now and on average so far."""
    scales = [scale for at, _, scale in curve if at <= progress + SAME_POINT]
    mean = 2.0 * sum(scales) / len(scales) - 1.0
    return {**configuration, "lr_scale": 2.0 * scales[-1] - 1.0, "mean lr_scale": mean}


def is_spared(number: int, share: float) -> bool:
    """Whether a trial of this number runs on: the same answer everywhere and at every report."""
    return random.Random(number).random() < share


class Pruner:
    """The rule above under a study's [pruning] settings."""

    def __init__(self, settings: Pruning, *, exact: bool = True):
        """`exact`: reports are to the bit, so that equal ones are of one training; not those of a log."""
        self.settings = settings
        self.exact = exact
        self._finished: dict[int, FrozenTrial] = {}  # what is evidence, by number
        self._features: dict[int, dict[str, float]] = {}  # of their configurations
        self._seen: set[int] = set()
        self._reached: dict[Curve, float] = {}  # what was reported so far -> best final of such trials
        self._points: dict[int, dict[int, Point | None]] = {}  # point of the budget -> trial -> what it says
        self._known: dict[int, tuple[int, Evidence]] = {}  # point of the budget -> trials, their evidence

    def look(self, trials: Sequence[FrozenTrial]) -> None:
        for trial in trials:
            if trial.number not in self._seen and trial.state.is_finished():
                self._seen.add(trial.number)
                if is_evidence(trial):
                    self._finished[trial.number] = trial
                    curve = curve_of(trial)
                    for so_far in (curve[: k + 1] for k in range(len(curve))):
                        best = self._reached.get(so_far, math.inf)
                        self._reached[so_far] = min(best, cast("float", trial.value))

    def evidence(self, progress: float) -> Evidence:
        """Of all that has finished and was looked at; fitted again once that is a twentieth more."""
        key, count = round(progress / SAME_POINT), len(self._finished)
        known = self._known.get(key)
        if known is None or count >= MORE * known[0]:
            points_here, latest = self._points.setdefault(key, {}), sorted(self._finished)[-LATEST:]
            for number in latest:
                if number not in points_here:
                    points_here[number] = self._point_at(number, progress)
            found = [points_here[number] for number in latest]
            known = count, Evidence([point for point in found if point is not None])
            self._known[key] = known
        return known[1]

    def _point_at(self, number: int, progress: float) -> Point | None:
        """A finished trial as evidence at this share of the budget; None if it did not report there."""
        trial = self._finished[number]
        curve = remembered(trial)
        same = [bpb for at, bpb, _ in curve if abs(at - progress) <= SAME_POINT]
        if not same:
            return None
        if number not in self._features:
            self._features[number] = features_of(trial)
        return Point(same[0], with_rates(self._features[number], curve, progress), cast("float", trial.value))

    def standard(self) -> float:
        """val_bpb that a trial must be able to reach."""
        finals = sorted(cast("float", trial.value) for trial in self._finished.values())
        return finals[min(len(finals) - 1, int(self.settings.quantile * len(finals)))] + self.settings.margin

    def verdict(
        self, study: optuna.Study, number: int, reports: Sequence[Mapping[str, Any]]
    ) -> Verdict | None:
        """What to do with the trial at its newest report; None: let it go on."""
        curve, rule = points(reports), self.settings
        if not curve or curve[-1][0] < rule.start - SAME_POINT:
            return None
        trials = study.get_trials(deepcopy=False)
        self.look([trial for trial in trials if trial.number != number])
        trial = next((t for t in reversed(trials) if t.number == number), None)
        if trial is None or len(self._finished) < rule.min_trials:
            return None
        progress, bpb, _ = curve[-1]
        evidence = self.evidence(progress)
        known = evidence.count >= rule.min_trials and evidence.tells(rule.agreement)
        if not known or bpb <= evidence.best_early:
            return None
        standard = self.standard()
        if self.exact and self._reached.get(curve_of(trial), math.inf) <= standard:
            return None
        point = Point(bpb, with_rates(features_of(trial), curve, progress))
        probability = evidence.probability_worse(point, standard)
        if probability < rule.confidence:
            return None
        predicted = evidence.predict(point)[0]
        reason = (
            f"val_bpb {bpb:.4f} at {progress:.0%} of the budget leads to {predicted:.4f}: above "
            f"{standard:.4f}, the {rule.quantile:.0%} quantile of {len(self._finished)} feasible trials, "
            f"with probability {math.floor(1000 * probability) / 1000:.3f}"
        )
        return Verdict(reason, is_spared(number, rule.spare), progress, predicted, standard)
