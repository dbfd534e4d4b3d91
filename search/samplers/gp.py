"""GaussianProcess: Optuna's GPSampler behind the same admission as every proposer.

It knows no conditions: what a trial lacks stands at the middle of its range, or at its first choice. Trials
that ran to their end teach it the objective and the constraints that any of them broke, pruned ones nothing.
It makes one proposal a trial (15 to 24 s of CPU over the 163 parameters of studies/laptop.toml). When that is
refused, it gives up a growing share of it to uniform draws, so that the search walks away from what was
refused. PyTorch is loaded with the first model, not before.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import GPSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.common.numeric import Distributions, value_at
from search.samplers.tpe import settled_params

STARTUP = 16  # complete trials before it models anything, where the study does not say
MODELLED_MOST = 300  # complete trials that it models: a fit costs the third power of their number
AWAY = 0.04  # share of a refused proposal that each next one draws anew


class GaussianProcess:
    """begin(study, trials) once a trial, then propose() as often as needed. For one study."""

    weighs_stages = False

    def __init__(self, distributions: Distributions, *, startup_trials: int, seed: int | None):
        self._space = {n: d for n, d in distributions.items() if not d.single()}
        self._startup_trials = startup_trials or STARTUP
        self._sampler = GPSampler(seed=seed, n_startup_trials=0)
        self._rng = np.random.default_rng(seed)
        self._known: optuna.Study | None = None  # the trials, every parameter in each
        self._found: dict[str, Any] | None = None
        self._asked = 0

    def reseed_rng(self) -> None:
        self._rng = np.random.default_rng()
        self._sampler.reseed_rng()

    def begin(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        """Take in the trials; what they say is worked out by the first proposal."""
        self._known, self._found, self._asked = None, None, 0
        complete = [t for t in trials if t.state == TrialState.COMPLETE]
        if len(complete) < self._startup_trials or not self._space:
            return
        newest = sorted(complete, key=lambda t: t.number)[-MODELLED_MOST:]
        told = [t.constraints for t in newest]
        shared = {name for name in told[0] if all(name in one for one in told)}
        broken = {name for name in shared if any(one[name] > 0.0 for one in told)}
        self._known = optuna.create_study(direction=study.direction)
        for trial in [*newest, *(t for t in trials if t.state == TrialState.RUNNING)]:
            self._known.add_trial(self._whole(trial, broken))

    def propose(self) -> Mapping[str, Any]:
        """Some parameters' values; the others, all of them while there is too little to model, are drawn."""
        if self._known is None:
            return {}
        if self._found is None:
            trial = self._known.ask()
            frozen = self._known.get_trials(deepcopy=False)[trial.number]
            self._found = self._sampler.sample_relative(self._known, frozen, self._space)
        anew = AWAY * self._asked
        self._asked += 1
        return {name: value for name, value in self._found.items() if self._rng.random() >= anew}

    def _whole(self, trial: FrozenTrial, constraints: set[str]) -> FrozenTrial:
        params = settled_params(trial)
        filled = {n: params[n] if n in params else value_at(d, 0.0) for n, d in self._space.items()}
        done = trial.state == TrialState.COMPLETE
        return create_trial(
            state=trial.state,
            value=trial.value if done else None,
            params=filled,
            distributions=self._space,
            constraints={k: v for k, v in trial.constraints.items() if k in constraints} if done else None,
        )
