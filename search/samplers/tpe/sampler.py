"""GroupedTpe: Optuna's multivariate TPE that makes many proposals from one look at the study.

TPESampler(multivariate=True, group=True, constant_liar=True), with three differences: the groups come from
the static space instead of from past trials (they are the same sets, but one odd enqueued trial cannot
split them); the densities of a group are fitted once for all proposals of a trial, and only when one of
them has its gates on; nothing is written while proposals are made. search/samplers/tpe/parzen.py has the
densities.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from optuna.samplers._tpe.sampler import (
    default_gamma,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.samplers.tpe.parzen import MODELLED, Array, Numbers, Observed, Parzen
from search.samplers.trials import settled_params

BATCH = 4  # proposals at once, after the first of a trial was rejected


class GroupedTpe(TPESampler):
    """begin(study, trials) once a trial, then propose() as often as needed. For one study."""

    weighs_stages = False

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
        modelled = {name: dist for group in self._groups for name, dist in group.items()}
        self._observed = Observed(modelled)
        self._columns = {name: k for k, name in enumerate(modelled)}
        self._group_of = {name: k for k, group in enumerate(self._groups) for name in group}
        self._seen: tuple[Array, Array] | None = None  # rows of the good trials and of the others
        self._fitted: dict[int, tuple[Parzen, Parzen]] = {}  # group -> its densities
        self._waiting: list[Proposal] = []  # proposals that nobody has asked for yet
        self._batch = 1

    def begin(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        """Model `trials` (all but the one that is sampled): the good and the others, group by group."""
        self._seen, self._fitted, self._waiting, self._batch = None, {}, [], 1
        finished = [t for t in trials if t.state in MODELLED]
        if len(finished) < self._n_startup_trials:
            return
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        rows, ranks = self._observed.finished(finished, sign)
        is_good = np.zeros(len(rows), dtype=np.bool_)
        is_good[np.lexsort(ranks.T[::-1])[: default_gamma(len(rows))]] = True
        running = [t for t in trials if t.state == TrialState.RUNNING]
        liars = [self._observed.row(settled_params(t)) for t in running]
        numbers = np.array([t.number for t in [*finished, *running]])
        others = np.concatenate([rows, np.array(liars).reshape(len(liars), rows.shape[1])])
        is_other = np.concatenate([~is_good, np.ones(len(liars), dtype=np.bool_)])
        by_number = np.argsort(numbers, kind="stable")
        below = rows[is_good][np.argsort(numbers[: len(rows)][is_good], kind="stable")]
        above = others[by_number][is_other[by_number]]
        self._seen = below, above

    @property
    def begun(self) -> bool:
        """Whether there is something that it models."""
        return self._seen is not None

    def propose(self) -> Mapping[str, Any]:
        """A value for every modelled parameter, active or not; {} while there is too little to model."""
        if not self._waiting and self._seen is not None:
            self._waiting = self._propose_many(self._batch)
            self._batch = BATCH
        return self._waiting.pop(0) if self._waiting else {}

    def _propose_many(self, count: int) -> list[Proposal]:
        """`count` proposals; together much cheaper than one by one."""
        size, chosen = count * self._n_ei_candidates, list[Callable[[], list[dict[str, Any]]]]()
        for k, group in enumerate(self._groups):
            numbers = Numbers(self._rng.rng, size * (1 + len(group)) if group else 0)
            chosen.append(functools.cache(functools.partial(self._best, k, count, numbers)))
        return [Proposal(self._group_of, chosen, k) for k in range(count)]

    def _best(self, index: int, count: int, numbers: Numbers) -> list[dict[str, Any]]:
        """Values of a group's parameters in `count` proposals, each the best of its own candidates."""
        group, found = self._groups[index], list[dict[str, Any]]()
        below, above = self._densities(index)
        candidates = below.sample(numbers, count * self._n_ei_candidates)
        gains = below.log_pdf(candidates) - above.log_pdf(candidates)
        best = gains.reshape(count, self._n_ei_candidates).argmax(axis=1)
        for k, at in enumerate(best):
            row = candidates[k * self._n_ei_candidates + int(at)].tolist()
            pairs = zip(group.items(), row, strict=True)
            found.append({name: dist.to_external_repr(value) for (name, dist), value in pairs})
        return found

    def _densities(self, index: int) -> tuple[Parzen, Parzen]:
        """Of the good and of the other trials that have every parameter of a group."""
        if index not in self._fitted:
            assert self._seen is not None
            group = self._groups[index]
            columns = [self._columns[name] for name in group]
            good, other = (part[:, columns] for part in self._seen)
            self._fitted[index] = (
                Parzen(good[~np.isnan(good).any(axis=1)], group, self._parzen_estimator_parameters),
                Parzen(other[~np.isnan(other).any(axis=1)], group, self._parzen_estimator_parameters),
            )
        return self._fitted[index]


class Proposal(Mapping[str, Any]):
    """A value for every modelled parameter. A group is worked out when one of its parameters is asked for:
    most techniques are off in most proposals."""

    def __init__(
        self, group_of: Mapping[str, int], chosen: Sequence[Callable[[], list[dict[str, Any]]]], index: int
    ):
        self._group_of, self._chosen, self._index = group_of, chosen, index

    def __getitem__(self, name: str) -> Any:
        return self._chosen[self._group_of[name]]()[self._index][name]

    def __contains__(self, name: object) -> bool:
        return name in self._group_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._group_of)

    def __len__(self) -> int:
        return len(self._group_of)
