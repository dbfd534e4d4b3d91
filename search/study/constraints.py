"""violations(result, limits) -> {"bytes", "train", "eval", …, "run"}: by how much a trial breaks each limit.

One for every limit of the study (search/study/limits.py), and `run`. Relative units, value / limit − 1, so
that TPE's sum of them means something; at most 0 is feasible. Without a figure (a pruned trial has no
artifact) a limit says 0: neither broken nor kept with room. `run` is 1 when the configuration itself failed
(diverged, out of memory, out of time) and −1 otherwise. No penalty ever enters the objective.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from search.common.attributes import VIOLATION
from search.study.limits import REQUIRED, Limits

RUN = "run"
CONSTRAINTS = (*(limit.constraint for limit in REQUIRED), RUN)  # that every trial has
UNKNOWN = 0.0


def violations(
    result: Mapping[str, Any] | None, limits: Limits, *, failure: str | None = None
) -> dict[str, float]:
    """All of the study's, always. `failure` says why the configuration failed, None when it did not."""
    values: dict[str, float] = {}
    for limit in limits.given:
        found = (result or {}).get(limit.figure)
        values[limit.constraint] = UNKNOWN
        if isinstance(found, int | float) and math.isfinite(found):
            values[limit.constraint] = float(found) / float(limits.of(limit)) - 1.0
    failed = failure is not None or (result or {}).get("status") == "failed"
    return values | {RUN: 1.0 if failed else -1.0}


def set_all(trial: optuna.Trial, values: Mapping[str, float]) -> None:
    """Writes every constraint that has no value yet (Optuna keeps the first, and refuses NaN)."""
    missing = [key for key in CONSTRAINTS if key not in values]
    if missing:
        raise ValueError(
            f"Every trial has the constraints {', '.join(CONSTRAINTS)}, but {missing} are not given."
        )
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


def has_failed(trial: FrozenTrial) -> bool:
    """Whether the configuration itself failed."""
    return trial.constraints.get(RUN, 0.0) > 0.0
