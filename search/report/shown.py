"""shown_trial(trial, course) -> FrozenTrial: a copy of a stored trial as a page shows it; it stays as it is.

Attributes are short texts and numbers, what a person looks for first; curves are over steps of training.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from optuna.trial import FrozenTrial, TrialState

from search.common import attributes as stored
from search.report.rows import confirmed_text, learnt_text, memory_text, overhead_text, reuse_of_trial
from search.study.limits import Limits, broken_limits
from search.workers.record import FINISHED, VAL_BPB, chain_text, trial_note

FIRST = (stored.REASON, stored.OVER, stored.LEGALITY, stored.TECHNIQUES, stored.INACTIVE, stored.FINDINGS)
# What stands elsewhere on the page: as an artifact, as a curve, in the note.
ELSEWHERE = {
    stored.CONFIG,
    stored.REPORTS,
    stored.RESULT,
    stored.STAGE_SECONDS,
    stored.STUDY_FILE,
    stored.STUDY_IDENTITY,
}
TEXTS: Mapping[str, Callable[[Any], str]] = {
    stored.STAGE_REUSE: reuse_of_trial,
    stored.OVERHEAD: overhead_text,
    stored.BPB_CHAIN: chain_text,
    stored.STAGE_MEMORY: memory_text,
    stored.LEARNT: learnt_text,
    stored.CONFIRMED: lambda told: "; ".join(f"#{n}: {confirmed_text(facts)}" for n, facts in told.items()),
}
LONGEST = 240  # characters of an attribute
DIGITS = 6  # of a score


@dataclass(frozen=True)
class Course:
    """What a curve is drawn over, where its trial does not tell; 0 where nobody knows."""

    steps: float = 0.0  # of a training
    reports: int = 0  # of a trial


def course_of(trials: Iterable[FrozenTrial], reports: int = 0) -> Course:
    """The median number of steps of complete trials: what a pruned one would have made."""
    steps = sorted(int(t.user_attrs[stored.STEPS]) for t in trials if stored.STEPS in t.user_attrs)
    return Course(float(steps[len(steps) // 2]) if steps else 0.0, reports)


def shown_trial(trial: FrozenTrial, course: Course) -> FrozenTrial:
    values = None if trial.values is None else [round(v, DIGITS) for v in trial.values]
    return FrozenTrial(
        number=trial.number,
        state=trial.state,
        value=None,
        values=values,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=shown_attributes(trial.user_attrs),
        system_attrs=trial.system_attrs,
        intermediate_values=shown_curve(trial, course),
        trial_id=trial._trial_id,  # pyright: ignore[reportPrivateUsage]
    )


def shown_attributes(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers as they are, all else as short texts."""
    names = sorted(attrs, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    found = {name: shown_value(name, attrs[name]) for name in names if name not in ELSEWHERE}
    if found.get(stored.OUTCOME) == FINISHED:
        del found[stored.OUTCOME]  # over a limit, perhaps: its note's first line tells
    return {name: value for name, value in found.items() if value != ""}


def shown_value(name: str, value: Any) -> Any:
    """In one short text, a number as it is."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")
    text = plain_text(value)
    if name in TEXTS and value:
        try:
            text = TEXTS[name](value)
        except (AttributeError, KeyError, TypeError, ValueError):
            pass  # another version's: as it is
    short = text[: LONGEST - 2]
    return text if len(text) <= LONGEST else f"{short.rpartition(' ')[0] or short} …"


def plain_text(value: Any, *, inner: bool = False) -> str:
    """`bytes 1, train 2` for a table, `a, b` for a list; what is inside another one in brackets."""
    if isinstance(value, Mapping):
        pairs = cast("Mapping[Any, Any]", value)
        text = ", ".join(f"{key} {plain_text(one, inner=True)}" for key, one in pairs.items())
    elif isinstance(value, list | tuple):
        text = ", ".join(plain_text(one, inner=True) for one in cast("Sequence[Any]", value))
    else:
        whole = isinstance(value, str)
        return (
            str(value) if whole else f"{value:.{DIGITS}g}" if isinstance(value, float) else json.dumps(value)
        )
    return f"({text})" if inner else text


def shown_curve(trial: FrozenTrial, course: Course) -> dict[int, float]:
    """step of training -> BPB; by the number of the report where nobody knows the steps."""
    points = curve_of(trial, course)
    return {round(step): bpb for step, bpb in points} if points else trial.intermediate_values


def curve_of(trial: FrozenTrial, course: Course) -> tuple[tuple[float, float], ...]:
    """(step, BPB) of the reports, by the share of the run that each was made at; the last is the score."""
    whole = float(trial.user_attrs.get(stored.STEPS) or course.steps)
    told = [(float(r[0]), float(r[1])) for r in trial.user_attrs.get(stored.REPORTS) or ()]
    if not told and course.reports:  # of a training that was taken over: they stand with the trial alone
        told = [(k / course.reports, bpb) for k, bpb in sorted(trial.intermediate_values.items())]
    points = [(whole * share, bpb) for share, bpb in told if math.isfinite(bpb)]
    if not points or not whole:
        return ()
    if trial.state == TrialState.COMPLETE and math.isfinite(value := cast("float", trial.value)):
        points = [p for p in points if p[0] < whole] + [(whole, value)]
    return tuple((round(step, 1), round(bpb, 5)) for step, bpb in points)


def note_of(trial: FrozenTrial, limits: Limits) -> str:
    """As its worker would write it today; "" of a trial that no worker of ours ended."""
    attrs = trial.user_attrs
    if stored.OUTCOME not in attrs or trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return ""
    more: dict[str, Any] = {VAL_BPB: trial.value} if trial.state == TrialState.COMPLETE else {}
    broken = ", ".join(limit.label for limit in broken_limits(trial))
    return trial_note({stored.OVER: broken, **(stored.result_of(trial) or {}), **attrs, **more}, limits)
