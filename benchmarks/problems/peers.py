"""Peers with an ask-and-tell interface of their own, as samplers of Optuna, for spaces of numbers.

Each draws the first trial, for a study shows its parameters only then. SMAC3 here is its Gaussian process
(BlackBoxFacade); its random forest needs pyrfr.
"""

from __future__ import annotations

import importlib
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

MOST = 100  # runs of a problem


class Smac(BaseSampler):
    """SMAC3, told of every trial that it asked for."""

    def __init__(self, seed: int):
        self.seed = seed
        self.first = RandomSampler(seed=seed)
        self.seen = IntersectionSearchSpace()
        self.facade: Any = None
        self.asked = dict[int, Any]()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.seen.calculate(study)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        if self.facade is None:
            self.facade = self.begun(search_space)
        self.asked[trial.number] = self.facade.ask()
        return dict(self.asked[trial.number].config)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.first.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        if values and trial.number in self.asked:
            told = importlib.import_module("smac.runhistory").TrialValue(cost=float(values[0]))
            self.facade.tell(self.asked.pop(trial.number), told)

    def begun(self, space: dict[str, BaseDistribution]) -> Any:
        """A facade for these parameters."""
        smac: Any = importlib.import_module("smac")
        configs: Any = importlib.import_module("ConfigSpace")
        numbers = {n: d for n, d in space.items() if isinstance(d, FloatDistribution | IntDistribution)}
        assert len(numbers) == len(space), "only numbers"
        ranges = {n: (d.low, d.high) for n, d in numbers.items()}
        scenario = smac.Scenario(
            configs.ConfigurationSpace(ranges, seed=self.seed),
            output_directory=Path(tempfile.mkdtemp()),
            deterministic=True,
            n_trials=MOST,
            seed=self.seed,
        )
        return smac.BlackBoxFacade(scenario, uncalled, overwrite=True, logging_level=False)


def uncalled(config: Any, seed: int = 0) -> float:
    """What SMAC3 wants to be given: it is asked and told, and so calls nothing."""
    return math.nan
