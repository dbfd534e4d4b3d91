"""Rows and counts that every report shows, and in which order trials rank; what a trial cost beside the
trainer's work, and what the stage cache saved of it."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.common import attributes
from search.common.console import counted
from search.session.session import whole_trials
from search.study.limits import LIMITS, broken_limits, feasible, has_failed
from techniques.base import STAGES

Confirmations = Mapping[int, Mapping[str, Any]]  # of trials, by their number
LEAST = 20  # complete trials without which no surrogate is fitted
NOTHING: Confirmations = MappingProxyType({})
Beliefs = Mapping[int, float]  # posterior mean of BPB, by a trial's number
NONE: Beliefs = MappingProxyType({})


@dataclass(frozen=True)
class Row:
    """A finished trial's line in the leaderboard; 0 where nothing is known."""

    number: int
    bpb: float  # bits per byte
    figures: Mapping[str, float]  # that a limit is on, by name
    slack: Mapping[str, float]  # figure -> what is left below its limit; negative: over it
    steps: int
    legality: str
    techniques: tuple[str, ...]
    inactive: tuple[str, ...]  # of them, what changed nothing
    findings: tuple[str, ...]  # what a person should look at before believing the number
    confirmed: str = ""  # its mean on fresh seeds
    over: tuple[str, ...] = ()  # labels of the limits that it broke
    replicates: bool = False  # those of the study itself
    believed: float | None = None  # bits per byte, by the surrogate's posterior mean


def row_of(trial: FrozenTrial, confirmed: Confirmations = NOTHING, beliefs: Beliefs = NONE) -> Row:
    attrs = trial.user_attrs
    facts = confirmed.get(trial.number)
    shown = [limit.figure for limit in LIMITS if limit.figure in attrs or not limit.optional]
    return Row(
        number=trial.number,
        bpb=cast("float", trial.value),
        figures={figure: float(attrs.get(figure, 0.0)) for figure in shown},
        slack={limit.figure: float(attrs.get(limit.slack, 0.0)) for limit in LIMITS if limit.slack},
        steps=int(attrs.get(attributes.STEPS, 0)),
        legality=str(attrs.get(attributes.LEGALITY, "not known")),
        techniques=tuple(cast("list[str]", attrs.get(attributes.TECHNIQUES, []))),
        inactive=tuple(cast("dict[str, str]", attrs.get(attributes.INACTIVE, {}))),
        findings=tuple(cast("list[str]", attrs.get(attributes.FINDINGS, []))),
        confirmed=confirmed_text(facts) if facts else "",
        over=tuple(limit.label for limit in broken_limits(trial)),
        replicates=bool(facts and facts.get("replicates")),
        believed=beliefs.get(trial.number),
    )


def confirmed_of(study: optuna.Study, trials: Sequence[FrozenTrial] = ()) -> Confirmations:
    return confirmed_in(study.user_attrs, trials)


def confirmed_in(attrs: Mapping[str, Any], trials: Sequence[FrozenTrial]) -> Confirmations:
    """By a study's attributes: trial's number -> its confirmation: `bpb` (mean over fresh seeds), `sd`,
    `seeds`, `sound`, `beaten_by`, …; where there is none, its replicates'."""
    found = cast("Mapping[str, Mapping[str, Any]]", attrs.get(attributes.CONFIRMED) or {})
    return {**replicated(trials), **{int(number): facts for number, facts in found.items()}}


def replicated(trials: Sequence[FrozenTrial]) -> dict[int, Mapping[str, Any]]:
    """The number of a configuration's first trial -> what that and its replicates gave, in a confirmation's
    words, and `replicates`. Its mean is of all of them: none was picked for its value."""
    runs: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        facts = trial.user_attrs.get(attributes.REPLICATE)
        if facts and trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            runs.setdefault(int(facts["of"]), []).append(trial)
    found: dict[int, Mapping[str, Any]] = {}
    for first in (t for t in trials if t.number in runs):
        each = {"first": first}
        each |= {str(t.user_attrs[attributes.REPLICATE]["seed"]): t for t in runs[first.number]}
        scores = [t.value for t in each.values() if t.value is not None]
        found[first.number] = {
            "bpb": statistics.fmean(scores) if scores else None,
            "sd": statistics.stdev(scores) if len(scores) > 1 else None,
            "seeds": {seed: t.value for seed, t in each.items()},
            "sound": all(t.state == TrialState.COMPLETE and feasible(t) for t in each.values()),
            "replicates": True,
            "against": "",
            "difference_bpb": None,
        }
    return found


def confirmed_text(facts: Mapping[str, Any]) -> str:
    """2.5510 ± 0.0071 (8 seeds), with ! for a configuration that failed or is over a limit there."""
    mean = "no score" if facts["bpb"] is None else f"{facts['bpb']:.4f}"
    spread = "" if facts["sd"] is None else f" ± {facts['sd']:.4f}"
    return f"{mean}{spread} ({counted(len(facts['seeds']), 'seed')}){'' if facts['sound'] else '!'}"


def beliefs_of_study(study: optuna.Study, trials: Sequence[FrozenTrial]) -> Beliefs:
    """What is believed of a study's complete trials, from the newest and the best: a fit of all would take
    too long. {} while they are too few, or nothing varies."""
    done = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    if sum(t.state == TrialState.COMPLETE for t in done) < LEAST:
        return NONE
    from search.samplers.believed import believed, worth_reading

    return believed(whole_trials(study, worth_reading(done)))


def ranked(
    trials: Sequence[FrozenTrial], confirmed: Confirmations = NOTHING, beliefs: Beliefs = NONE
) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
    """(feasible, infeasible) complete trials, the best first: confirmed ones by their mean, those that
    another one beat behind them, then the others by what is believed of them, else by their value (with
    replicates, the mean of all runs), then those whose confirmation or replicate failed or was over a limit.
    A replicate is no row of its own."""
    confirmed = {**replicated(trials), **confirmed}
    complete = [
        t for t in trials if t.state == TrialState.COMPLETE and attributes.REPLICATE not in t.user_attrs
    ]

    def key(trial: FrozenTrial) -> tuple[int, bool, float, int]:
        facts = confirmed.get(trial.number)
        if facts is None:
            return 1, False, beliefs.get(trial.number, cast("float", trial.value)), trial.number
        tier = 1 if facts.get("replicates") else 0
        return (
            tier if facts["sound"] else 2,
            bool(facts.get("beaten_by")),
            float(facts["bpb"] or 0.0),
            trial.number,
        )

    complete.sort(key=key)
    good = {t.number for t in complete if feasible(t)}
    return [t for t in complete if t.number in good], [t for t in complete if t.number not in good]


def money_text(hours: float, gpus: int, dollars_per_gpu_hour: float) -> str:
    """Hours of trials, on the clock; of GPUs, and what they cost where the price is known."""
    text = f"{hours:,.2f} hours of trials on the clock"
    if gpus:
        text += f", {hours * gpus:,.2f} GPU hours"
        if dollars_per_gpu_hour:
            dollars = hours * gpus * dollars_per_gpu_hour
            text += f", {dollars:,.2f} dollars at {dollars_per_gpu_hour:g} an hour"
    return text


def learnt_text(facts: Mapping[str, Mapping[str, float]]) -> str:
    """Of the newest proposal: learnt from OLD: 100 trials, trust 0.8; "" where nothing was."""
    each = [f"{n}: {counted(int(f['trials']), 'trial')}, trust {f['trust']:.1f}" for n, f in facts.items()]
    return f"learnt from {'; '.join(each)}" if each else ""


def short(value: object, *, digits: int = 5) -> str:
    """A value in a list: floats with so many digits."""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Snapshot:
    """Counts of a study's trials, and the best of them."""

    target: int
    complete: int
    pruned: int  # given up on
    rejected: int  # the configuration failed: constraint `run`
    infeasible: int  # complete, but over a limit
    over: Mapping[str, int]  # label of a limit -> trials that broke it
    failed: int  # the machine's fault; tried again
    running: int
    waiting: int
    drawn: Counter[str]  # reason -> configurations that were drawn and never run
    best: Row | None

    @property
    def resampled(self) -> int:
        return self.drawn.total()

    @property
    def finished(self) -> int:
        return self.complete + self.pruned + self.rejected

    @property
    def infeasible_text(self) -> str:
        """3 over a limit (artifact 1, training 2)."""
        return f"{self.infeasible} over a limit" + limits_text(self.over)


def listed(counts: Counter[str]) -> str:
    """` (bytes 3, duplicate 1)`, the most first; empty without any."""
    return f" ({', '.join(f'{name} {count:,}' for name, count in counts.most_common())})" if counts else ""


def limits_text(over: Mapping[str, int]) -> str:
    counts = ", ".join(f"{label} {count}" for label, count in over.items())
    return f" ({counts})" if counts else ""


def over_by_limit(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """label -> how many broke that limit, in the order of LIMITS."""
    counts = Counter(limit.label for trial in trials for limit in broken_limits(trial))
    return {limit.label: counts[limit.label] for limit in LIMITS if counts[limit.label]}


def snapshot(trials: Sequence[FrozenTrial], target: int) -> Snapshot:
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    again = replicated(trials)
    given_up = [t for t in trials if t.state == TrialState.PRUNED]
    rejected = sum(map(has_failed, given_up))
    good = ranked(trials, again)[0]
    drawn = Counter[str]()
    for trial in trials:
        drawn.update(cast("Mapping[str, int]", trial.user_attrs.get(attributes.REJECTIONS, {})))
    return Snapshot(
        target=target,
        complete=len(complete),
        pruned=len(given_up) - rejected,
        rejected=rejected,
        infeasible=sum(not feasible(t) for t in complete),
        over=over_by_limit(complete),
        failed=sum(
            t.state == TrialState.FAIL and t.user_attrs.get(attributes.OUTCOME) != attributes.UNUSED
            for t in trials
        ),
        running=sum(t.state == TrialState.RUNNING for t in trials),
        waiting=sum(t.state == TrialState.WAITING for t in trials),
        drawn=drawn,
        best=row_of(good[0], again) if good else None,
    )


def _told(trials: Sequence[FrozenTrial], name: str) -> list[Mapping[str, Any]]:
    return [t.user_attrs[name] for t in trials if name in t.user_attrs]


def reuse_of_study(trials: Sequence[FrozenTrial], *, gpus: int = 0) -> str:
    """One line about the stage cache; empty while nothing was reused."""
    facts = _told(trials, attributes.STAGE_REUSE)
    reused = [f for f in facts if f["reused"]]
    if not reused:
        return ""
    by_stage = Counter(stage for f in reused for stage in f["reused"])
    spent_s, saved_s = (sum(float(f[key]) for f in facts) for key in ("spent_s", "saved_s"))
    stages = ", ".join(f"{stage} {count}" for stage, count in by_stage.items())
    of_gpus = f" on {gpus} GPUs each" if gpus > 1 else ""
    return (
        f"stage cache: {len(reused)} of {len(facts)} trials took over a stage ({stages}); "
        f"{saved_s:,.1f} s saved{of_gpus}, {spent_s:,.1f} s spent in trainers"
    )


def reuse_of_trial(facts: Mapping[str, Any]) -> str:
    seconds = ", ".join(f"{name} {told:.1f} s" for name, told in in_order(facts["seconds"]))
    reused = ", ".join(facts["reused"]) or "none"
    by_stage = f"{seconds}; " if seconds else ""
    return f"{by_stage}taken over: {reused} (saved {facts['saved_s']:.1f} s, spent {facts['spent_s']:.1f} s)"


def in_order(by_stage: Mapping[str, float]) -> list[tuple[str, float]]:
    """The stages as they follow each other: a database sorts names."""
    known = [*STAGES]
    return sorted(by_stage.items(), key=lambda told: known.index(told[0]) if told[0] in known else len(known))


def overhead_of_study(trials: Sequence[FrozenTrial]) -> str:
    """One line: means over trials of what is not the trainer's work; empty while none tells."""
    shares = _told(trials, attributes.OVERHEAD)
    if not shares:
        return ""
    names = dict.fromkeys(name for share in shares for name in share)
    mean = {name: sum(o.get(name, 0.0) for o in shares) / len(shares) for name in names}
    return f"overhead per trial: {overhead_text(mean)}"


def overhead_text(seconds: Mapping[str, float]) -> str:
    """Of one trial or of a mean: `ask 20 ms, start 14.1 s, tell 8 ms; 2.0% of a trial of 15.0 s`. The share
    is of all its seconds, in its process and around it; reports are part of its work, and no overhead."""
    beside = ("process_s", "report_s")
    parts = {n: s for n, s in seconds.items() if n.endswith("_s") and n not in beside}
    whole_s = seconds["process_s"] + sum(s for n, s in parts.items() if n not in ("start_s", "setup_s"))
    told = ", ".join(f"{n.removesuffix('_s').removesuffix('_before')} {wait(s)}" for n, s in parts.items())
    reports = f"; reports {wait(seconds['report_s'])} of its work" if "report_s" in seconds else ""
    return f"{told}; {seconds['share']:.1%} of a trial of {whole_s:.1f} s{reports}"


def memory_text(told: Mapping[str, Any]) -> str:
    """train 512 MB, evaluate 300 MB (within each stage)."""
    parts = ", ".join(f"{stage} {peak / 1e6:,.0f} MB" for stage, peak in in_order(told["bytes"]))
    counted_from = "within each stage" if told["anew"] else "the process's up to each stage's end"
    return f"{parts} ({counted_from})"


def wait(seconds: float) -> str:
    """14.1 s, 20 ms."""
    return f"{seconds:.1f} s" if seconds >= 1.0 else f"{1000 * seconds:.0f} ms"
