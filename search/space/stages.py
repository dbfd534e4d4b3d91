"""Which parameters a stage reads, and which configurations train the same weights."""

from __future__ import annotations

from search.space.native import SearchSpace
from search.study.domains import BASELINE
from techniques.base import STAGES
from techniques.config import TRAINER_FIELDS, Resolved, stage_keys

TRAINED = "average"  # the stage whose result a checkpoint is


def training_key(resolved: Resolved) -> str:
    """Equal keys train equal weights on one machine with one code and one data."""
    return stage_keys(resolved, {}, "")[TRAINED]


def is_later(space: SearchSpace, name: str) -> bool:
    """Whether a parameter is read only behind the training."""

    def rank(technique: str) -> int:
        return STAGES.index(space.known[technique].stage)

    last = STAGES.index(TRAINED)
    if name in space.slots:
        return all(rank(t) > last for t in space.slots[name] if t != BASELINE)
    if name in TRAINER_FIELDS:
        stage = TRAINER_FIELDS[name].metadata["stage"]
        return stage in STAGES and STAGES.index(stage) > last
    return rank(name.partition(".")[0]) > last
