"""Left: what is left of a finite space, configuration by configuration; then replicates, on fresh seeds.

A space of at most MOST configurations is listed, conditions and all; of a larger one it is known that it is
used up once proposals and draws find nothing new. A replicate is a trial of its own: the same parameters,
queued with a seed that follows from the study's name alone, the same ones for every configuration.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from search.common.attributes import REPLICATE
from search.common.console import counted
from search.costs.preflight import Costs
from search.samplers.admission import examine
from search.samplers.tpe import settled_params
from search.space.space import Space, endless
from search.study.limits import feasible
from search.study.model import Study, fresh_seeds, own_seed
from techniques.config import digest

MOST = 5_000  # configurations that are listed: 0.4 CPU s at a worker's start
Params = Mapping[str, Any]


def configurations(space: Space) -> Iterator[dict[str, Any]]:
    """Every configuration of a finite space, in the order of its walk."""
    path: list[
        tuple[Sequence[Any], int]
    ] = []  # the values at each question so far, and the one that was taken
    while True:
        asked = 0

        def pick(name: str) -> Any:
            nonlocal asked
            if asked == len(path):
                path.append((values_of(space.distributions[name]), 0))
            values, at = path[asked]
            asked += 1
            return values[at]

        yield space.walk(pick)[0]
        while path and path[-1][1] + 1 == len(path[-1][0]):
            path.pop()
        if not path:
            return
        path[-1] = path[-1][0], path[-1][1] + 1


def values_of(dist: BaseDistribution) -> Sequence[Any]:
    if isinstance(dist, CategoricalDistribution):
        return dist.choices
    if isinstance(dist, FloatDistribution):
        return (dist.low,)  # of a finite space: one value
    assert isinstance(dist, IntDistribution)
    return range(dist.low, dist.high + 1, dist.step)


def listed(space: Space) -> dict[str, dict[str, Any]] | None:
    """Key -> configuration, of all of them; None: there are more than MOST, or endlessly many."""
    if endless(space):
        return None
    first = [space.repaired(found) for found in islice(configurations(space), MOST + 1)]
    return None if len(first) > MOST else {digest(params): params for params in first}


class Left:
    """What a finite space still has to try. `used_up`: proposals and draws found nothing new."""

    def __init__(self, space: Space, preflight: Costs, rng: np.random.Generator):
        self.space = space
        self.preflight = preflight
        self._rng = rng
        self.every = listed(space)
        self.used_up = False
        self._refused: set[str] = set()
        self._learnt = -1

    def new(self, taken: set[str], *, learnt: int) -> Iterator[dict[str, Any]]:
        """What can be tried, in any order. `learnt`: trials that the preflight has learned from."""
        if learnt != self._learnt:
            self._refused = set()
            self._learnt = learnt
        keys = [key for key in self.every or () if key not in taken and key not in self._refused]
        self._rng.shuffle(keys)
        for key in keys:
            params = (self.every or {})[key]
            if examine(self.space, self.preflight, params)[1] is None:
                yield params
            else:
                self._refused.add(key)

    def more(self, study: optuna.Study, trials: Sequence[FrozenTrial], taken: set[str], learnt: int) -> bool:
        """Whether a trial that is asked for now will find something: a new configuration, or a replicate,
        which is queued. To be called under the study's lock."""
        unsaid = sum(
            t.state == TrialState.RUNNING and not settled_params(t) for t in trials
        )  # each takes a new one
        fresh = not self.used_up
        if self.every is not None and (taken or unsaid):  # of nothing at all the sampler says why
            fresh = sum(1 for _ in islice(self.new(taken, learnt=learnt), unsaid + 1)) > unsaid
        return fresh or (unsaid == 0 and self.queue_replicate(study, trials))

    def queue_replicate(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> bool:
        """The feasible configuration with the fewest runs, of those the best mean, on its next seed."""
        settings = self.preflight.study
        if settings.sampler.replicates < 2:
            return False
        again = replicates_of(trials)
        due = list[tuple[int, float, int, FrozenTrial]]()
        firsts = {digest(t.params): t for t in reversed(trials) if is_first(t)}
        for trial in firsts.values():
            runs = [trial, *again.get(trial.number, ())]
            if len(runs) < settings.sampler.replicates:
                values = [cast("float", t.value) for t in runs if t.state == TrialState.COMPLETE]
                due.append((len(runs), sum(values) / len(values), trial.number, trial))
        if not due:
            return False
        trial = min(due)[-1]
        used = {t.user_attrs[REPLICATE]["seed"] for t in again.get(trial.number, ())}
        seed = next(s for s in seeds_of(settings) if s not in used)
        facts = {REPLICATE: {"of": trial.number, "seed": seed}}
        study.enqueue_trial(trial.params, user_attrs=facts)
        return True


def is_first(trial: FrozenTrial) -> bool:
    """Whether replicates of a trial are wanted: it kept the limits, and is none itself."""
    return trial.state == TrialState.COMPLETE and REPLICATE not in trial.user_attrs and feasible(trial)


def replicates_of(trials: Sequence[FrozenTrial]) -> dict[int, list[FrozenTrial]]:
    """A first trial's number -> its replicates, but those that were lost to the machine."""
    found: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        facts = trial.user_attrs.get(REPLICATE)
        if facts and trial.state != TrialState.FAIL:
            found.setdefault(int(facts["of"]), []).append(trial)
    return found


def seeds_of(study: Study) -> list[int]:
    """Of the replicates, in order; none is the study's own."""
    own = own_seed(study)
    known = set[int]() if own is None else {own}
    return fresh_seeds(f"replicates of {study.name}", study.sampler.replicates - 1, known)


def end_of(space: Space, study: Study, trials: Sequence[FrozenTrial], target: int) -> str:
    """Why a study ends before its target: one sentence, and what can be done."""
    every = listed(space)
    done = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    tried = {digest(space.keep_active(t.params)) for t in done}
    many = study.sampler.replicates
    if every is None:
        told = f"nothing new that is admitted is left beside the {counted(len(tried), 'configuration')} tried"
    elif len(tried) >= len(every):
        told = f"all {counted(len(every), 'configuration')} were tried"
    else:
        gone = every.keys() - tried
        lost = len(gone & {digest(space.keep_active(t.params)) for t in trials if t.state == TrialState.FAIL})
        rest = ", the others are not admitted" if lost < len(gone) else ""
        rest += f", {lost} went with the machine again and again" if lost else ""
        told = f"of {counted(len(every), 'configuration')} {len(tried)} were tried{rest}"
    runs = f", those that kept the limits on {many} seeds each" if many > 1 else ""
    more = max(4, 2 * many)
    return (
        f"The space is used up: {told}{runs}; the study ends with {len(done)} of {target} trials. For {more} "
        f"runs of each, on fresh seeds, write `replicates = {more}` under [sampler] in {study.path}; other "
        "configurations need a wider [space] in a study with another name."
    )
