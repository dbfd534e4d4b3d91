"""Limits: what a configuration may cost, in bytes and seconds, or in baseline runs of this machine.

LIMITS is the one table of them: the study file, the constraints, the notes and every report iterate over it.
One laptop is not another: `train_baselines = 1.5` allows one and a half times the seconds that the study's
own starting point takes here, measured once before the first trial and kept with the study. The challenge's
limits are seconds on its own machine: `train_seconds = 600`. On a CPU our trainer counts processor seconds a
thread, which other work on the machine does not change (docs/contracts.md).

A violation is relative, value / limit − 1, so that TPE's sum of them means something; at most 0 is feasible.
Without a figure (a pruned trial has no artifact) a limit says 0: neither broken nor kept with room. `run` is
1 when the configuration itself failed (diverged, out of memory, out of time) and −1 otherwise. No penalty
ever enters the objective.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from search.common.attributes import SLACK_BYTES, VIOLATION
from techniques.base import setting


@dataclass(frozen=True)
class Limit:
    """One limit, and how it is shown."""

    constraint: str  # its name among a trial's constraints
    name: str  # in [limits]
    figure: str  # of result.json, and the user attribute that keeps it
    label: str  # of its row in a trial's note
    unit: str  # "bytes" (whole) or "s"
    phrase: str  # a figure in a sentence
    baselines: str = ""  # in [limits]: the same in baseline runs of this machine
    slack: str = ""  # user attribute that keeps what is left below it; "" where nobody asks
    optional: bool = False  # 0, the default, is no limit

    @property
    def column(self) -> str:
        """Its head in the leaderboard."""
        return self.unit if self.constraint == self.unit else f"{self.constraint}, {self.unit}"

    def measured(self, figure: float) -> str:
        """A figure as tables show it."""
        whole = self.unit != "s" and math.isfinite(figure)
        return f"{int(figure):,}" if whole else f"{figure:.1f}"

    def allowed(self, most: float) -> str:
        return f"{round(most, 3):g}" if self.unit == "s" else f"{int(most):,}"

    def over(self, figure: float, most: float) -> str:
        """artifact, 331,000 of 310,000 bytes."""
        return f"{self.label}, {self.against(figure, most)}"

    def against(self, figure: float, most: float) -> str:
        """8.8 of 8.4 s, 103.0 of 100 s."""
        value, allowed = self.both(figure, most)
        whole = allowed.rstrip("0").removesuffix(".")
        return (
            f"{value} of {whole if '.' in allowed and float(allowed).is_integer() else allowed} {self.unit}"
        )

    def excess(self, figure: float, most: float) -> str:
        """evaluation 4.2 s of 3.0."""
        value, allowed = self.both(figure, most)
        return f"{self.label} {value} {self.unit} of {allowed}"

    def both(self, figure: float, most: float) -> tuple[str, str]:
        """A figure and its limit, seconds in as many digits as the two need to differ."""
        if self.unit != "s" or not math.isfinite(figure):
            return self.measured(figure), self.allowed(most)
        digits = next((n for n in range(1, 6) if f"{figure:.{n}f}" != f"{most:.{n}f}"), 6)
        return f"{figure:.{digits}f}", f"{most:.{digits}f}"


LIMITS = (  # constraint, name, figure, label, unit, phrase
    Limit("bytes", "artifact_bytes", "artifact_bytes", "artifact", "bytes", "{} bytes", slack=SLACK_BYTES),
    Limit("train", "train_seconds", "train_seconds", "training", "s", "{} s training", "train_baselines"),
    Limit("eval", "eval_seconds", "eval_seconds", "evaluation", "s", "{} s evaluation", "eval_baselines"),
    Limit(
        "memory",
        "memory_bytes",
        "peak_memory_bytes",
        "peak memory",
        "bytes",
        "{} bytes of memory",
        optional=True,
    ),
)
REQUIRED = tuple(limit for limit in LIMITS if not limit.optional)
IN_BASELINES = tuple(limit for limit in LIMITS if limit.baselines)
RUN = "run"
CONSTRAINTS = (*(limit.constraint for limit in REQUIRED), RUN)  # that every trial has
UNKNOWN = 0.0


@dataclass(frozen=True)
class Limits:
    """What a configuration may cost. Seconds that are not measured yet are infinite."""

    artifact_bytes: int = setting(16_000_000, "code and packed model, bytes (decimal)", low=1)
    train_seconds: float = setting(math.inf, "timed training, s; on a CPU of the processor", low=1e-3)
    eval_seconds: float = setting(math.inf, "timed evaluation, s; on a CPU of the processor", low=1e-3)
    train_baselines: float = setting(0.0, "timed training, in baseline runs of this machine", low=0.0)
    eval_baselines: float = setting(0.0, "timed evaluation, in baseline runs of this machine", low=0.0)
    memory_bytes: int = setting(
        0, "peak memory of a trial's first process, its GPU's or the host's, bytes; 0: no limit", low=0
    )

    def of(self, limit: Limit) -> float:
        return getattr(self, limit.name)

    @property
    def given(self) -> tuple[Limit, ...]:
        return tuple(limit for limit in LIMITS if not limit.optional or self.of(limit))

    @property
    def relative(self) -> bool:
        return any(getattr(self, limit.baselines) for limit in IN_BASELINES)

    def declared(self) -> dict[str, float]:
        """What the study's file says, measured or not: part of the study's identity."""
        kept = dataclasses.asdict(self)
        for limit in IN_BASELINES:
            kept.pop(limit.name if kept[limit.baselines] else limit.baselines)
        for limit in LIMITS:
            if limit not in self.given:
                kept.pop(limit.name)
        return kept

    def measured(self, baseline: Mapping[str, Any]) -> Limits:
        """These limits in seconds, given the baseline's result (train_seconds, eval_seconds)."""
        given = {limit: getattr(self, limit.baselines) for limit in IN_BASELINES}
        seconds = {limit.name: many * float(baseline[limit.figure]) for limit, many in given.items() if many}
        return dataclasses.replace(self, **seconds)

    def timeout_seconds(self) -> float:
        """Seconds on the clock, on a CPU too, after which a trial hangs, however busy the machine is."""
        both = self.train_seconds + self.eval_seconds
        return 10.0 * both + 120.0 if math.isfinite(both) else 3600.0

    def summary(self) -> str:
        """400,000 bytes, 12 s training, 8 s evaluation."""
        return ", ".join(limit.phrase.format(limit.allowed(self.of(limit))) for limit in self.given)


def figures_summary(figures: Mapping[str, float]) -> str:
    """Of a result, those that a limit is on: 312,000 bytes, 9.8 s training, 5.1 s evaluation."""
    there = [limit for limit in LIMITS if limit.figure in figures]
    return ", ".join(limit.phrase.format(limit.measured(figures[limit.figure])) for limit in there)


def over_limits(figures: Mapping[str, Any], limits: Limits) -> dict[str, str]:
    """label -> figure and limit, of the limits that a result (a trial's attributes) broke."""
    told = [(limit, figures.get(limit.figure), limits.of(limit)) for limit in limits.given]
    return {limit.label: limit.over(figure, most) for limit, figure, most in told if figure and figure > most}


def check_given(table: Mapping[str, Any]) -> None:
    """ValueError unless [limits] gives each of the three limits once."""
    for limit in REQUIRED:
        given = [name for name in (limit.name, limit.baselines) if name in table]
        if len(given) == 1:
            continue
        either = f": `{limit.name}`, or `{limit.baselines}` (in baseline runs of this machine)"
        missing = f"`{limit.name}` is missing. {'Add one of the two' if limit.baselines else 'Add it'}"
        raise ValueError(
            f"[limits] must give all three limits{either if limit.baselines else ''}, but "
            f"{'both are there. Keep one' if given else missing}."
        )


def violations(
    result: Mapping[str, Any] | None, limits: Limits, *, failure: str | None = None
) -> dict[str, float]:
    """All of the study's, always. `failure` says why the configuration failed, None when it did not."""
    values = dict[str, float]()
    figures = result or {}
    for limit in limits.given:
        found: Any = figures.get(limit.figure)
        known = isinstance(found, int | float) and math.isfinite(found)
        values[limit.constraint] = float(found) / float(limits.of(limit)) - 1.0 if known else UNKNOWN
    failed = failure is not None or figures.get("status") == "failed"
    return values | {RUN: 1.0 if failed else -1.0}


def set_all(trial: optuna.Trial, values: Mapping[str, float]) -> None:
    """Writes every constraint that has no value yet (Optuna keeps the first, and refuses NaN)."""
    if missing := [key for key in CONSTRAINTS if key not in values]:
        names = ", ".join(CONSTRAINTS)
        raise ValueError(f"Every trial has the constraints {names}, but {missing} are not given.")
    there = trial.constraints
    for key, given in values.items():
        if key not in there:
            value = given if math.isfinite(given) else 1.0
            trial.set_constraint(key, value)
            trial.set_user_attr(VIOLATION + key, round(value, 6))


def feasible(trial: FrozenTrial) -> bool:
    """Whether a finished trial kept every limit; without constraints it says nothing, and is not."""
    values = trial.constraints
    return all(key in values for key in CONSTRAINTS) and all(value <= 0.0 for value in values.values())


def broken_limits(trial: FrozenTrial) -> tuple[Limit, ...]:
    """The limits that a trial is over."""
    return tuple(limit for limit in LIMITS if trial.constraints.get(limit.constraint, 0.0) > 0.0)


def has_failed(trial: FrozenTrial) -> bool:
    return trial.constraints.get(RUN, 0.0) > 0.0
