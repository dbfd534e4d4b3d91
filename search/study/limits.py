"""Limits: what a configuration may cost, in bytes and seconds, or in baseline runs of this machine.

One laptop is not another: `train_baselines = 1.5` allows one and a half times the seconds that the study's
own starting point takes here, measured once before the first trial and kept with the study. The challenge's
limits are seconds on its own machine: `train_seconds = 600`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from techniques.base import setting

PAIRS = {"train_seconds": "train_baselines", "eval_seconds": "eval_baselines"}


@dataclass(frozen=True)
class Limits:
    """What a configuration may cost. Seconds that are not measured yet are infinite."""

    artifact_bytes: int = setting(16_000_000, "code and packed model, bytes (decimal)", low=1)
    train_seconds: float = setting(math.inf, "timed training, s", low=1e-3)
    eval_seconds: float = setting(math.inf, "timed evaluation, s", low=1e-3)
    train_baselines: float = setting(0.0, "timed training, in baseline runs of this machine", low=0.0)
    eval_baselines: float = setting(0.0, "timed evaluation, in baseline runs of this machine", low=0.0)

    @property
    def relative(self) -> bool:
        return bool(self.train_baselines or self.eval_baselines)

    def declared(self) -> dict[str, float]:
        """What the study's file says, measured or not: part of the study's identity."""
        kept = dataclasses.asdict(self)
        for seconds, baselines in PAIRS.items():
            kept.pop(seconds if kept[baselines] else baselines)
        return kept

    def measured(self, baseline: Mapping[str, Any]) -> Limits:
        """These limits in seconds, given the baseline's result (train_seconds, eval_seconds)."""
        seconds = {s: getattr(self, b) * float(baseline[s]) for s, b in PAIRS.items() if getattr(self, b)}
        return dataclasses.replace(self, **seconds)

    def timeout_seconds(self) -> float:
        """Wall seconds after which a trial's processes are killed."""
        both = self.train_seconds + self.eval_seconds
        return 3.0 * both + 120.0 if math.isfinite(both) else 3600.0


def check_given(table: Mapping[str, Any]) -> None:
    """ValueError unless [limits] gives each of the three limits once."""
    if "artifact_bytes" not in table:
        raise ValueError("[limits] must give all three limits, but `artifact_bytes` is missing. Add it.")
    for seconds, baselines in PAIRS.items():
        given = [key for key in (seconds, baselines) if key in table]
        if len(given) != 1:
            found = "both are there. Keep one" if given else f"`{seconds}` is missing. Add one of the two"
            raise ValueError(
                f"[limits] must give all three limits: `{seconds}`, or `{baselines}` (in baseline runs of "
                f"this machine), but {found}."
            )
