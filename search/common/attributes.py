"""The names under which facts are stored with a study and its trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from optuna.trial import FrozenTrial

FIGURES = (
    "status",
    "artifact_bytes",
    "code_bytes",
    "train_seconds",
    "eval_seconds",
    "steps",
    "stage_seconds",
)


def result_of(trial: FrozenTrial) -> Mapping[str, Any] | None:
    """A trial's result as its worker stored it: the user attribute `result`, or the figures one by one."""
    attrs = trial.user_attrs
    found = attrs.get("result")
    if isinstance(found, Mapping):
        return found  # pyright: ignore[reportUnknownVariableType]
    result = {key: attrs[key] for key in FIGURES if key in attrs}
    return {**result, "hardware": hardware_of(trial)} if result else None


HARDWARE = "hardware"  # key in the user attribute `passport`


def hardware_of(trial: FrozenTrial) -> str:
    """Where a finished trial ran; "" when it does not tell (then it counts for whoever asks)."""
    passport = cast("Mapping[str, Any]", trial.user_attrs.get("passport") or {})
    return str(passport.get(HARDWARE) or "")
