"""GroupedTpe: Optuna's multivariate TPE that makes many proposals from one look at the study.

TPESampler(multivariate=True, group=True, constant_liar=True), with three differences: the groups come from
the static space instead of from past trials (they are the same sets, but one odd enqueued trial cannot
split them); the densities of a group are fitted once for all proposals of a trial, and only when one of
them has its gates on; nothing is written while proposals are made. What that saves: docs/scale.md.

Fitting and sampling are Optuna's own code, hence equal random numbers give equal candidates. Its density is
a mixture over every observed trial of products over the group's parameters; as (x - m)²/2σ² is linear in
(x², x), the continuous and categorical parts of all candidates and kernels are one product of two matrices.
This is the only file that touches what Optuna's samplers keep private.
"""

from __future__ import annotations

import functools
import json
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from optuna.samplers._tpe import probability_distributions as kernels
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator  # pyright: ignore[reportPrivateUsage]
from optuna.samplers._tpe.sampler import (
    _RELATIVE_PARAMS_KEY,  # pyright: ignore[reportPrivateUsage]
    _SYSTEM_ATTR_MAX_LENGTH,  # pyright: ignore[reportPrivateUsage]
    default_gamma,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.common.attributes import FIXED_PARAMS
from search.common.numeric import Distributions, fits

BATCH = 4  # proposals at once, after the first of a trial was rejected
Array = NDArray[np.float64]
Index = NDArray[np.intp]
Chosen = list[dict[str, Any]]  # of a group, for each of some proposals
MODELLED = (TrialState.COMPLETE, TrialState.PRUNED)
P = ParamSpec("P")
T = TypeVar("T")


class Lock:
    """`with` it, one thread at a time, and again if it likes. A copy or a pickle is a lock of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()


class Locked(Protocol):
    lock: Lock


S = TypeVar("S", bound=Locked)


def alone(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A method that one thread at a time is in: a study with n_jobs asks one sampler from many."""

    @functools.wraps(method)
    def locked(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.lock:
            return method(self, *args, **kwargs)

    return locked


class GroupedTpe(TPESampler):
    """begin(study, trials) once a trial, then propose() as often as needed, under one lock. For one study."""

    weighs_stages = False

    def __init__(
        self,
        groups: Sequence[Sequence[str]],
        distributions: Distributions,
        *,
        startup_trials: int,
        candidates: int,
        seed: int | None,
    ):
        numbers = {"n_startup_trials": startup_trials, "n_ei_candidates": candidates, "seed": seed}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(multivariate=True, group=True, constant_liar=True, **cast("Any", numbers))
        several = {name: dist for name, dist in distributions.items() if not dist.single()}
        self._groups = [{n: several[n] for n in sorted(group) if n in several} for group in groups]
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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_waiting": []}  # they are worked out when asked for, which no pickle holds

    @property
    def begun(self) -> bool:
        return self._seen is not None

    def propose(self) -> Mapping[str, Any]:
        """A value for every modelled parameter, active or not; {} while there is too little to model."""
        if not self._waiting and self._seen is not None:
            self._waiting = self._propose_many(self._batch)
            self._batch = BATCH
        return self._waiting.pop(0) if self._waiting else {}

    def _propose_many(self, count: int) -> list[Proposal]:
        """`count` proposals; together much cheaper than one by one."""
        size = count * self._n_ei_candidates
        chosen = list[Callable[[], Chosen]]()
        for k, group in enumerate(self._groups):
            numbers = Numbers(self._rng.rng, size * (1 + len(group)) if group else 0)
            chosen.append(functools.cache(functools.partial(self._best, k, count, numbers)))
        return [Proposal(self._group_of, chosen, k) for k in range(count)]

    def _best(self, index: int, count: int, numbers: Numbers) -> Chosen:
        """Values of a group's parameters in `count` proposals, each the best of its own candidates."""
        group = self._groups[index]
        found = Chosen()
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
            settings = self._parzen_estimator_parameters
            columns = [self._columns[name] for name in group]
            parts = [part[:, columns] for part in self._seen]
            good, other = (Parzen(part[~np.isnan(part).any(axis=1)], group, settings) for part in parts)
            self._fitted[index] = good, other
        return self._fitted[index]


class Proposal(Mapping[str, Any]):
    """A value for every modelled parameter; its group is worked out when asked for: most gates are off."""

    def __init__(self, group_of: Mapping[str, int], chosen: Sequence[Callable[[], Chosen]], index: int):
        self._group_of, self._chosen, self._index = group_of, chosen, index

    def __getitem__(self, name: str) -> Any:
        return self._chosen[self._group_of[name]]()[self._index][name]

    def __contains__(self, name: object) -> bool:
        return name in self._group_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._group_of)

    def __len__(self) -> int:
        return len(self._group_of)


def log_mass(a: Array, b: Array) -> Array:
    """Logarithm of a standard normal's mass in [a, b], a < b, exact far out in both tails."""
    from scipy import special  # pyright: ignore[reportMissingTypeStubs]

    of: Any = special
    flip = a > 0.0
    a, b = np.where(flip, -b, a), np.where(flip, -a, b)
    left, out = b <= 0.0, np.empty(np.shape(a))
    central = ~left
    out[central] = np.log1p(-of.ndtr(a[central]) - of.ndtr(-b[central]))
    upper = of.log_ndtr(b[left])
    with np.errstate(divide="ignore"):
        out[left] = upper + np.log1p(-np.exp(of.log_ndtr(a[left]) - upper))
    return out


class Numbers:
    """RandomState's numbers, drawn ahead: the next groups' are the same whether these are used or not."""

    def __init__(self, rng: np.random.RandomState, count: int):
        self._numbers, self._used = rng.random_sample(count), 0

    def _next(self, count: int) -> Array:
        self._used += count
        return self._numbers[self._used - count : self._used]

    def choice(self, count: int, *, p: Array, size: int) -> Index:
        cumulated = p.cumsum()
        return np.searchsorted(cumulated / cumulated[-1], self._next(size), side="right")

    def rand(self, size: int) -> Array:
        return self._next(size)

    def uniform(self, *, low: float, high: float, size: tuple[int, ...]) -> Array:
        """As RandomState.uniform(low, high, size)."""
        return (low + (high - low) * self._next(math.prod(size))).reshape(size)


class Parzen:
    """Fitted to `rows` [trials, parameters of the group] in Optuna's units; `settings` are TPESampler's."""

    def __init__(self, rows: Array, group: Distributions, settings: Any):
        observations = {name: rows[:, k] for k, name in enumerate(group)}
        fitted = _ParzenEstimator(observations, dict(group), settings)
        self._mixture = fitted._mixture_distribution  # pyright: ignore[reportPrivateUsage]
        self._constant: Array = np.log(self._mixture.weights)  # [kernels]
        self._choices: list[tuple[int, Array]] = []  # column, logarithms [choices, kernels]
        self._steps: list[tuple[int, Any, Array, Array, Index, Array]] = []
        reals: list[tuple[int, Any]] = []
        for column, one in enumerate(cast("list[Any]", self._mixture.distributions)):
            if not hasattr(one, "mu"):
                self._choices.append((column, np.log(one.weights).T))
            elif one.step:
                mu, sigma, pair = kernels._unique_inverse_2d(one.mu, one.sigma)  # pyright: ignore[reportPrivateUsage]
                whole = log_mass((one.adapted_low - mu) / sigma, (one.adapted_high - mu) / sigma)
                self._steps.append((column, one, mu, sigma, pair, whole))
            else:
                reals.append((column, one))
        self._reals = np.array([column for column, _ in reals], dtype=np.intp)
        self._logs = np.array([one.is_log for _, one in reals], dtype=np.bool_)
        self._fit_reals([one for _, one in reals])

    def _fit_reals(self, reals: Sequence[Any]) -> None:
        """Coefficients of (x², x) around the middle of each range, and what they leave."""
        count, mixed = len(reals), len(self._constant)
        mu = np.array([one.mu for one in reals]).reshape(count, mixed)
        sigma = np.array([one.sigma for one in reals]).reshape(count, mixed)
        low = np.array([one.adapted_low for one in reals]).reshape(count, 1)
        high = np.array([one.adapted_high for one in reals]).reshape(count, 1)
        self._middle: Array = (0.5 * (low + high))[:, 0]
        whole = log_mass((low - mu) / sigma, (high - mu) / sigma)
        mu = mu - self._middle[:, None]
        precision = 1.0 / (sigma * sigma)
        self._constant = self._constant - np.sum(
            0.5 * mu * mu * precision + whole + np.log(sigma) + 0.5 * math.log(2.0 * math.pi), axis=0
        )
        blocks = [logs for _, logs in self._choices]
        self._slopes: Array = np.concatenate([-0.5 * precision, mu * precision, *blocks])

    def sample(self, numbers: Numbers, size: int) -> Array:
        """Candidates [size, parameters of the group]."""
        return self._mixture.sample(cast("np.random.RandomState", numbers), size)

    def log_pdf(self, x: Array) -> Array:
        """Logarithms of the density [n] at x [n, parameters of the group]."""
        at = x[:, self._reals]
        at[:, self._logs] = np.log(at[:, self._logs])
        at -= self._middle
        chosen = [
            (x[:, column, None] == np.arange(len(logs))).astype(np.float64) for column, logs in self._choices
        ]
        logs = np.concatenate([at * at, at, *chosen], axis=1) @ self._slopes
        logs += self._constant
        for column, one, mu, sigma, pair, whole in self._steps:
            levels, level = np.unique(x[:, column], return_inverse=True)
            ends = [levels - 0.5 * one.step, levels + 0.5 * one.step]
            left, right = (np.log(end) if one.is_log else end for end in ends)
            masses = log_mass((left[:, None] - mu) / sigma, (right[:, None] - mu) / sigma)
            logs += (masses - whole)[:, pair][level]
        most = logs.max(axis=1)
        most[np.isneginf(most)] = 0.0
        with np.errstate(divide="ignore"):
            return np.log(np.exp(logs - most[:, None]).sum(axis=1)) + most


class Observed:
    """Finished trials of one study as rows; NaN where a parameter is not in a trial."""

    def __init__(self, distributions: Distributions):
        self.distributions = dict(distributions)
        self._at: dict[int, int] = {}  # trial number -> row
        self._rows: list[Array] = []
        self._ranks: list[tuple[float, ...]] = []
        self._table: tuple[Array, Array] | None = None

    def row(self, params: Mapping[str, Any]) -> Array:
        """The parameters in Optuna's units."""
        each = self.distributions.items()
        there = {name for name, dist in each if name in params and fits(dist, params[name])}
        found = [dist.to_internal_repr(params[name]) if name in there else math.nan for name, dist in each]
        return np.array(found, dtype=np.float64)

    def finished(self, trials: Sequence[FrozenTrial], sign: float) -> tuple[Array, Array]:
        """(rows, ranks) of finished trials; `sign` is -1 where more is better. A trial with smaller ranks is
        better: feasible and complete ones by value; then pruned ones, the later first, by their last report;
        then the infeasible by how much they break limits; ties by number."""
        for trial in trials:
            if trial.number not in self._at:
                self._at[trial.number] = len(self._rows)
                self._rows.append(self.row(trial.params))
                self._ranks.append(ranks_of(trial, sign))
                self._table = None
        if self._table is None:
            width = len(self.distributions)
            self._table = np.array(self._rows).reshape(-1, width), np.array(self._ranks).reshape(-1, 4)
        at = np.array([self._at[trial.number] for trial in trials], dtype=np.intp)
        return self._table[0][at], self._table[1][at]


def ranks_of(trial: FrozenTrial, sign: float) -> tuple[float, float, float, float]:
    broken = sum(v for v in trial.constraints.values() if v > 0)
    if broken > 0:
        return 2.0, broken, 0.0, trial.number
    if trial.state == TrialState.COMPLETE:
        return 0.0, sign * cast("float", trial.value), 0.0, trial.number
    if not trial.intermediate_values:
        return 1.0, 1.0, 0.0, trial.number
    step, value = max(trial.intermediate_values.items())
    return 1.0, -float(step), math.inf if math.isnan(value) else sign * value, trial.number


def other_trials(study: optuna.Study, trial: FrozenTrial | None = None) -> list[FrozenTrial]:
    """Every trial but this one, as the storage knows them now; not to be changed."""
    trials = study._get_trials(deepcopy=False, use_cache=False)  # pyright: ignore[reportPrivateUsage]
    return [t for t in trials if trial is None or t.number != trial.number]


def settled_params(trial: FrozenTrial) -> dict[str, Any]:
    """The parameters of a trial; of one to come also what it has sampled but not yet suggested, and what was
    fixed when it was queued."""
    if trial.state.is_finished():
        return trial.params
    fixed: dict[str, Any] = trial.system_attrs.get(FIXED_PARAMS, {})
    text = ""
    k = 0
    while part := trial.system_attrs.get(f"{_RELATIVE_PARAMS_KEY}:{k}"):
        text = text + part
        k = k + 1
    try:
        return {**fixed, **(json.loads(text) if text else {}), **trial.params}
    except json.JSONDecodeError:  # its worker is writing it just now
        return {**fixed, **trial.params}


def set_system_attr(study: optuna.Study, trial: FrozenTrial, params: Mapping[str, Any]) -> None:
    """Shares a proposal with the other workers, the way TPE's constant liar reads it."""
    number = trial._trial_id  # pyright: ignore[reportPrivateUsage]
    storage = study._storage  # pyright: ignore[reportPrivateUsage]
    text = json.dumps(params)
    k = 0
    for k, start in enumerate(range(0, len(text), _SYSTEM_ATTR_MAX_LENGTH)):
        part = text[start : start + _SYSTEM_ATTR_MAX_LENGTH]
        storage.set_trial_system_attr(number, f"{_RELATIVE_PARAMS_KEY}:{k}", part)
    if f"{_RELATIVE_PARAMS_KEY}:{k + 1}" in storage.get_trial_system_attrs(number):  # of a longer one before
        storage.set_trial_system_attr(number, f"{_RELATIVE_PARAMS_KEY}:{k + 1}", "")


def share(study: optuna.Study, trial: FrozenTrial, params: Mapping[str, Any]) -> None:
    """As set_system_attr; nothing where JSON cannot say a choice: others see it when it is suggested."""
    try:
        json.dumps(params)
    except TypeError:
        return
    set_system_attr(study, trial, params)


def set_user_attr(study: optuna.Study, trial: FrozenTrial, key: str, value: Any) -> None:
    storage = study._storage  # pyright: ignore[reportPrivateUsage]
    storage.set_trial_user_attr(trial._trial_id, key, value)  # pyright: ignore[reportPrivateUsage]
