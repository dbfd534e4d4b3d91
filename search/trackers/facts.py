"""What a worker tells trackers of a finished trial, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from optuna.trial import FrozenTrial, TrialState

from search.common import attributes as stored
from search.study.limits import LIMITS, feasible, has_failed
from search.trackers.files import is_number

TEXTS = (stored.LEGALITY, stored.REASON, stored.WORKER, stored.OUTCOME, stored.OVER, stored.PROTOCOL)


def facts_of(study: str, trial: FrozenTrial, folder: Path) -> dict[str, Any]:
    """Study, number, settings, figures (numbers alone, constraints among them), texts, times in s."""
    attrs = trial.user_attrs
    figures: dict[str, Any] = {
        name: attrs.get(name) for name in (*stored.FIGURES, *(limit.figure for limit in LIMITS))
    }
    figures |= {"val_bpb": trial.value if trial.state == TrialState.COMPLETE else None}
    figures |= {f"constraint/{name}": value for name, value in trial.constraints.items()}
    texts = {name: str(attrs[name]) for name in TEXTS if attrs.get(name)}
    texts |= {"techniques": ", ".join(attrs.get(stored.TECHNIQUES, ())), "state": state_of_trial(trial)}
    return {
        "study": study,
        "number": trial.number,
        "settings": settings_of(trial, folder),
        "figures": {name: float(value) for name, value in figures.items() if is_number(value)},
        "texts": texts,
        "inactive": dict(attrs.get(stored.INACTIVE) or {}),
        "findings": list(attrs.get(stored.FINDINGS) or ()),
        "began_s": trial.datetime_start.timestamp() if trial.datetime_start else None,
        "ended_s": trial.datetime_complete.timestamp() if trial.datetime_complete else None,
    }


def state_of_trial(trial: FrozenTrial) -> str:
    """feasible, over a limit, pruned or failed."""
    if trial.state == TrialState.COMPLETE:
        return "feasible" if feasible(trial) else "over a limit"
    return "failed" if has_failed(trial) else "pruned"


def settings_of(trial: FrozenTrial, folder: Path) -> Mapping[str, Any]:
    """All settings as the trainer resolved them, else what it was given, else the parameters."""
    try:
        values = json.loads((folder / "resolved.json").read_text(encoding="utf-8"))["values"]
    except (OSError, ValueError, KeyError, TypeError):
        values = None
    if isinstance(values, dict):
        return cast("dict[str, Any]", values)
    return trial.user_attrs.get(stored.CONFIG) or trial.params
