"""StageChooser: whether the next trial trains something new or goes on from weights that are in the cache.

A trial that only changes a quantiser, a codec or a scorer costs a fraction of one that trains. Such trials
are worth their seconds as long as they stay few: without new weights there is nothing to refine. The rule:

1. Of the trainer seconds that the study spends, at most the share `reuse` goes to trials on cached weights.
   Seconds are those measured in this study (medians, for trials that still run); the share is of seconds and
   not of trials, so the cheaper the later stages are, the more of them are tried.
2. A checkpoint qualifies when a trial that kept every limit was scored from it, it is one of the BEST
   checkpoints by their best val_bpb, its weights are in the cache for the code, data and machine of now, and
   fewer than PATIENCE trials in a row failed to better it. Of those the least tried is taken, then the best.
3. Its parameters up to the training are fixed, the later ones are the sampler's (what Optuna's
   PartialFixedSampler does). A proposal counts only if its training has the checkpoint's key; limits,
   contradictions and duplicates are examined as always. Is nothing new left there, the trial trains.

Parameters belong to the stage of their technique in the catalogue, or of the trainer's setting.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from optuna.trial import FrozenTrial, TrialState

from search.common.attributes import FROM_CHECKPOINT, STAGE_REUSE
from search.space.native import SearchSpace
from search.space.stages import is_later, training_key
from search.study.constraints import feasible
from techniques.config import Resolved

BEST = 3
PATIENCE = 8


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

    space: SearchSpace
    share: float
    cached: Callable[[Resolved], bool]
    _seen: set[int] = field(default_factory=set[int])
    _found: dict[str, Checkpoint] = field(default_factory=dict[str, Checkpoint])

    def __post_init__(self) -> None:
        self.later = {name for name in self.space.distributions if is_later(self.space, name)}

    def choose(self, trials: Sequence[FrozenTrial]) -> tuple[str, dict[str, Any]] | None:
        """(training key, parameters to fix) of the checkpoint to go on from; None: train something new."""
        if not self.later or not self._affordable(trials):
            return None
        self._learn(trials)
        running = [t.user_attrs.get(FROM_CHECKPOINT) for t in trials if not t.state.is_finished()]
        ranked = sorted(self._found.items(), key=lambda item: item[1].best)[:BEST]
        open_ = [
            (found.tried + running.count(key), found.best, key)
            for key, found in ranked
            if found.in_vain + running.count(key) < PATIENCE and self.cached(found.resolved)
        ]
        if not open_:
            return None
        key = min(open_)[2]
        return key, dict(self._found[key].params)

    def _affordable(self, trials: Sequence[FrozenTrial]) -> bool:
        """Rule 1, with one more trial on cached weights and with what runs now."""
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
        on_cached = sum(spent[True]) + cheap_s * (1 + sum(running))
        whole = sum(spent[False]) + new_s * (len(running) - sum(running)) + on_cached
        return cheap_s < new_s and on_cached <= self.share * whole

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
