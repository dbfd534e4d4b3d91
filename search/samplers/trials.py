"""What every sampler reads of a study's trials, and writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.samplers._tpe.sampler import (
    _RELATIVE_PARAMS_KEY,  # pyright: ignore[reportPrivateUsage]
    _SYSTEM_ATTR_MAX_LENGTH,  # pyright: ignore[reportPrivateUsage]
)
from optuna.trial import FrozenTrial


def other_trials(study: optuna.Study, trial: FrozenTrial) -> list[FrozenTrial]:
    """Every trial but this one, as the storage knows them now; not to be changed."""
    trials = study._get_trials(deepcopy=False, use_cache=False)  # pyright: ignore[reportPrivateUsage]
    return [t for t in trials if t.number != trial.number]


def settled_params(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters of a trial; of a running one also those that it has sampled but not yet suggested."""
    if trial.state.is_finished():
        return trial.params
    text, k = "", 0
    while part := trial.system_attrs.get(f"{_RELATIVE_PARAMS_KEY}:{k}"):
        text, k = text + part, k + 1
    try:
        return {**(json.loads(text) if text else {}), **trial.params}
    except json.JSONDecodeError:  # its worker is writing it just now
        return trial.params


def set_system_attr(study: optuna.Study, trial: FrozenTrial, params: Mapping[str, Any]) -> None:
    """Shares a proposal with the other workers, the way TPE's constant liar reads it."""
    number = trial._trial_id  # pyright: ignore[reportPrivateUsage]
    text, storage = json.dumps(params), study._storage  # pyright: ignore[reportPrivateUsage]
    for k, start in enumerate(range(0, len(text), _SYSTEM_ATTR_MAX_LENGTH)):
        part = text[start : start + _SYSTEM_ATTR_MAX_LENGTH]
        storage.set_trial_system_attr(number, f"{_RELATIVE_PARAMS_KEY}:{k}", part)


def set_user_attr(study: optuna.Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """A user attribute of a trial that is being sampled."""
    storage = study._storage  # pyright: ignore[reportPrivateUsage]
    storage.set_trial_user_attr(trial._trial_id, key, value)  # pyright: ignore[reportPrivateUsage]
