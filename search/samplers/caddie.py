"""CaddieSampler: proposals over the whole conditional space; the study sees what the preflight admits.

A proposal is complete (every parameter of the static space), reduced to what is active under its gates, and
checked: contradictions, legality, predicted bytes and seconds, duplicates. What fails is drawn again here,
at no cost and unknown to the storage, so that a study's trials are only what was tried; rejections are
counted by reason, those inside the proposer's own search too. After `max_resamples` proposals come uniform
draws, or whatever is left of a finite space, then the most probable of what may keep the limits, then an
error. A proposal is stored, and so taken, under the lock that all workers of a study share (`claim`).
"""

import functools
from collections import ChainMap, Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import ThreadpoolController  # pyright: ignore[reportMissingTypeStubs]

from search.common.attributes import FIXED_PARAMS, FROM_CHECKPOINT, LEARNT, PREFLIGHT, REJECTIONS, result_of
from search.common.errors import UsedUp
from search.common.numeric import SearchSpace, draw
from search.costs.factors import LATEST
from search.costs.preflight import Costs, Prediction
from search.samplers.admission import Infeasible, draw_all, examine
from search.samplers.checkpoints import StageChooser
from search.samplers.choose import Known, Proposer, proposer_of
from search.samplers.finite import Left
from search.samplers.structured.sources import Source
from search.samplers.tpe import Lock, alone, other_trials, set_system_attr, set_user_attr, settled_params
from search.space.space import Space, endless, training_key
from search.study.limits import REQUIRED
from techniques.config import digest

BY_COST = frozenset(limit.constraint for limit in REQUIRED)  # reasons to reject that are a probability
NEWEST = 4  # trials that the preflight learns from at each proposal of one of many workers
UNIFORM = 20  # uniform draws for every resample, before giving up
PROPOSALS = 10  # in a row that were tried, where what is left can be listed
P = ParamSpec("P")
T = TypeVar("T")
# the libraries that are loaded at the first call: a sampler imports NumPy and SciPy before it
controller = functools.cache(ThreadpoolController)


def one_thread(function: Callable[P, T]) -> Callable[P, T]:
    """The same with one BLAS thread: several wait for each other on small matrices, long on busy cores."""

    @functools.wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> T:
        with controller().limit(limits=1, user_api="blas"):  # pyright: ignore
            return function(*args, **kwargs)

    return limited


class CaddieSampler(optuna.samplers.BaseSampler):
    """See the head of this file. One a worker; `seed=None` in real studies, so that no two workers agree."""

    def __init__(
        self,
        space: Space,
        preflight: Costs,
        *,
        seed: int | None = None,
        stages: StageChooser | None = None,
        sources: Sequence[Source] = (),
        planned: int | None = None,  # trials of the whole study
    ):
        self.space = space
        self.preflight = preflight
        self.max_resamples = preflight.study.sampler.max_resamples
        self.lock = Lock()
        self.rejections = Counter[str]()  # of this sampler's life, by reason
        self.last_prediction: Prediction | None = None
        self._rng = np.random.default_rng(seed)
        self._refused = Counter[str]()  # inside the proposer's own search, for this trial
        known = Known(stages, sources, planned)
        self._proposer = proposer_of(space, preflight, seed, known=known, refused=self._refused)
        self.sources = sources
        self.stages = None if self._proposer.weighs_stages else stages
        self._taken: dict[int, tuple[Mapping[str, Any], str]] = {}  # trial number -> parameters, their key
        self._over: set[int] = set()  # finished trials among them
        self._taught: set[int] = set()
        ends = not endless(space) and not preflight.study.allow_duplicates
        self.left = Left(space, preflight, self._rng) if ends else None
        self.claim: Callable[[Callable[[], bool]], bool] = lambda store: store()  # alone: without a lock

    def more(self, study: optuna.Study) -> bool:
        """Whether a new trial has anything to try. Under the study's lock: it may queue a replicate."""
        if self.left is None:
            return True
        trials = other_trials(study)
        self._learn(trials)
        return self.left.more(study, trials, self._keys(trials), len(self._taught))

    @alone
    def reseed_rng(self) -> None:
        self._rng = np.random.default_rng()
        self._proposer.reseed_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> SearchSpace:
        """The whole static space: a proposal is made at once, with all that it may need."""
        return dict(self.space.distributions)

    @alone
    @one_thread
    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: SearchSpace
    ) -> dict[str, Any]:
        """The active parameters of one admitted configuration; what an enqueued trial fixes is kept."""
        others = other_trials(study, trial)
        self._learn(others)
        self._refused.clear()
        self.preflight.begin(trial.number)
        taken = set[str]() if self.preflight.study.allow_duplicates else self._keys(others)
        fixed = trial.system_attrs.get(FIXED_PARAMS, {}) | trial.params  # all of it, where it is tried again
        goal = self.stages.choose(others) if self.stages and not fixed else None
        found = self._admitted(study, others, goal[1], taken, goal[0]) if goal else None
        if goal and found:
            set_user_attr(study, trial, FROM_CHECKPOINT, goal[0])
        params, rejected = found or self._certain(study, others, fixed, taken)
        free = bool(fixed) or self.preflight.study.allow_duplicates
        while not self.claim(functools.partial(self._store, study, trial, params, free=free)):
            others = other_trials(study, trial)
            params, more = self._certain(study, others, fixed, self._keys(others))
            rejected += more + Counter(duplicate=1)
        rejected += self._refused
        self.rejections += rejected
        set_user_attr(study, trial, REJECTIONS, dict(rejected))
        if self.sources and (learnt := learnt_from(self.sources, self._proposer)):
            set_user_attr(study, trial, LEARNT, learnt)
        if self.last_prediction is not None:
            said = {k: round(v, 3) for k, v in vars(self.last_prediction).items() if v is not None}
            set_user_attr(study, trial, PREFLIGHT, said)
        return params

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Only for parameters that the space does not know: uniform."""
        return draw(param_distribution, self._rng)

    def _store(self, study: optuna.Study, trial: FrozenTrial, params: dict[str, Any], *, free: bool) -> bool:
        """Stores a proposal unless another trial has it; `free`: that may be."""
        if not free and digest(params) in self._keys(other_trials(study, trial)):
            return False
        set_system_attr(study, trial, params)
        return True

    def _admitted(
        self,
        study: optuna.Study,
        others: Sequence[FrozenTrial],
        fixed: Mapping[str, Any],
        taken: set[str],
        training: str | None = None,
    ) -> tuple[dict[str, Any], Counter[str]] | None:
        """An admitted configuration; None: none on the weights of key `training`. UsedUp, Infeasible."""
        rejected, examples = Counter[str](), dict[str, str]()
        likely: tuple[float, dict[str, Any]] = (0.0, {})
        given = self.space.keep_active(fixed)
        if fixed and not training and self.space.active(fixed) <= fixed.keys():
            resolved, _ = examine(self.space, self.preflight, given)  # enqueued whole: exactly this is wanted
            self.last_prediction = self.preflight.predict(resolved) if resolved else None
            return given, rejected
        self._proposer.begin(study, others)
        rest = self.left if self.left and self.left.every is not None and not fixed else None
        most = min(self.max_resamples, PROPOSALS) if rest else self.max_resamples
        for attempt in range(most * (1 if training or rest else 1 + UNIFORM)):
            proposal = [dict(fixed), draw_all(self.space, self._rng)]
            if attempt < most:
                proposal.insert(1, cast("dict[str, Any]", self._proposer.propose()))
            params = self.space.repaired(self.space.keep_active(ChainMap(*proposal))) | given
            resolved, reason = self._examined(params, taken, training)
            if reason is None:
                self.last_prediction = self.preflight.predict(resolved)
                return params, rejected
            kind = reason.partition(":")[0]
            rejected[kind] += 1
            examples.setdefault(kind, reason)
            if kind in BY_COST and not training and (chance := self.preflight.chance(resolved)) > likely[0]:
                likely = chance, params
        if training:
            return None
        for params in rest.new(taken, learnt=len(self._taught)) if rest else ():
            resolved, reason = self._examined(params, taken)
            if reason is None:
                self.last_prediction = self.preflight.predict(resolved)
                return params, rejected
        if self.preflight.forget_carried():  # what other studies taught leaves nothing here: start cold
            return self._admitted(study, others, fixed, taken)
        if likely[1] and examine(self.space, self.preflight, likely[1], doubtful=True)[1] is None:
            self.last_prediction = self.preflight.predict(self.space.resolve(likely[1]))
            return likely[1], rejected
        told = "; ".join(f"{rejected[kind]} × {example}" for kind, example in examples.items())
        if self.left and rejected["duplicate"]:
            self.left.used_up |= not fixed
            raise UsedUp(f"Nothing new is left of the space ({told}).")
        raise Infeasible(
            f"A trial needs a configuration that is admitted and new, but {sum(rejected.values())} proposals "
            f"in a row were rejected ({told}). Raise the limits, widen [space], or set "
            f"allow_duplicates = true in {self.preflight.study.path}."
        )

    def _certain(self, *args: Any) -> tuple[dict[str, Any], Counter[str]]:
        found = self._admitted(*args)
        assert found is not None  # without given weights there is one, or an error
        return found

    def _examined(
        self, params: Mapping[str, Any], taken: set[str], training: str | None = None
    ) -> tuple[Any | None, str | None]:
        if digest(params) in taken:
            return None, "duplicate: it was tried"
        resolved, reason = examine(self.space, self.preflight, params)
        if training and resolved is not None and training_key(resolved) != training:
            reason = "other weights: it trains something else than its checkpoint"
        return resolved, reason

    def _keys(self, others: Sequence[FrozenTrial]) -> set[str]:
        """Keys of every configuration that was tried, is running or is waiting."""
        for trial in others:
            if trial.number in self._over:
                continue
            params = settled_params(trial)
            known = self._taken.get(trial.number)
            if known is None or known[0] != params:  # a running trial may get another parameter
                self._taken[trial.number] = dict(params), digest(self.space.keep_active(params))
            if trial.state.is_finished():
                self._over.add(trial.number)
        return {key for _, key in self._taken.values()}

    def _learn(self, others: Sequence[FrozenTrial]) -> None:
        """Teach the preflight what finished since the last trial; once it knows many, the newest of that."""
        most = LATEST if len(self._taught) < LATEST else NEWEST
        new = [t for t in others if t.state == TrialState.COMPLETE and t.number not in self._taught]
        self._taught |= {t.number for t in new}
        for trial in new[-most:]:
            result = result_of(trial)
            if result is None:
                continue
            try:
                resolved = self.space.resolve(trial.params)
            except ValueError:  # an enqueued configuration that the space cannot express
                continue
            self.preflight.learn([(resolved, result)])


def learnt_from(sources: Sequence[Source], proposer: Proposer) -> dict[str, dict[str, float]]:
    """earlier study -> how many of its trials a proposal knew, and its trust; {} before the first."""
    trusts: dict[str, float] = getattr(proposer, "trusts", dict)()
    counts = {source.name: len(source.params) for source in sources}
    return {name: {"trials": counts[name], "trust": round(t, 3)} for name, t in trusts.items()}
