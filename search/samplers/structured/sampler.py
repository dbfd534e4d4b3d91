"""StructuredSampler: Thompson draws from a structured surrogate, for any Optuna study.

A proposal minimises one draw of the surrogate (search/samplers/structured/surrogate.py), by local search,
among what is expected to be feasible (constraints are learned too) and what `Prior.admits` lets pass; mostly
in a random subspace around the best trial, a small one while trials are fewer than parameters: so early a
draw over all of them is a jump into the unknown. Which parameters are active when, the caller's space says
(`Prior.conditions`); in somebody else's study it is learned from the trials. With stages, a proposal may
instead keep the finished stages of a good trial and change what lies downstream: the larger expected gain per
second wins. Where a Gaussian process foretells the trials better (search/samplers/structured/smooth.py), it
proposes instead; a share of proposals is TPE's, for responses that neither model can see.

One sampler may serve many threads of one study (each proposal is made alone) and be pickled for processes.
A range that changes from trial to trial is joined over the newest trials; what is proposed outside the one
that a trial asks for becomes the nearest value in it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.common.conditions import Conditions
from search.common.numeric import Distributions, SearchSpace, fits, is_endless, place, value_at
from search.samplers.stages import Stages, StageWeigher
from search.samplers.structured.beliefs import Beliefs
from search.samplers.structured.local_search import Moves, climb
from search.samplers.structured.rows import Array, Mask, Rows, Settings, learn_rules, rules_within, space_of
from search.samplers.structured.smooth import LEAST, MOST_ACTIVE, Smooth, log_improvement, spread
from search.samplers.structured.sources import Source
from search.samplers.structured.surrogate import Function
from search.samplers.tpe import GroupedTpe, Lock, alone, other_trials, settled_params, share

TPE_SHARE = 0.1  # of proposals, once TPE has enough trials
TPE_FROM = 20  # finished trials
BOLDNESS = 0.4  # a draw's distance from the posterior mean, over a Thompson draw's
STEPS = 10  # of a local search
OFFERS = 3  # of which the most promising is proposed, while trials are few
# Share of proposals that leave most of the best trial as it is, and share of the parameters that they may
# move: while complete trials are fewer than parameters, and later.
NEARBY = (1.0, 0.7)
FREE = (0.3, 0.5)
SPREAD = 10  # parameters for each of the first trials that are drawn anywhere, once one is feasible
ANYWHERE = 3  # of so many planned trials, one at most is drawn anywhere
FIRST = 10  # trials of a study that knows no place to start from: spread, whatever the number of parameters
REFUSALS = 60  # uniform draws before a proposal that `admits` refuses is made all the same
BASES = 3  # good trials whose finished stages a proposal may keep
PENALTY = 4.0  # sds of the objective for each sd of a constraint's expected excess
SHAKEN = 0.15  # share of coordinates that a shaken start has redrawn
RELEARNED = 1.2  # growth of the trials after which rules that say too little are learned anew

NARROWEST, WIDEST = 0.03, 1.0  # sds by which constraints are tightened, first and last
Params = Mapping[str, Any]
MarginScore = Callable[..., Array]  # (rows [n, parameters], margin) -> [n]


@dataclass(frozen=True)
class Prior:
    """What the caller knows before and beyond the trials. All of it is optional."""

    distributions: Distributions = field(default_factory=dict[str, BaseDistribution])
    conditions: Conditions | None = None  # when each parameter means something; None: the trials show it
    keep_active: Callable[[Params], Params] | None = None  # drops what means nothing; None: by the conditions
    admits: Callable[[Params], bool] | None = None  # False: known, before running, to be infeasible
    start: Params | None = None  # a configuration to begin with, and to stay near until one is feasible
    stages: Stages | None = None  # what may be kept from run to run; None: every run costs the same
    sources: Sequence[Source] = ()  # what earlier studies of a changed space found
    unknown: float | None = None  # a constraint's value that says nothing
    planned: int | None = None  # trials of the whole study; None: any number


class StructuredSampler(optuna.samplers.BaseSampler):
    """See the head of this file. `seed=None` in real studies, so that no two workers agree."""

    def __init__(
        self,
        *,
        seed: int | None = None,
        prior: Prior | None = None,
        tpe_share: float = TPE_SHARE,
        boldness: float = BOLDNESS,
        startup_trials: int | None = None,  # the first, drawn anywhere; None: one for every SPREAD parameters
        candidates: int = 24,  # draws that a proposal of TPE is the best of
    ):
        if not 0.0 <= tpe_share <= 1.0:
            raise ValueError(f"tpe_share must be from 0 to 1, but got {tpe_share}. 0.1 is the default.")
        self.prior = prior or Prior()
        self.weighs_stages = self.prior.stages is not None
        self.tpe_share, self.boldness = tpe_share, boldness
        self.startup_trials, self.candidates = startup_trials, candidates
        self.lock = Lock()
        self._rng = np.random.default_rng(seed)
        self._beliefs: Beliefs | None = None
        self._of: tuple[str, int] | None = None  # the study
        self._space: dict[str, BaseDistribution] = dict(self.prior.distributions)
        self._checked: set[int] = set()  # finished trials that the rules agree with
        self._learned = 0  # complete trials that the rules were learned from
        self._tpe: GroupedTpe | None = None
        self._asked_tpe = False
        self._weigher: StageWeigher | None = None
        self._smooth = Smooth()

    @alone
    def reseed_rng(self) -> None:
        self._rng = np.random.default_rng()
        if self._tpe is not None:
            self._tpe.reseed_rng()

    @alone
    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> SearchSpace:
        """Every parameter that any trial had, active or not: a proposal is made at once. ValueError for a
        study with several objectives."""
        self._begin_study(study)
        sign_of(study)
        if not self.prior.distributions:
            states = (TrialState.COMPLETE, TrialState.PRUNED)
            self._space |= space_of(study.get_trials(deepcopy=False, states=states))
        return {n: d for n, d in self._space.items() if not d.single()}

    @alone
    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: SearchSpace
    ) -> dict[str, Any]:
        """One admitted proposal: a value of every parameter that is asked for."""
        if not search_space:
            return {}
        self._begin_study(study)
        self.begin(study, other_trials(study, trial), search_space)
        proposed = self.propose()
        found = {name: proposed[name] for name in search_space}
        active = self._active_of(proposed)
        share(study, trial, {name: value for name, value in found.items() if name in active})
        return found

    @alone
    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value nearest to what was proposed for another range; uniform where nothing was."""
        proposed = settled_params(trial).get(param_name)
        if proposed is not None and fits(param_distribution, proposed):
            return value_at(param_distribution, place(param_distribution, proposed))
        rows = Rows({param_name: param_distribution}, {})
        return rows.decode(rows.uniform(self._rng, 1)[0])[param_name]

    @alone
    def begin(
        self, study: optuna.Study, trials: Sequence[FrozenTrial], space: Distributions | None = None
    ) -> None:
        """Learn from `trials` (all but the one that is sampled); then `propose` as often as needed. `space`:
        parameters that are asked for, where no trial shows them yet. ValueError: several objectives."""
        self._space |= {n: d for n, d in (space or {}).items() if n not in self._space}
        space = {n: d for n, d in self._space.items() if not d.single()}
        beliefs = self._refreshed(space, trials, sign_of(study))
        beliefs.learn(trials)
        self._asked_tpe = beliefs.finished >= TPE_FROM and self._rng.random() < self.tpe_share
        self._asked_tpe &= not any(is_endless(d) for d in space.values())
        assert self._tpe is not None
        if self._asked_tpe or (self.tpe_share and not self._tpe.begun):  # history: by the first proposal
            self._tpe.begin(study, trials)

    @alone
    def propose(self) -> Params:
        """A value of every parameter, active or not; TPE's are worked out as they are asked for."""
        assert self._beliefs is not None, "begin() comes first"
        if self._asked_tpe and self._tpe is not None:
            for _ in range(REFUSALS):
                found = self._tpe.propose()
                settings = self._beliefs.rows.settings(self._active_of(found))
                if found and settings not in self._beliefs.tried and self._admitted(found):
                    return found
        return self._beliefs.rows.decode(self._smooth_row(self._beliefs))

    def _smooth_row(self, beliefs: Beliefs) -> Array:
        """Spread first trials; then the smooth model's row when the trials speak for it, else a draw's."""
        if self.startup_trials is None and self.prior.start is None and beliefs.begun < FIRST:
            row = spread(beliefs, self._rng, lambda r: self._is_new(beliefs, r))
            if row is not None:
                return row
        if self._asks_smooth(beliefs) and self._rng.random() < self._smooth.chance(beliefs):
            row = self._smooth.propose(beliefs, self._rng, lambda r: self._is_new(beliefs, r))
            if row is not None:
                return row
        return self._most_promising(beliefs)

    def _most_promising(self, beliefs: Beliefs) -> Array:
        """A draw's proposal; while trials are few, of several draws the one that promises most."""
        few = FIRST <= len(beliefs.complete) and beliefs.known() < len(beliefs.rows.names)
        if not few or self._weigher is not None or not beliefs.incumbents(1):
            return self._best_of_a_draw(beliefs)
        rows = np.array([self._best_of_a_draw(beliefs) for _ in range(OFFERS)])
        return rows[int(np.argmax(log_gain(beliefs, rows)))]

    def _asks_smooth(self, beliefs: Beliefs) -> bool:
        """The smooth model knows neither stages nor earlier studies, begins after the first trials, and makes
        too long steps where many parameters are active."""
        if self._weigher is not None or len(beliefs.earlier):
            return False
        if len(beliefs.seen) and beliefs.rows.active(beliefs.seen).sum(axis=1).mean() > MOST_ACTIVE:
            return False
        return len(beliefs.complete) >= LEAST and beliefs.begun > (self.startup_trials or 0)

    def _is_new(self, beliefs: Beliefs, row: Array) -> bool:
        return not self._tried(beliefs, row) and self._admitted(beliefs.rows.decode(row))

    @alone
    def recommend(self, study: optuna.Study) -> FrozenTrial:
        """The feasible trial with the best posterior mean: no winner by luck. ValueError without one."""
        self._begin_study(study)
        trials = study.get_trials(deepcopy=False)
        self._space |= {} if self.prior.distributions else space_of(trials)
        self.begin(study, trials)
        assert self._beliefs is not None
        best = self._beliefs.incumbents(1)
        if not best:
            raise ValueError(
                "A recommendation needs a complete, feasible trial, but there is none. Run more."
            )
        return self._beliefs.complete[best[0]]

    def _begin_study(self, study: optuna.Study) -> None:
        """What was learned of another study is forgotten."""
        now = study.study_name, id(study._storage)  # pyright: ignore[reportPrivateUsage]
        if self._of not in (None, now):
            self._beliefs = None
            self._tpe = None
            self._weigher = None
            self._asked_tpe = False
            self._space = dict(self.prior.distributions)
            self._learned = 0
            self._checked.clear()
        self._of = now

    def _refreshed(self, space: Distributions, trials: Sequence[FrozenTrial], sign: float) -> Beliefs:
        """The beliefs, begun anew when the space changed or a trial contradicts the rules."""
        known, old = self.prior.conditions, self._beliefs
        over = [] if known is not None else [t for t in trials if t.state.is_finished()]
        same = old if old is not None and old.rows.distributions == dict(space) else None
        if same is not None and all(self._agrees(same, t) for t in over if t.number not in self._checked):
            self._checked |= {t.number for t in over}
            return same
        if known is not None:
            rules = rules_within(space, known)
        else:
            plain = Rows(space, {})
            complete = [t for t in trials if t.state == TrialState.COMPLETE]
            rules = learn_rules(space, [plain.expressible(t.params) for t in complete])
            self._learned = len(complete)
            self._checked = {t.number for t in over}
        if same is not None and same.rows.rules == rules:
            return same
        unknown = self.prior.unknown
        sources = self.prior.sources
        self._beliefs = Beliefs(space, rules, sign=sign, unknown=unknown, sources=sources)
        self._weigher = StageWeigher(self.prior.stages, set(self._space)) if self.prior.stages else None
        if old is not None and len(old.basis.dists) == len(space):
            self._beliefs.objective.model.hyper = old.objective.model.hyper
        groups = self._beliefs.rows.groups()
        seed = int(self._rng.integers(2**31))
        self._tpe = GroupedTpe(groups, space, startup_trials=TPE_FROM, candidates=self.candidates, seed=seed)
        return self._beliefs

    def _agrees(self, beliefs: Beliefs, trial: FrozenTrial) -> bool:
        """Whether the rules say no parameter of a finished trial means nothing, nor, once enough trials came
        to learn them anew, that a complete one lacks any."""
        params = beliefs.rows.expressible(trial.params)
        active = beliefs.rows.active(beliefs.rows.encode([params]))[0]
        meant = {name for name, is_active in zip(beliefs.rows.names, active, strict=True) if is_active}
        due = trial.state == TrialState.COMPLETE and trial.number >= RELEARNED * self._learned
        return params.keys() == meant if due else params.keys() <= meant

    def _admitted(self, params: Params) -> bool:
        return self.prior.admits is None or self.prior.admits(self._active_of(params))

    def _active_of(self, params: Params) -> Params:
        if self.prior.keep_active is not None:
            return self.prior.keep_active(params)
        assert self._beliefs is not None
        return self._beliefs.rows.keep_active(params)

    def _best_of_a_draw(self, beliefs: Beliefs) -> Array:
        mean, draw, share = beliefs.objective.mean, beliefs.objective.model.draw(self._rng), self.boldness
        assert mean is not None
        bold = Function(
            mean.intercept + share * (draw.intercept - mean.intercept),
            mean.main + share * (draw.main - mean.main),
            mean.pair + share * (draw.pair - mean.pair),
        )
        scale = beliefs.objective.model.scale

        def score(rows: Array, margin: float = 0.0) -> Array:
            columns = beliefs.columns_of(rows)
            return bold(columns) + PENALTY * scale * beliefs.excess(columns, margin)

        best = beliefs.incumbents(BASES)
        base = beliefs.seen[best[:1]]
        if not best and self.prior.start:
            base = beliefs.rows.encode([self.prior.start])
            if beliefs.first and self._admitted(self.prior.start):
                return base[0]
            beliefs.tried.add(self._key(beliefs, base[0]))  # by the first trial, stored or not
        earlier = self._best_earlier(beliefs)
        if earlier and beliefs.begun <= len(self.prior.sources):
            for row in earlier:
                if not self._tried(beliefs, row):
                    return row
        if earlier and not best:
            base = np.array(earlier[:1])
        first = 0 if earlier else self._first_trials(beliefs)
        if 0 < beliefs.begun <= first and (best or not beliefs.finished):
            return self._any(beliefs, score)
        starts, free = self._starts(beliefs, best, score), np.ones(len(beliefs.rows.names), dtype=bool)
        late = beliefs.known() >= len(free)
        if len(base) and self._rng.random() < NEARBY[late]:
            starts, free = base, self._rng.random(len(free)) < FREE[late]
        row = self._climbed(beliefs, starts, score, free)
        row = self._any(beliefs, score) if row is None else self._renewed(beliefs, row, score)
        if self._weigher is None or not best or not self._weigher.affordable(beliefs.complete):
            return row
        return self._cheapest_gain(self._weigher, row, best, score)

    def _first_trials(self, beliefs: Beliefs) -> int:
        """How many are drawn anywhere: a short study must stay near what it found sooner."""
        if self.startup_trials is not None:
            return self.startup_trials
        most = len(beliefs.rows.names) // SPREAD
        return most if self.prior.planned is None else min(most, self.prior.planned // ANYWHERE)

    def _best_earlier(self, beliefs: Beliefs) -> list[Array]:
        """The best admitted row of each earlier study, the best study's first."""
        found: dict[int, Array] = {}
        for source, row in beliefs.best_earlier():
            if source not in found and self._admitted(beliefs.rows.decode(row)):
                found[source] = row
            if len(found) == len(self.prior.sources):
                break
        return list(found.values())

    def trusts(self) -> dict[str, float]:
        """By earlier study, from 0 (ignored) to 1 (as if its trials were this study's own); once asked."""
        model = self._beliefs.objective.model if self._beliefs else None
        names = [source.name for source in self.prior.sources]
        return dict(zip(names, model.trusts() if model else [], strict=False))

    def _climbed(self, beliefs: Beliefs, starts: Array, score: MarginScore, free: Mask) -> Array | None:
        """The best admitted end of the starts. While all are refused, the constraints are tightened, so that
        the search walks away from the border that `admits` draws."""
        margin, moves = 0.0, Moves(beliefs.rows, free)
        while margin < WIDEST:
            starts = climb(starts, lambda r, m=margin: score(r, m), moves, rng=self._rng, steps=STEPS)
            order = np.argsort(score(starts, margin))
            for k in order:
                if self._admitted(beliefs.rows.decode(starts[k])):
                    return starts[k]
            starts, margin = starts[order[:1]], 2.0 * margin + NARROWEST
        return None

    def _renewed(self, beliefs: Beliefs, row: Array, score: MarginScore) -> Array:
        """`row`, or the best admitted row beside it when it was tried: noise alone is no reason to repeat."""
        if not self._tried(beliefs, row):
            return row
        moves = Moves(beliefs.rows, np.ones(len(row), dtype=bool))
        beside = moves.singles(row, self._rng)[0]
        for k in np.argsort(score(beside)):
            if self._admitted(beliefs.rows.decode(beside[k])) and not self._tried(beliefs, beside[k]):
                return beside[k]
        return row

    def _tried(self, beliefs: Beliefs, row: Array) -> bool:
        return self._key(beliefs, row) in beliefs.tried

    def _key(self, beliefs: Beliefs, row: Array) -> Settings:
        return beliefs.rows.settings(self._active_of(beliefs.rows.decode(row)))

    def _starts(self, beliefs: Beliefs, best: Sequence[int], score: MarginScore) -> Array:
        """The best trial, the best trial by the draw, and a good one shaken."""
        uniform = beliefs.rows.uniform(self._rng, 3)
        if not best:
            return uniform
        seen = beliefs.seen[best]
        by_draw = beliefs.seen[int(np.argmin(score(beliefs.seen)))]
        shaken = np.where(self._rng.random(uniform[:1].shape) < SHAKEN, uniform[:1], seen[-1:])
        return np.concatenate([seen[:1], by_draw[None, :], shaken])

    def _any(self, beliefs: Beliefs, score: MarginScore) -> Array:
        """The best admitted of uniform draws, of the new ones if there are any; the best where none is."""
        rows = beliefs.rows.uniform(self._rng, REFUSALS)
        rows = rows[np.argsort(score(rows))]
        again: list[Array] = []
        refused: list[Array] = []
        for row in rows:
            if self._tried(beliefs, row):
                again.append(row)
            elif self._admitted(beliefs.rows.decode(row)):
                return row
            else:
                refused.append(row)
        return next((row for row in again if self._admitted(beliefs.rows.decode(row))), [*refused, *again][0])

    def _cheapest_gain(self, weigher: StageWeigher, row: Array, best: list[int], score: MarginScore) -> Array:
        """The proposal with the largest gain per second: the whole one, or one that keeps finished stages.
        What `admits` refuses is not weighed: it may contradict itself, and nothing predicts its seconds."""
        beliefs, stages = self._beliefs, weigher.stages
        assert beliefs is not None
        reference = float(score(beliefs.seen[best[:1]])[0])
        options = [row] if self._admitted(beliefs.rows.decode(row)) else []
        for level in range(len(stages.names) - 1):
            free = np.array([stages.level(name) > level for name in beliefs.rows.names])
            found = [self._climbed(beliefs, beliefs.seen[[k]], score, free) for k in best if free.any()]
            options += [r for r in found if r is not None and not self._tried(beliefs, r)]
        if not options:
            return row
        gains = reference - score(np.array(options))
        active = [self._active_of(beliefs.rows.decode(option)) for option in options]
        return options[weigher.best(gains.tolist(), active)]


def log_gain(beliefs: Beliefs, rows: Array) -> Array:
    """Logarithm [n] of the expected improvement on the best posterior mean of a feasible trial."""
    model, mean = beliefs.objective.model, beliefs.objective.mean
    assert mean is not None
    columns = beliefs.columns_of(rows)
    sd = np.sqrt(model.variance(columns)) + min(1e-12, 1e-6 * model.scale)
    expected = mean(columns) + PENALTY * model.scale * beliefs.excess(columns)
    best = float(mean(beliefs.columns[beliefs.incumbents(1)])[0])
    return np.log(sd) + log_improvement((best - expected) / sd)


def sign_of(study: optuna.Study) -> float:
    """-1 where more is better. ValueError for several objectives."""
    directions = study.directions
    if len(directions) > 1:
        raise ValueError(
            f"StructuredSampler improves one objective, but this study has {len(directions)}. Keep one and "
            "make constraints of the others (trial.set_constraint), or take optuna.samplers.NSGAIISampler."
        )
    return -1.0 if directions[0] == StudyDirection.MAXIMIZE else 1.0
