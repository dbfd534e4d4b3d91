"""GroupedTpe: Optuna's multivariate TPE that makes many proposals from one look at the study.

TPESampler(multivariate=True, group=True, constant_liar=True), with three differences: the groups come from
the static space instead of from past trials (they are the same sets, but one odd enqueued trial cannot
split them); the estimators of a group are built once for all proposals of a trial; nothing is written while
proposals are made. The only file that touches what Optuna keeps private.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from optuna.samplers._tpe.sampler import (
    _RELATIVE_PARAMS_KEY,  # pyright: ignore[reportPrivateUsage]
    _SYSTEM_ATTR_MAX_LENGTH,  # pyright: ignore[reportPrivateUsage]
    _split_trials,  # pyright: ignore[reportPrivateUsage]
    default_gamma,
)
from optuna.trial import FrozenTrial, TrialState

BATCH = 12  # proposals at once, after the first of a trial was rejected
MAX_OTHERS = 400  # finished trials outside the good ones that are modelled
MODELLED = (TrialState.COMPLETE, TrialState.PRUNED)


class GroupedTpe(TPESampler):
    """begin(study, trials) once a trial, then propose() as often as needed."""

    def __init__(
        self,
        groups: Sequence[Sequence[str]],
        distributions: Mapping[str, BaseDistribution],
        *,
        n_startup_trials: int,
        n_ei_candidates: int,
        seed: int | None,
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(
                n_startup_trials=n_startup_trials,
                n_ei_candidates=n_ei_candidates,
                seed=seed,
                multivariate=True,
                group=True,
                constant_liar=True,
            )
        self._groups = [
            {name: distributions[name] for name in sorted(group) if not distributions[name].single()}
            for group in groups
        ]
        self._estimators: list[tuple[dict[str, BaseDistribution], Any, Any]] = []
        self._waiting: list[dict[str, Any]] = []  # proposals that nobody has asked for yet
        self._batch = 1

    def begin(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        """Model `trials` (all but the one that is sampled): the good and the others, group by group."""
        self._estimators, self._waiting, self._batch = [], [], 1
        known = [t for t in trials if t.state in MODELLED or t.state == TrialState.RUNNING]
        finished = sum(t.state != TrialState.RUNNING for t in known)
        if finished < self._n_startup_trials:
            return
        below, above = _split_trials(study, known, default_gamma(finished))
        above = thinned(above)
        for group in self._groups:
            if group:
                self._estimators.append(
                    (
                        group,
                        self._build_parzen_estimator(study, group, below, handle_below=True),
                        self._build_parzen_estimator(study, group, above, handle_below=False),
                    )
                )

    def propose(self) -> dict[str, Any]:
        """A value for every modelled parameter, active or not; {} while there is too little to model."""
        if not self._waiting and self._estimators:
            self._waiting = self._propose_many(self._batch)
            self._batch = BATCH
        return self._waiting.pop(0) if self._waiting else {}

    def _propose_many(self, count: int) -> list[dict[str, Any]]:
        """`count` proposals, each the best of its own candidates; together much cheaper than one by one."""
        found: list[dict[str, Any]] = [{} for _ in range(count)]
        for group, below, above in self._estimators:
            candidates = below.sample(self._rng.rng, count * self._n_ei_candidates)
            gains = self._compute_acquisition_func(candidates, below, above)
            best = gains.reshape(count, self._n_ei_candidates).argmax(axis=1)
            for k, at in enumerate(best):
                row = k * self._n_ei_candidates + int(at)
                found[k] |= {n: dist.to_external_repr(candidates[n][row].item()) for n, dist in group.items()}
        return found


def thinned(above: list[FrozenTrial]) -> list[FrozenTrial]:
    """At most MAX_OTHERS finished trials, evenly over the study's life, and every running one: the density of
    what is not good changes little, and a proposal's cost grows with their number."""
    finished = [t for t in above if t.state.is_finished()]
    if len(finished) <= MAX_OTHERS:
        return above
    kept = {finished[k * len(finished) // MAX_OTHERS].number for k in range(MAX_OTHERS)}
    return [t for t in above if t.number in kept or not t.state.is_finished()]


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
