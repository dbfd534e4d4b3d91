"""mean of the snapshots θ_t, every `every` steps while the learning-rate scale is below `start_scale` (SWA).

`combine = "swa"` exports that mean; "blend" exports w·mean + (1 − w)·EMA, the EMA of every step.

Source: "tight" SWA, every 50 steps below 0.2, stands in PR #414, #518, #549, #569 and #1019, which collect
the snapshots and then export the EMA alone: there the flag does nothing, and their presets leave it off. A
used SWA gave -0.0006 BPB (10-layer int5 record, start_frac 0.4), blended into EMA +0.0003 (#2049). Cost: a
float64 sum of the parameters, with "blend" a float32 average too. SWA spoils late QAT's alignment with the
grid (#989). Conflicts: ema is the same slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from techniques.base import Choice, Float, Int, Technique, setting


class SwaAverager:
    """Sums snapshots; before the first one its weights are the model's own, blended or not: a start that
    never comes then shows in the audit, instead of an EMA under another name."""

    def __init__(self, model: Any, config: Any):
        self.config, self.model, self.steps, self.snapshots = config, model, 0, 0
        with torch.no_grad():
            params = list(model.parameters())
            self.total = [torch.zeros_like(p, dtype=torch.float64) for p in params]
            self.ema = [p.detach().float().clone() for p in params] if config.combine == "blend" else []

    def update(self, model: Any, lr_scale: float = 1.0) -> None:
        self.steps += 1
        with torch.no_grad():
            if self.ema:
                params = [p.detach().float() for p in model.parameters()]
                torch._foreach_lerp_(self.ema, params, self.config.one_minus_decay)  # type: ignore[attr-defined]
            if lr_scale < self.config.start_scale and self.steps % self.config.every == 0:
                self.snapshots += 1
                for total, p in zip(self.total, model.parameters(), strict=True):
                    total += p.detach()

    @property
    def facts(self) -> dict[str, int]:
        return {"snapshots": self.snapshots}

    def weights(self) -> dict[str, torch.Tensor]:
        """name -> float32 tensor."""
        named = list(self.model.named_parameters())
        if not self.snapshots:
            return {name: p.detach().float() for name, p in named}
        means = [(total / self.snapshots).float() for total in self.total]
        if self.ema:
            means = [e.lerp(m, self.config.swa_weight) for e, m in zip(self.ema, means, strict=True)]
        return {name: mean for (name, _), mean in zip(named, means, strict=True)}


class Swa(Technique):
    """Stochastic weight averaging over the end of the warm-down."""

    name = "swa"
    reference = "PR #414 (collected, unused), #989, #2049; arXiv:1803.05407"
    stage = "average"
    space = {
        "every": Int(10, 200, log=True),
        "start_scale": Float(0.05, 0.6),
        "combine": Choice(("swa", "blend")),
        "swa_weight": Float(0.1, 0.9),
        "one_minus_decay": Float(1e-4, 5e-2, log=True),
    }
    env = {"SWA_ENABLED": "on", "SWA_EVERY": "every", "SWA_START_FRAC": "start_scale"}
    smoke = {"every": 2, "start_scale": 0.9}

    @dataclass(frozen=True)
    class Config:
        every: int = setting(50, "steps between snapshots", low=1, high=100_000)
        start_scale: float = setting(
            0.2, "snapshots while the learning-rate scale is below this", low=0.0, high=1.01
        )
        combine: str = setting("swa", "what is exported: swa, or blend with an EMA", choices=("swa", "blend"))
        swa_weight: float = setting(0.5, "share of the snapshots' mean in a blend", low=0.0, high=1.0)
        one_minus_decay: float = setting(0.003, "1 − β of the blend's EMA", low=1e-6, high=1.0)

    def averager(self, model: Any, num_steps: int):
        return SwaAverager(model, self.config)
