"""Stages: what of a run may be kept for the next, and what a proposal gains for each second of the rest.

At most the share `share` of a study's seconds goes to trials whose first stage is finished already: without
anything new there is nothing to refine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from search.common.numeric import frozen
from search.samplers.tpe import settled_params

Params = Mapping[str, Any]
Key = tuple[Any, ...]


@dataclass
class StageSpending:
    """Seconds of trials that trained anew, and of those that went on from finished weights."""

    anew_s: float = 0.0
    kept_s: float = 0.0

    def allows(self, share: float) -> bool:
        """Whether at most this share of all went to finished weights."""
        return self.kept_s <= share * (self.anew_s + self.kept_s)


@dataclass(frozen=True)
class Stages:
    """The stages of a run, for a sampler that weighs them."""

    names: tuple[str, ...]  # upstream first
    stage_of: Mapping[str, str]  # parameter -> stage; absent: the first
    seconds: Callable[[Params], Mapping[str, float]]  # predicted, of each stage, of what `admits` allows
    share: float = 0.25  # of the seconds, for trials whose first stage is finished already

    def level(self, name: str) -> int:
        return self.names.index(self.stage_of.get(name, self.names[0]))

    def keys(self, params: Params, among: AbstractSet[str]) -> list[Key]:
        """Identity of the result of every stage: the active parameters, of these, up to it."""
        items = sorted((self.level(n), n) for n in params if n in among)
        return [
            (k, *((n, frozen(params[n])) for level, n in items if level <= k)) for k in range(len(self.names))
        ]


class StageWeigher:
    """The largest gain for each predicted second of the stages that would run anew. `among`: the parameters
    that make a stage what it is."""

    def __init__(self, stages: Stages, among: AbstractSet[str]):
        self.stages = stages
        self.among = among
        self.spending = StageSpending()
        self._finished: set[Key] = set()  # stages
        self._seen: set[int] = set()

    def affordable(self, trials: Iterable[FrozenTrial]) -> bool:
        """Whether what these finished trials were predicted to spend keeps the share."""
        for trial in trials:
            if trial.number not in self._seen:
                self._seen.add(trial.number)
                self._learn(settled_params(trial))
        return self.spending.allows(self.stages.share)

    def _learn(self, params: Params) -> None:
        keys = self.stages.keys(params, self.among)
        seconds = self.seconds(params)
        if keys[0] in self._finished:
            self.spending.kept_s += seconds
        else:
            self.spending.anew_s += seconds
        self._finished.update(keys)

    def seconds(self, params: Params) -> float:
        """Predicted seconds of the stages that are not finished; at least 1."""
        predicted = self.stages.seconds(params)
        keys = self.stages.keys(params, self.among)
        named = zip(self.stages.names, keys, strict=True)
        return max(sum(predicted.get(name, 0.0) for name, key in named if key not in self._finished), 1.0)

    def best(self, gains: Sequence[float], options: Sequence[Params]) -> int:
        """The option with the largest gain per second; the first where nothing gains."""
        each = zip(gains, options, strict=True)
        rates = [gain / self.seconds(option) if gain > 0 else -float("inf") for gain, option in each]
        return rates.index(max(rates))
