"""Knowledge: what the user of a StructuredSampler knows beyond the trials. Spent: what the trials cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from search.samplers.trials import settled_params

Params = Mapping[str, Any]
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Knowledge:
    """What the caller knows beyond the trials. All of it is optional."""

    distributions: Mapping[str, BaseDistribution] = field(default_factory=dict[str, BaseDistribution])
    keep_active: Callable[[Params], Params] | None = None  # drops the parameters that mean nothing
    admits: Callable[[Params], bool] | None = None  # False: known, before running, to be infeasible
    start: Params | None = None  # a configuration to begin with, and to stay near until one is feasible
    stage_of: Mapping[str, str] = field(
        default_factory=dict[str, str]
    )  # parameter -> stage; absent: the first
    stages: tuple[str, ...] = ()  # upstream first; empty: every run costs the same
    seconds: Callable[[Params], Mapping[str, float]] | None = None  # predicted seconds of each stage
    reuse: float = 0.25  # share of the seconds that may go to trials whose first stage is finished already

    def level(self, name: str) -> int:
        """The place of a parameter's stage in `stages`."""
        return self.stages.index(self.stage_of.get(name, self.stages[0]))

    def keys(self, params: Params, names: AbstractSet[str]) -> list[Key]:
        """Identity of the result of every stage: the active parameters, of `names`, up to it."""
        items = sorted((self.level(n), n, v) for n, v in params.items() if n in names)
        return [(k, *((n, v) for level, n, v in items if level <= k)) for k in range(len(self.stages))]

    def cost(self, params: Params, names: AbstractSet[str], known: AbstractSet[Key]) -> float:
        """Predicted seconds of the stages whose key is not known; at least 1."""
        assert self.seconds is not None
        seconds, keys = self.seconds(params), self.keys(params, names)
        spent = [seconds.get(s, 0.0) for s, key in zip(self.stages, keys, strict=True) if key not in known]
        return max(sum(spent), 1.0)


class Spent:
    """Predicted seconds of finished trials, and the stages that they finished."""

    def __init__(self) -> None:
        self.known: set[Key] = set()
        self.anew, self.on_finished = 0.0, 0.0  # by whether the first stage was there already
        self._read: set[int] = set()

    def learn(self, trials: Iterable[FrozenTrial], knowledge: Knowledge, names: AbstractSet[str]) -> None:
        """Adds those that are not counted yet."""
        for trial in trials:
            if trial.number in self._read:
                continue
            self._read.add(trial.number)
            params = settled_params(trial)
            keys, seconds = knowledge.keys(params, names), knowledge.cost(params, names, self.known)
            if keys[0] in self.known:
                self.on_finished += seconds
            else:
                self.anew += seconds
            self.known.update(keys)
