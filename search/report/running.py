"""What is known of a running trial: stage, step and early BPB, from its own files where it runs on this
machine, else from what it reported; and when it will end, by what was predicted, what it has done, and how
long others took beside their predictions.
"""

from __future__ import annotations

import os
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from optuna.trial import FrozenTrial, TrialState

from search.common.attributes import (
    PREFLIGHT,
    REPLICATE,
    REPORTS,
    STAGE_REUSE,
    TECHNIQUES,
    WORKER,
)
from search.common.paths import Folders
from search.trainers.files import Tail, as_object

START_S = 4.0  # of a trainer, before it works
NEWEST = 10  # finished trials that tell the pace
ENOUGH = 0.1  # share of a training from which its own pace counts
# what a trainer leaves when a stage is done, the last first, and what comes then
STAGES = (("result.json", "store"), ("stage_pack.json", "evaluate"), ("stage_average.json", "quantize"))


@dataclass(frozen=True)
class Running:
    """A running trial's row; None where nothing is known."""

    number: int
    stage: str
    steps: str
    bpb: float | None  # bits per byte, the last early one
    elapsed_s: float
    left_s: float | None  # until its predicted end; negative: it is late
    told: str  # what it tries


@dataclass
class Sight:
    """What was read of one trial so far."""

    folder: Path | None = None  # None: it runs on another machine, or nobody said where
    tail: Tail | None = None
    steps: int = 0  # in all; 0: not known
    step: int = 0
    progress: float = 0.0
    train_s: float = 0.0  # timed, at the last record
    bpb: float | None = None
    stage: str = "start"

    def read(self) -> None:
        """What is new in its files."""
        if self.folder is None:
            return
        self.tail = self.tail or Tail(self.folder / "metrics.jsonl")
        for record in self.tail.records():
            self.take(record)
            self.stage = "train"
        self.stage = next((s for name, s in STAGES if (self.folder / name).exists()), self.stage)
        if not self.steps and self.step:
            self.steps = steps_of(self.folder / "resolved.json")

    def take(self, record: Mapping[str, Any]) -> None:
        self.step = int(record.get("step") or self.step)
        self.train_s = float(record.get("elapsed_s") or self.train_s)
        if progress := float(record.get("progress") or 0.0):
            self.progress = progress
            self.bpb = record.get("val_bpb") or self.bpb
        if self.steps:
            self.progress = max(self.progress, self.step / self.steps)

    @property
    def text(self) -> str:
        """25/100; 25 (40 %) where only time ends a training."""
        if self.step and self.steps:
            return f"{self.step:,}/{self.steps:,}"
        share = f"{self.progress:.0%}"
        return f"{self.step:,} ({share})" if self.step else share if self.progress else ""


def steps_of(path: Path) -> int:
    """Of a training that so many steps end, and no clock; else 0."""
    try:
        values = cast("Mapping[str, Any]", (as_object(path.read_bytes()) or {}).get("values") or {})
    except OSError:
        return 0
    return 0 if values.get("max_wallclock_seconds") else int(values.get("iterations") or 0)


@dataclass
class Watch:
    """Follows the running trials of a study. `folders`: where those of this machine write; None: nowhere."""

    folders: Folders | None = None
    sights: dict[int, Sight] = field(default_factory=dict[int, Sight])
    paces: deque[float] = field(default_factory=lambda: deque[float](maxlen=NEWEST))  # over the predicted
    lengths: deque[float] = field(default_factory=lambda: deque[float](maxlen=NEWEST))  # s

    def ended(self, trial: FrozenTrial) -> None:
        """A finished trial tells the pace of those to come."""
        self.sights.pop(trial.number, None)
        began = trial.datetime_start
        end = trial.datetime_complete
        took_over = cast("Mapping[str, Any]", trial.user_attrs.get(STAGE_REUSE) or {}).get("reused")
        if trial.state == TrialState.COMPLETE and began and end and not took_over:
            length_s = (end - began).total_seconds()
            self.lengths.append(length_s)
            if predicted := expected_s(trial.user_attrs):
                self.paces.append(length_s / predicted)

    def row(self, trial: FrozenTrial) -> Running:
        """A running trial as it is now."""
        sight = self.sights.setdefault(trial.number, Sight())
        sight.folder = sight.folder or self._folder(
            trial
        )  # its worker says who it is a moment after it asked
        if sight.folder is None and (reports := trial.user_attrs.get(REPORTS)):
            sight.stage = "train"
            (sight.progress, sight.bpb, *_) = reports[-1]
        sight.read()
        began = trial.datetime_start
        elapsed_s = max(0.0, (datetime.now() - began).total_seconds()) if began else 0.0
        whole_s = self._whole_s(trial.user_attrs, sight)
        on = cast("list[str]", trial.user_attrs.get(TECHNIQUES, []))
        again = trial.user_attrs.get(REPLICATE)
        told = f"trial #{again['of']} again, seed {again['seed']}" if again else ", ".join(on)
        left_s = None if whole_s is None else whole_s - elapsed_s
        if left_s is not None and sight.stage == "train" and sight.progress >= ENOUGH:
            left_s = max(
                left_s, (elapsed_s - START_S) * (1.0 / sight.progress - 1.0)
            )  # it is late, and how far
        return Running(trial.number, sight.stage, sight.text, sight.bpb, elapsed_s, left_s, told)

    def _folder(self, trial: FrozenTrial) -> Path | None:
        here = str(trial.user_attrs.get(WORKER, "")).partition(":")[0] == os.uname().nodename
        return self.folders.trial(trial.number) if self.folders is not None and here else None

    def _whole_s(self, attrs: Mapping[str, Any], sight: Sight) -> float | None:
        """How long it will have taken."""
        train_s = sight.train_s / sight.progress if sight.progress >= ENOUGH and sight.train_s else None
        if sight.stage not in ("start", "train") and not sight.step:
            train_s = 0.0  # it took over a finished training
        if predicted := expected_s(attrs, train_s=train_s):
            return predicted * (statistics.median(self.paces) if self.paces else 1.0)
        return max(train_s or 0.0, statistics.median(self.lengths)) if self.lengths else train_s


def expected_s(attrs: Mapping[str, Any], *, train_s: float | None = None) -> float:
    """Seconds of a trial as it was predicted; `train_s`: of its training, once that shows. 0: nobody said."""
    predicted = cast("Mapping[str, float]", attrs.get(PREFLIGHT) or {})
    if "eval_seconds" not in predicted:
        return 0.0
    train_s = predicted.get("train_seconds", 0.0) if train_s is None else train_s
    return START_S + train_s + predicted["eval_seconds"]
