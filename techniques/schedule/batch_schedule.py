"""B(p) = B·r^(1 − i/n) tokens a step in the i-th of n early stages, B = train_batch_tokens from `full_at` on.

Small batches first: more steps while the gradient is large against its noise. r = `start_frac`; the stages
share [0, full_at) evenly, so that the batch grows by the same factor at each border; sizes are rounded to
whole sequences in every micro-batch. Each border is a phase: another graph, run in the warm-up. `lr_power` q
multiplies every learning rate by (B(p)/B)^q: 0 leaves them, 0.5 is the square-root rule, 1 the linear one.
Source: McCandlish et al., arXiv:1812.06162 (noise scale); D7 of the field: 786k tokens beat 524k by 0.004
(#375); small batches gained on 2 GPUs (-0.020) and lost on 8 (+0.012, #2005), so judge it at the full world
size. Cost: more steps a second early on; under a step budget it trains on fewer tokens, which `train_tokens`
of the result counts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from techniques.base import Batch, Float, Int, Technique, setting


class BatchSchedule(Technique):
    """Smaller batches at first."""

    name = "batch_schedule"
    reference = "arXiv:1812.06162; PR #375, #2005"
    after = ("seq_schedule",)
    space = {
        "start_frac": Float(0.125, 0.75, log=True),
        "num_stages": Int(1, 3),
        "full_at": Float(0.1, 0.8),
        "lr_power": Float(0.0, 1.0),
    }
    smoke = {"start_frac": 0.5, "full_at": 0.4}

    @dataclass(frozen=True)
    class Config:
        start_frac: float = setting(0.5, "first batch, as a share of train_batch_tokens", low=1e-4, high=1.0)
        num_stages: int = setting(1, "stages before the full batch", low=1, high=16)
        full_at: float = setting(0.4, "progress from which the batch is full", low=0.01, high=0.95)
        lr_power: float = setting(0.5, "learning rates × (batch / full batch)^this", low=0.0, high=2.0)

    def borders(self) -> list[float]:
        """Progress at which each stage begins, the last one full."""
        n = self.config.num_stages
        return [round(i * self.config.full_at / n, 9) for i in range(n + 1)]

    def phases(self) -> tuple[float, ...]:
        return tuple(self.borders()[1:])

    def share(self, progress: float) -> float:
        """Of the full batch."""
        stage = sum(at <= progress for at in self.borders()) - 1
        return self.config.start_frac ** (1.0 - stage / self.config.num_stages)

    def batch(self, batch: Batch, phase: float) -> Batch:
        return batch._replace(tokens=round(batch.tokens * self.share(phase)))

    def hyper_at(self, hyper: Any, progress: float) -> Any:
        factor = self.share(progress) ** self.config.lr_power
        return dataclasses.replace(hyper, lr_mult=hyper.lr_mult * factor)
