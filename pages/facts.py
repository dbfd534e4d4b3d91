"""facts_of(session) -> Facts: all that a report says about a study, as plain data; its JSON form."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from optuna.trial import FrozenTrial, TrialState

from pages.claimed import Ablation, Compared, read_answers
from search.common import attributes as stored
from search.report.effects import LARGEST, LEARNED, Effect, Findings, find_effects
from search.report.leaderboard import NOISE, reproduce_command
from search.report.rows import (
    Beliefs,
    Confirmations,
    beliefs_of_study,
    confirmed_of,
    confirmed_text,
    ranked,
    short,
)
from search.report.shown import Course, course_of, curve_of
from search.session.session import Session, baseline_of
from search.study.limits import LIMITS, Limit, Limits, feasible, has_failed

FEASIBLE = "feasible"
OVER = "over a limit"
PRUNED = "pruned"
FAILED = "failed"
INTERRUPTED = "interrupted"
RUNNING = "running"
WAITING = "waiting"
STATES = (FEASIBLE, OVER, PRUNED, FAILED, INTERRUPTED, RUNNING, WAITING)
HOUR_S = 3600.0


@dataclass(frozen=True)
class TrialFacts:
    """One trial; None where nothing is known."""

    number: int
    state: str  # one of STATES
    bpb: float | None  # bits per byte
    figures: Mapping[str, float]  # bytes and seconds that a limit is on
    over: tuple[str, ...]  # constraints of the limits that it broke
    reason: str
    techniques: tuple[str, ...]
    inactive: tuple[str, ...]
    findings: tuple[str, ...]
    legality: str
    curve: tuple[tuple[float, float], ...]  # (step, early BPB), and the score at the end
    worker: str
    began_s: float | None  # of the epoch
    ended_s: float | None
    chain: tuple[tuple[str, float], ...]  # (link, BPB), from the last weights to the scorer
    confirmed: str  # its mean on fresh seeds, in words
    believed: float | None = None  # bits per byte, by the surrogate's posterior mean

    @property
    def seconds(self) -> float:
        """On the clock; 0 of a trial that has not ended."""
        known = self.began_s is not None and self.ended_s is not None
        return max(0.0, cast("float", self.ended_s) - cast("float", self.began_s)) if known else 0.0


@dataclass(frozen=True)
class LimitFacts:
    """One limit of the study."""

    constraint: str
    figure: str
    label: str
    unit: str
    most: float


@dataclass(frozen=True)
class Group:
    """A configuration on several seeds."""

    label: str
    search_bpb: float | None
    text: str
    bpb: float | None  # mean
    sd: float | None
    seeds: int
    against: str
    difference: float | None  # of means, bits per byte
    shrunken: float | None  # what the search value lets expect
    rule: bool | None  # whether the challenge's rule holds, limits too; None: it was not asked
    notes: tuple[str, ...] = ()  # on tokenizers that differ


@dataclass(frozen=True)
class Facts:
    """Of one study."""

    name: str
    question: str
    track: str
    start: str  # what it starts from
    limits: tuple[LimitFacts, ...]
    limits_text: str
    baseline: Mapping[str, Any] | None
    trials: tuple[TrialFacts, ...]  # by number
    best: tuple[int, ...]  # feasible ones, the best first
    winner: Mapping[str, str]  # settings of the best, as they were sampled
    repeat: str  # the command that runs it again
    effects: Findings | None
    no_effects: str  # why there are none
    groups: tuple[Group, ...]
    compared: tuple[Compared, ...]  # in this home, the newest first
    ablation: Ablation | None
    devices: tuple[str, ...]
    gpus: int  # of a trial; 0: a CPU
    dollars_per_gpu_hour: float  # 0: not known
    in_nats: bool  # whether a score is a loss in nats per token, not bits per byte
    caution: str = NOISE

    def counts(self) -> Counter[str]:
        return Counter(trial.state for trial in self.trials)

    def over_counts(self) -> Counter[str]:
        """Constraint -> trials that broke it."""
        return Counter(name for trial in self.trials for name in trial.over)

    def failures(self) -> Counter[str]:
        """What made configurations fail -> how many."""
        failed = [trial for trial in self.trials if trial.state == FAILED]
        return Counter(trial.reason.partition(":")[0] or "not told" for trial in failed)

    def named(self, number: int) -> TrialFacts:
        return next(trial for trial in self.trials if trial.number == number)

    def hours(self) -> float:
        """Of trials on the clock, summed: an hour of 8 GPUs is one hour."""
        return sum(trial.seconds for trial in self.trials) / HOUR_S

    def gpu_hours(self) -> float:
        return self.hours() * self.gpus

    def dollars(self) -> float | None:
        """What its GPUs cost; None where nobody knows, or on a CPU."""
        return self.gpu_hours() * self.dollars_per_gpu_hour or None


def facts_of(session: Session) -> Facts:
    """Reads a study that was begun."""
    study = session.study
    stored_study = session.optuna_study
    trials = sorted(stored_study.get_trials(deepcopy=False), key=lambda t: t.number)
    confirmed = confirmed_of(stored_study, trials)
    beliefs = beliefs_of_study(stored_study, trials)
    good = [t for t in ranked(trials, confirmed, beliefs)[0] if finite(t.value) is not None]
    course = course_of(trials, study.num_reports)
    effects, no_effects = effects_of(session, trials)
    winner = session.whole(good[:1])
    devices = {
        str(t.user_attrs[stored.PASSPORT].get("device")) for t in trials if stored.PASSPORT in t.user_attrs
    }
    number = good[0].number if good else None
    compared, ablation = read_answers(session.folders.home, study.name, number)
    return Facts(
        name=study.name,
        question=study.question,
        track=study.track,
        start=session.trainer.start,
        limits=tuple(limit_facts(limit, study.limits) for limit in study.limits.given),
        limits_text=study.limits.summary(),
        baseline=baseline_of(stored_study),
        trials=tuple(trial_facts(t, confirmed, course, beliefs) for t in trials),
        best=tuple(t.number for t in good),
        winner={n: short(v) for t in winner for n, v in t.params.items()},
        repeat=reproduce_command(session, winner[0]) if winner else "",
        effects=effects,
        no_effects=no_effects,
        groups=groups_of(trials, confirmed),
        compared=compared,
        ablation=ablation,
        devices=tuple(sorted(devices)),
        gpus=study.gpus,
        dollars_per_gpu_hour=study.price.dollars_per_gpu_hour,
        in_nats=study.in_nats,
    )


def limit_facts(limit: Limit, limits: Limits) -> LimitFacts:
    return LimitFacts(limit.constraint, limit.figure, limit.label, limit.unit, float(limits.of(limit)))


def state_of(trial: FrozenTrial) -> str:
    if trial.state == TrialState.COMPLETE:
        return FEASIBLE if feasible(trial) else OVER
    if trial.state == TrialState.PRUNED:
        return FAILED if has_failed(trial) else PRUNED
    rest = {TrialState.FAIL: INTERRUPTED, TrialState.WAITING: WAITING}
    return rest.get(trial.state, RUNNING)


def trial_facts(trial: FrozenTrial, confirmed: Confirmations, course: Course, beliefs: Beliefs) -> TrialFacts:
    attrs = trial.user_attrs
    constraints = trial.constraints
    done = trial.state == TrialState.COMPLETE
    facts = confirmed.get(trial.number)
    return TrialFacts(
        number=trial.number,
        state=state_of(trial),
        bpb=finite(trial.value) if done else None,
        figures={
            limit.figure: value for limit in LIMITS if (value := finite(attrs.get(limit.figure))) is not None
        },
        over=tuple(limit.constraint for limit in LIMITS if constraints.get(limit.constraint, 0.0) > 0.0),
        reason=str(attrs.get(stored.REASON) or ""),
        techniques=tuple(attrs.get(stored.TECHNIQUES, ())),
        inactive=tuple(attrs.get(stored.INACTIVE, ())),
        findings=tuple(str(text) for text in attrs.get(stored.FINDINGS, ())),
        legality=str(attrs.get(stored.LEGALITY, "not known")),
        curve=curve_of(trial, course),
        worker=str(attrs.get(stored.WORKER, "")),
        began_s=epoch(trial.datetime_start),
        ended_s=epoch(trial.datetime_complete),
        chain=tuple((name, bpb) for name, bpb in attrs.get(stored.BPB_CHAIN) or () if math.isfinite(bpb)),
        confirmed=confirmed_text(facts) if facts else "",
        believed=finite(beliefs.get(trial.number)),
    )


def effects_of(session: Session, trials: Sequence[FrozenTrial]) -> tuple[Findings | None, str]:
    """The effects of the newest trials, or why there are none."""
    done = [t for t in trials if t.state in LEARNED][-LARGEST:]
    try:
        return find_effects(session.whole(done)), ""
    except ValueError as error:
        return None, str(error)


def groups_of(trials: Sequence[FrozenTrial], confirmed: Confirmations) -> tuple[Group, ...]:
    """What `confirm` ran, the best mean first."""
    values = {t.number: finite(t.value) for t in trials if t.number in confirmed}
    found = [
        Group(
            label=f"#{number}",
            search_bpb=values.get(number),
            text=confirmed_text(facts),
            bpb=facts["bpb"],
            sd=facts["sd"],
            seeds=len(facts["seeds"]),
            against=str(facts["against"]),
            difference=facts["difference_bpb"],
            shrunken=facts.get("shrunken"),
            rule=facts.get("rule") and bool(facts["sound"]),
            notes=tuple(facts.get("notes") or ()),
        )
        for number, facts in confirmed.items()
    ]
    return tuple(sorted(found, key=lambda group: math.inf if group.bpb is None else group.bpb))


def pareto(trials: Iterable[TrialFacts], figure: str) -> list[TrialFacts]:
    """Feasible trials that no other one beats in both BPB and `figure`, by the figure."""
    there = [t for t in trials if t.state == FEASIBLE and t.bpb is not None and figure in t.figures]
    front: list[TrialFacts] = []
    for trial in sorted(there, key=lambda t: (t.figures[figure], t.bpb)):
        if not front or cast("float", trial.bpb) < cast("float", front[-1].bpb):
            front.append(trial)
    return front


def all_effects(found: Findings) -> dict[str, tuple[Effect, ...]]:
    return {
        "technique on, against off": found.techniques,
        "number at its best, against the median tried": found.numbers,
        "pair, beyond the sum of both": found.pairs,
    }


def finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def epoch(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
