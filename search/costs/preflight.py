"""Preflight: what a configuration will cost, before a second is spent on it, and whether it is admitted.

Bytes and seconds are the bills of search/costs/bills.py under the factors that finished trials taught
(search/costs/factors.py); seconds are learnt for each machine apart. Every prediction has a bound that holds
with probability BOUND: doubt of the factors, what they do not explain, and seeds. The submitted script's
bytes are expected by its techniques (bundle/sizes.py) until a trial with the same ones told them.

Before the first trial the factors are those of the shipped prior (seconds: on a CPU), and the baseline run is
the first row of every model: it tells how fast this machine is. A configuration is admitted when the
probability that it keeps all limits is at least `[sampler] admit`; doubt counts against it. So that no part
of the space stays shut for ever, every EXPLORE-th trial may be one that doubt alone speaks against, and where
nothing reaches `admit` the most probable one is tried (search/samplers/caddie.py).
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from bundle.sizes import expected_bytes
from search.common.attributes import PREFLIGHT
from search.costs import bills as costs
from search.costs.factors import Bill, CostModel, Estimate, Learnt
from search.study.limits import LIMITS, REQUIRED, Limit
from search.study.model import Study
from search.trainers.trainer import Trainer
from techniques.config import Resolved

Prior = Mapping[str, Learnt]  # `bytes`, `train`, `eval`
BOUND = 0.975  # probability that a measurement stays below its bound
EXPLORE = 20  # trials for one that may be tried although it is doubtful
DOUBTFUL = 0.5  # the probability that such a one needs when doubt counts for it, by a standard deviation


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
    def begin(self, number: int) -> None: ...  # the trial that is sampled now
    # `what: facts`; None when it is worth a trial. `doubtful`: or may keep the limits for all that is known
    def rejection(self, resolved: Any, *, doubtful: bool = False) -> str | None: ...
    def chance(self, resolved: Any) -> float: ...  # the probability that it keeps all limits
    # from finished trials; `study` names another study that they come from
    def learn(self, results: Iterable[tuple[Any, Mapping[str, Any]]], *, study: str = "") -> None: ...
    def forget_carried(self) -> bool: ...  # drops what other studies taught; False: there was nothing


class Seconds:
    """Of one machine; `prior` for those of its kind."""

    def __init__(self, prior: Prior):
        self.models = {kind: costs.second_model(prior.get(kind)) for kind in ("train", "eval")}


class Preflight:
    """One a worker, taught with the trials that finish anywhere. `hardware`: where the next trial runs;
    `prior`: what the cost models begin at, {} for nothing, None for the shipped one."""

    def __init__(self, study: Study, *, hardware: str = "", prior: Prior | None = None):
        self.study = study
        self.hardware = hardware
        self.prior = costs.learnt_before() if prior is None else prior
        self.model_bytes = costs.byte_model(self.prior.get("bytes"))
        self.factor = ""  # this study's own, once others taught something: see costs.from_study
        self.machines: dict[str, Seconds] = {}
        self._known_code: dict[tuple[str, ...], int] = {}  # techniques -> code bytes that a result told
        self._learnt: set[tuple[str, Any]] = set()
        self._explores = False

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

    def begin(self, number: int) -> None:
        self._explores = number > 0 and number % EXPLORE == 0

    def rejection(self, resolved: Resolved, *, doubtful: bool = False) -> str | None:
        for name, technique in resolved.techniques.items():
            law, track = technique.verdict(), self.study.track
            if not law.admitted(track):
                return f"legality: {name} is {law.verdict.value} on the track {track} ({law.source})"
        doubtful = doubtful or self._explores
        told = self._judged(resolved)
        sure = [(e.without_doubt() if doubtful else e).chance(most) for _, e, most in told]
        if math.prod(sure) >= (DOUBTFUL if doubtful else self.study.sampler.admit):
            return None
        limit, estimate, most = min(told, key=lambda one: one[1].chance(one[2]))
        code = self.code_bytes(resolved) if limit.constraint == "bytes" else 0
        return (
            f"{limit.constraint}: {limit.over(estimate.value + code, most + code)} predicted; "
            f"within all limits with a probability of {self.chance(resolved):.0%}"
        )

    def chance(self, resolved: Resolved) -> float:
        return math.prod(estimate.chance(most) for _, estimate, most in self._judged(resolved))

    def _judged(self, resolved: Resolved) -> list[tuple[Limit, Estimate, float]]:
        """What is predicted, and how much of it is allowed: of bytes, beside the script."""
        limits = self.study.limits
        size = self._bytes(resolved)
        train = self._train(resolved, to_judge=True)
        evaluation = self._eval(resolved, to_judge=True)
        room = limits.artifact_bytes - self.code_bytes(resolved)
        found = zip(REQUIRED, (size, train, evaluation), strict=True)
        return [
            (limit, estimate, room if limit.constraint == "bytes" else limits.of(limit))
            for limit, estimate in found
            if estimate is not None
        ]

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
            if not study and (code := _positive(result, "code_bytes")):
                self._known_code[tuple(sorted(resolved.techniques))] = int(code)
            seconds = self._machine(str(result.get("hardware") or self.hardware))
            for kind, bill, measured in bills_of(resolved, result):
                model = self.model_bytes if kind == "bytes" else seconds.models[kind]
                model.add(self._told_by(bill, study), measured, carried=bool(study))

    def forget_carried(self) -> bool:
        models = [self.model_bytes]
        models += [model for machine in self.machines.values() for model in machine.models.values()]
        return any([model.forget_carried() for model in models])

    def _told_by(self, bill: Bill, study: str = "") -> Bill:
        return costs.from_study(bill, study or self.factor)

    def _machine(self, hardware: str) -> Seconds:
        """GPUs are described by their number, CPUs by their threads: search/common/machine.py."""
        alike = "thread" in hardware or not hardware
        return self.machines.setdefault(hardware, Seconds(self.prior if alike else {}))

    def seconds(self, kind: str) -> CostModel:
        return self._machine(self.hardware).models[kind]

    def _bytes(self, resolved: Resolved) -> Estimate:
        """Beside the script. Under a target that can surely be reached, at most what it leaves; under another
        one, the least that can be, or what it leaves."""
        estimate = self.model_bytes.estimate(self._told_by(costs.model_bill(resolved)))
        if not (target := costs.target_bytes(resolved)):
            return estimate
        room = max(1.0, float(target - self.code_bytes(resolved)))
        least = self.model_bytes.estimate(self._told_by(costs.model_bill(resolved, least=True)))
        if least.upper(BOUND) <= room:
            return replace(estimate, most=room)
        return replace(least, log=min(estimate.log, max(least.log, math.log(room))))

    def _train(self, resolved: Resolved, *, to_judge: bool = False) -> Estimate | None:
        config = resolved.config
        model = self.seconds("train")
        budget = config.max_wallclock_seconds
        if not budget:
            return self._known(model, costs.train_bill(resolved, config.iterations), to_judge)
        calibration = costs.calibration_bill(resolved)
        more = self._known(model, calibration, to_judge) if calibration else None
        if more is None:  # the budget is the prediction
            return Estimate(math.log(budget), 0.0, 0.0)
        return replace(more, sure=budget - config.reserve_seconds)

    def _eval(self, resolved: Resolved, *, to_judge: bool = False) -> Estimate | None:
        return self._known(self.seconds("eval"), costs.eval_bill(resolved), to_judge)

    def _known(self, model: CostModel, bill: Bill, to_judge: bool) -> Estimate | None:
        """The estimate, once a run tells how fast the machine is; to judge by, one of this study's."""
        told = model.rows if to_judge else model.rows or model.carried
        return model.estimate(self._told_by(bill)) if told else None

    def code_bytes(self, resolved: Resolved) -> int:
        """Bytes of the submitted script: told by a result with the same techniques, else expected."""
        known = self._known_code.get(tuple(sorted(resolved.techniques)))
        return expected_bytes(resolved.techniques) if known is None else known


def bills_of(resolved: Resolved, result: Mapping[str, Any]) -> Iterator[tuple[str, Bill, float]]:
    """(`bytes`, `train` or `eval`; the bill; what was measured) of all that a result tells."""
    code = _positive(result, "code_bytes")
    artifact = _positive(result, "artifact_bytes")
    if code and artifact > code and not costs.target_bytes(resolved):  # made to fit, it tells nothing
        yield "bytes", costs.model_bill(resolved), artifact - code
    if evaluated := _positive(result, "eval_seconds"):
        yield "eval", costs.eval_bill(resolved), evaluated
    steps = _positive(result, "steps") or float(resolved.config.iterations)
    stages: Mapping[str, Any] = result.get("stage_seconds") or {}
    if trained := _positive(stages, "train"):
        yield "train", costs.steps_bill(resolved, steps), trained
        calibration = costs.calibration_bill(resolved)
        calibrated = _positive(stages, "quantize")
        if calibration and calibrated:
            yield "train", calibration, calibrated
    elif whole := _positive(result, "train_seconds"):
        yield "train", costs.train_bill(resolved, steps), whole


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
    def begin(self, number: int) -> None: ...
    def rejection(self, resolved: object, *, doubtful: bool = False) -> None: ...
    def chance(self, resolved: object) -> float:
        return 1.0

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
