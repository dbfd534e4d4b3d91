"""Which parameters a stage reads, and which configurations train the same weights."""

from __future__ import annotations

from search.space.space import Space
from techniques.base import STAGES
from techniques.config import Resolved, stage_keys

TRAINED = "average"  # the stage whose result a checkpoint is


def training_key(resolved: Resolved) -> str:
    """Equal keys train equal weights on one machine with one code and one data."""
    return stage_keys(resolved, {}, "")[TRAINED]


def is_later(space: Space, name: str) -> bool:
    """Whether a parameter is read only behind the training."""
    stage = space.stage_of(name)
    return stage in STAGES and STAGES.index(stage) > STAGES.index(TRAINED)
