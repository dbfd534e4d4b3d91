"""violations(result, limits) -> {"bytes", "train", "eval", "run"}: by how much a trial breaks each limit.

Relative units, value / limit − 1, so that TPE's sum of them means something; at most 0 is feasible. Without
a figure (a pruned trial has no artifact) a limit says 0: neither broken nor kept with room. `run` is 1 when
the configuration itself failed (diverged, out of memory, out of time) and −1 otherwise. No penalty ever
enters the objective.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from search.study.model import Limits

CONSTRAINTS = ("bytes", "train", "eval", "run")
FIGURES = {"bytes": "artifact_bytes", "train": "train_seconds", "eval": "eval_seconds"}
UNKNOWN = 0.0
PREFIX = "violation_"  # of the user attributes that mirror the constraints for the dashboard's table


def violations(
    result: Mapping[str, Any] | None, limits: Limits, *, failure: str | None = None
) -> dict[str, float]:
    """All four, always. `failure` says why the configuration failed, None when it did not."""
    failed = failure is not None or (result or {}).get("status") == "failed"
    values = {"run": 1.0 if failed else -1.0}
    for key, figure in FIGURES.items():
        found = (result or {}).get(figure)
        values[key] = UNKNOWN
        if isinstance(found, int | float) and math.isfinite(found):
            values[key] = float(found) / float(getattr(limits, figure)) - 1.0
    return {key: values[key] for key in CONSTRAINTS}


def set_all(trial: optuna.Trial, values: Mapping[str, float]) -> None:
    """Writes every constraint that has no value yet (Optuna keeps the first, and refuses NaN)."""
    missing = [key for key in CONSTRAINTS if key not in values]
    if missing:
        raise ValueError(
            f"Every trial has the constraints {', '.join(CONSTRAINTS)}, but {missing} are not given."
        )
    there = trial.constraints
    for key in CONSTRAINTS:
        if key not in there:
            value = values[key] if math.isfinite(values[key]) else 1.0
            trial.set_constraint(key, value)
            trial.set_user_attr(PREFIX + key, round(value, 6))


def feasible(trial: FrozenTrial) -> bool:
    """Whether a finished trial kept every limit; without constraints it says nothing, and is not."""
    values = trial.constraints
    return all(key in values for key in CONSTRAINTS) and all(value <= 0.0 for value in values.values())
