"""Preflight: what a configuration will cost, before a second is spent on it, and whether it is admitted.

Bytes and seconds are the bills of search/costs/bills.py under the factors that finished trials taught
(search/costs/factors.py); seconds are learnt for each machine apart. Every prediction has a bound that holds
with probability BOUND: doubt of the factors, what they do not explain, and seeds. The submitted script's
bytes are expected by its techniques (bundle/sizes.py) until a trial with the same ones told them.

A configuration is turned away when a limit lies below its prediction moved by the noise that no trial can
lower: for bytes up to the bound (a byte too many voids a run; 1 % of spread costs little), for seconds not
at all (another program on the machine moves them by a tenth, and half of the space would be lost). Doubt
beyond the noise counts for the configuration: what was never tried is tried once.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from bundle.sizes import expected_bytes
from search.common.attributes import PREFLIGHT
from search.costs import bills as costs
from search.costs.factors import Bill, CostModel, Estimate
from search.study.limits import LIMITS
from search.study.model import Study
from search.trainers.trainer import Trainer
from techniques.config import Resolved

BOUND = 0.975  # probability that a measurement stays below its bound
OWN = 3  # own trials before seconds carried over from others turn anything away: one may have stalled
ADMITTED = {"bytes": BOUND, "train": 0.5, "eval": 0.5}  # noise that a configuration must leave room for


@dataclass(frozen=True)
class Prediction:
    """What a configuration is predicted to cost; None where no finished trial tells."""

    params: int
    artifact_bytes: int
    artifact_bytes_upper: int
    train_seconds: float | None
    train_seconds_upper: float | None
    eval_seconds: float | None
    eval_seconds_upper: float | None


class Costs(Protocol):
    """What a study's runs will cost, and which are worth a trial; a run is what the space resolves to."""

    @property
    def study(self) -> Study: ...
    def predict(self, resolved: Any) -> Prediction | None: ...  # None where nothing is known of costs
    def rejection(self, resolved: Any) -> str | None: ...  # `what: facts`; None when it is worth a trial
    # from finished trials; `study` names another study that they come from
    def learn(self, results: Iterable[tuple[Any, Mapping[str, Any]]], *, study: str = "") -> None: ...
    def forget_carried(self) -> bool: ...  # drops what other studies taught; False: there was nothing


class Seconds:
    def __init__(self):
        self.train, self.evaluate = costs.second_model(), costs.second_model()


class Preflight:
    """One a worker, taught with the trials that finish anywhere. `hardware`: where the next trial runs."""

    def __init__(self, study: Study, *, hardware: str = ""):
        self.study = study
        self.hardware = hardware
        self.model_bytes = costs.byte_model()
        self.factor = ""  # this study's own, once others taught something: see costs.from_study
        self.machines: dict[str, Seconds] = {}
        self._known_code: dict[tuple[str, ...], int] = {}  # techniques -> code bytes that a result told
        self._learnt: set[tuple[str, Any]] = set()

    def predict(self, resolved: Resolved) -> Prediction:
        size, code = self._bytes(resolved), self.code_bytes(resolved)
        train, evaluation = self._train(resolved), self._eval(resolved)
        return Prediction(
            params=costs.num_params(resolved),
            artifact_bytes=round(size.value) + code,
            artifact_bytes_upper=round(size.upper(BOUND)) + code,
            train_seconds=train.value if train else None,
            train_seconds_upper=train.upper(BOUND) if train else None,
            eval_seconds=evaluation.value if evaluation else None,
            eval_seconds_upper=evaluation.upper(BOUND) if evaluation else None,
        )

    def rejection(self, resolved: Resolved) -> str | None:
        for name, technique in resolved.techniques.items():
            law, track = technique.verdict(), self.study.track
            if not law.admitted(track):
                return f"legality: {name} is {law.verdict.value} on the track {track} ({law.source})"
        limits, size, code = self.study.limits, self._bytes(resolved), self.code_bytes(resolved)
        if admitted_at(size, "bytes") + code > limits.artifact_bytes:
            upper = round(size.upper(BOUND)) + code
            return f"bytes: up to {upper:,} predicted, {limits.artifact_bytes:,} allowed"
        for what, estimate, limit in (
            ("train", self._train(resolved, to_judge=True), limits.train_seconds),
            ("eval", self._eval(resolved, to_judge=True), limits.eval_seconds),
        ):
            if estimate and admitted_at(estimate, what) > limit:
                return f"{what}: {estimate.value:.4g} s predicted, {limit:g} s allowed"
        return None

    def learn(self, results: Iterable[tuple[Resolved, Mapping[str, Any]]], *, study: str = "") -> None:
        """Calibrate from finished trials; one seen before is skipped, a missing figure teaches nothing.
        `study` names another study that they come from: what differs between the two is not carried over.
        Other studies come before the first trial of this one."""
        assert not study or self.factor or not self._learnt
        self.factor = self.study.name if study else self.factor
        for resolved, result in results:
            key = (resolved.hash(), result.get("train_seconds"))
            if key in self._learnt:
                continue
            self._learnt.add(key)
            code, artifact = _positive(result, "code_bytes"), _positive(result, "artifact_bytes")
            if code and artifact > code:
                if not study:
                    self._known_code[tuple(sorted(resolved.techniques))] = int(code)
                bill = self._told_by(costs.model_bill(resolved), study)
                self.model_bytes.add(bill, artifact - code, carried=bool(study))
            self._learn_seconds(resolved, result, study)

    def forget_carried(self) -> bool:
        models = [self.model_bytes]
        models += [model for machine in self.machines.values() for model in (machine.train, machine.evaluate)]
        return any([model.forget_carried() for model in models])

    def _told_by(self, bill: Bill, study: str = "") -> Bill:
        return costs.from_study(bill, study or self.factor)

    def _learn_seconds(self, resolved: Resolved, result: Mapping[str, Any], study: str) -> None:
        machine = self.machines.setdefault(str(result.get("hardware") or self.hardware), Seconds())

        def add(model: CostModel, bill: Bill | None, seconds: float) -> None:
            if bill and seconds:
                model.add(self._told_by(bill, study), seconds, carried=bool(study))

        add(machine.evaluate, costs.eval_bill(resolved), _positive(result, "eval_seconds"))
        steps = _positive(result, "steps") or float(resolved.config.iterations)
        stages: Mapping[str, Any] = result.get("stage_seconds") or {}
        if trained := _positive(stages, "train"):
            add(machine.train, costs.steps_bill(resolved, steps), trained)
            add(machine.train, costs.calibration_bill(resolved), _positive(stages, "quantize"))
        else:
            add(machine.train, costs.train_bill(resolved, steps), _positive(result, "train_seconds"))

    def seconds(self) -> Seconds:
        return self.machines.get(self.hardware) or Seconds()

    def _bytes(self, resolved: Resolved) -> Estimate:
        return self.model_bytes.estimate(self._told_by(costs.model_bill(resolved)))

    def _train(self, resolved: Resolved, *, to_judge: bool = False) -> Estimate | None:
        config, model = resolved.config, self.seconds().train
        budget = config.max_wallclock_seconds
        if not budget:
            return self._known(model, costs.train_bill(resolved, config.iterations), to_judge)
        calibration = costs.calibration_bill(resolved)
        more = self._known(model, calibration, to_judge) if calibration else None
        if more is None:  # the budget is the prediction
            return Estimate(math.log(budget), 0.0, 0.0)
        total = budget - config.reserve_seconds + more.value
        share = more.value / total
        return Estimate(math.log(total), share * more.spread, share * more.doubt, more.dof)

    def _eval(self, resolved: Resolved, *, to_judge: bool = False) -> Estimate | None:
        return self._known(self.seconds().evaluate, costs.eval_bill(resolved), to_judge)

    def _known(self, model: CostModel, bill: Bill, to_judge: bool) -> Estimate | None:
        """The estimate, once a trial tells how fast the machine is; to judge by, of this study."""
        own, carried = len(model.rows), len(model.carried)
        enough = own >= (OWN if carried else 1) if to_judge else own + carried > 0
        return model.estimate(self._told_by(bill)) if enough else None

    def code_bytes(self, resolved: Resolved) -> int:
        """Bytes of the submitted script: told by a result with the same techniques, else expected."""
        known = self._known_code.get(tuple(sorted(resolved.techniques)))
        return expected_bytes(resolved.techniques) if known is None else known


def admitted_at(estimate: Estimate, what: str) -> float:
    """What the limit is compared with: see the head of this file."""
    optimism = max(0.0, estimate.doubt - estimate.spread)
    return estimate.upper_if_sure(ADMITTED[what]) * math.exp(-optimism)


def _positive(result: Mapping[str, Any], key: str) -> float:
    """The figure (of a stage: its timed seconds) when it is a positive finite number, else 0."""
    value = result.get(key)
    if isinstance(value, Mapping):
        value = value.get("timed")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return float(value) if isinstance(value, int | float) and 0 < value < math.inf else 0.0


@dataclass(frozen=True)
class NoCosts:
    """Knows no costs: whatever the space gives is tried, and the limits judge it afterwards."""

    study: Study

    def predict(self, resolved: object) -> None: ...
    def rejection(self, resolved: object) -> None: ...
    def learn(self, results: Iterable[tuple[object, Mapping[str, Any]]], *, study: str = "") -> None: ...

    def forget_carried(self) -> bool:
        return False


def costs_of(trainer: Trainer, study: Study, hardware: str = "") -> Costs:
    return Preflight(study, hardware=hardware) if trainer.predicts_costs else NoCosts(study)


@dataclass(frozen=True)
class Pair:
    """One prediction and what came of it, in bytes or seconds."""

    predicted: float
    upper: float
    measured: float

    @property
    def error(self) -> float:
        return self.measured / self.predicted - 1.0


def pair_of(attrs: Mapping[str, Any], figure: str) -> Pair | None:
    prediction = cast("Mapping[str, float]", attrs.get(PREFLIGHT) or {})
    predicted = prediction.get(figure)
    upper = prediction.get(f"{figure}_upper")
    measured = attrs.get(figure)
    if not (predicted and measured):
        return None
    return Pair(float(predicted), float(upper or predicted), float(measured))


def errors_of(attrs: Mapping[str, Any]) -> dict[str, float]:
    """constraint -> relative error, of the figures that were predicted and measured."""
    pairs = {limit.constraint: pair_of(attrs, limit.figure) for limit in LIMITS}
    return {name: round(pair.error, 4) for name, pair in pairs.items() if pair}
