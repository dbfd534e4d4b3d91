"""New training or finished weights: whether the next trial goes on from finished stages, and from which.

A trial that only changes a quantiser, a codec or a scorer costs a fraction of one that trains, and is worth
its seconds as long as such trials stay few: without new weights there is nothing to refine. Hence at most the
share `reuse` of a study's seconds goes to trials on finished weights (StageSpending): the cheaper the later
stages are, the more of them are tried.

- StageChooser decides before a proposal, for a sampler that only proposes, by seconds measured in this study.
  A checkpoint qualifies when a trial that kept every limit was scored from it, it is one of the BEST by
  val_bpb, its weights are cached for the code, data and machine of now, and fewer than PATIENCE trials in a
  row failed to better it. The least tried is taken, then the best; its parameters up to the training are
  fixed, and a proposal counts only if its training has the checkpoint's key. Else the trial trains.
- StageWeigher (search/samplers/stages.py) decides after the proposals, for a sampler that tells what each one
  gains.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from optuna.trial import FrozenTrial, TrialState

from search.common.attributes import FROM_CHECKPOINT, STAGE_REUSE
from search.samplers.stages import Stages, StageSpending
from search.space.space import Space, is_later, training_key
from search.study.limits import feasible
from techniques.config import Resolved

BEST = 3
PATIENCE = 8
Params = Mapping[str, Any]


@dataclass
class Checkpoint:
    """Weights that some trials were scored from."""

    params: dict[str, Any]  # of the trial that first had them, up to the training
    resolved: Resolved
    best: float = float("inf")  # val_bpb of its best feasible trial
    tried: int = 0  # trials that the rule sent here
    in_vain: int = 0  # of them, the last ones in a row that bettered nothing


@dataclass
class StageChooser:
    """See the head of this file. `cached` says whether a configuration's weights are at hand."""

    space: Space
    share: float
    cached: Callable[[Resolved], bool]
    _seen: set[int] = field(default_factory=set[int])
    _found: dict[str, Checkpoint] = field(default_factory=dict[str, Checkpoint])

    def __post_init__(self) -> None:
        self.later = {name for name in self.space.distributions if is_later(self.space, name)}

    def stages(self, seconds: Callable[[Params], Mapping[str, float]]) -> Stages:
        """The same for a sampler that weighs by itself; `seconds` predicts those of `train` and `score`."""
        return Stages(("train", "score"), dict.fromkeys(self.later, "score"), seconds, self.share)

    def choose(self, trials: Sequence[FrozenTrial]) -> tuple[str, dict[str, Any]] | None:
        """(training key, parameters to fix) of the checkpoint to go on from; None: train something new."""
        if not self.later or not self._affordable(trials):
            return None
        self._learn(trials)
        running = [t.user_attrs.get(FROM_CHECKPOINT) for t in trials if not t.state.is_finished()]
        ranked = sorted(self._found.items(), key=lambda item: item[1].best)[:BEST]
        open_: list[tuple[int, float, str]] = []
        for key, found in ranked:
            if found.in_vain + running.count(key) < PATIENCE and self.cached(found.resolved):
                open_.append((found.tried + running.count(key), found.best, key))
        key = min(open_)[2] if open_ else ""
        return (key, dict(self._found[key].params)) if key else None

    def _affordable(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether one more trial on finished weights keeps the share, counting what runs now."""
        spent: dict[bool, list[float]] = {False: [], True: []}
        trained: list[float] = []
        for trial in trials:
            facts = cast("Mapping[str, Any]", trial.user_attrs.get(STAGE_REUSE) or {})
            if facts:
                spent[FROM_CHECKPOINT in trial.user_attrs].append(float(facts["spent_s"]))
            if facts and not facts["reused"]:
                trained.append(float(facts["seconds"].get("train", 0.0)))
        if not spent[False] or not trained:
            return False
        new_s = statistics.median(spent[False])
        cheap_s = max(0.0, new_s - statistics.median(trained))
        if spent[True]:
            cheap_s = statistics.median(spent[True])
        running = [FROM_CHECKPOINT in t.user_attrs for t in trials if t.state == TrialState.RUNNING]
        anew_s = sum(spent[False]) + new_s * (len(running) - sum(running))
        kept_s = sum(spent[True]) + cheap_s * (1 + sum(running))
        return cheap_s < new_s and StageSpending(anew_s, kept_s).allows(self.share)

    def _learn(self, trials: Sequence[FrozenTrial]) -> None:
        """Takes in what finished since the last look, in the order of the trials' numbers."""
        for trial in trials:
            if trial.number in self._seen or not trial.state.is_finished():
                continue
            self._seen.add(trial.number)
            if trial.state == TrialState.FAIL:  # the machine's fault says nothing
                continue
            value = trial.value if trial.state == TrialState.COMPLETE and feasible(trial) else None
            sent = trial.user_attrs.get(FROM_CHECKPOINT)
            if value is None and sent not in self._found:
                continue
            try:
                resolved = self.space.resolve(trial.params)
            except ValueError:  # an enqueued configuration that the space cannot express
                continue
            params = {n: v for n, v in trial.params.items() if n not in self.later}
            found = self._found.setdefault(training_key(resolved), Checkpoint(params, resolved))
            better = value is not None and value < found.best
            found.best = value if better and value is not None else found.best
            found.tried += sent is not None
            found.in_vain = 0 if better else found.in_vain + (sent is not None)
