"""ē ← β·ē + (1−β)·θ after every step, from ē = the first weights, uncorrected; ē is what is exported (EMA).

Source: β 0.997 in PR #287, #414, #549, #569, #1019 (−0.003 bpb against SWA in #375, −0.0006 in #414); 0.9965
from #1493.
Cost: a float32 copy of the parameters and one fused pass over them a step. The horizon 1/(1−β), 333 steps at
0.997, must be well below the run's steps, else the first weights survive in ē: short runs need a larger 1−β.
Set `one_minus_decay` (what a search samples, on a log scale) or `decay` (what EMA_DECAY says); the resolved
settings hold the former only, so that both ways of saying it are one run. What we saw: studies/LOG.md,
"own_text, 200 trials on twelve public-domain books".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from techniques.base import Float, Technique, setting

EMA_ONE_MINUS_DECAY = 0.003  # PR #287


class EmaAverager:
    """The running average of a model's parameters, float32, on their device."""

    def __init__(self, model: Any, one_minus_decay: float):
        self.one_minus_decay = one_minus_decay
        self.facts: dict[str, Any] = {}
        with torch.no_grad():
            self.average = {n: p.detach().float().clone() for n, p in model.named_parameters()}

    def update(self, model: Any, lr_scale: float = 1.0) -> None:
        with torch.no_grad():
            params = [p.detach().float() for p in model.parameters()]
            torch._foreach_lerp_(list(self.average.values()), params, self.one_minus_decay)  # type: ignore[attr-defined]

    def weights(self) -> dict[str, torch.Tensor]:
        """name -> float32 tensor; the live average, to be copied by who keeps it."""
        return dict(self.average)


class Ema(Technique):
    """Exponential moving average of the weights."""

    name = "ema"
    reference = "PR #287, #375, #414, #1493"
    stage = "average"
    space = {"one_minus_decay": Float(1e-4, 5e-2, log=True)}
    env = {"EMA_DECAY": "decay"}
    smoke = {"one_minus_decay": 0.2}

    @dataclass(frozen=True)
    class Config:
        one_minus_decay: float = setting(
            EMA_ONE_MINUS_DECAY, "1 − β, the weight of the newest step", low=1e-6, high=1.0
        )
        decay: float = setting(1.0, "β; 1: as one_minus_decay says", low=1e-6, high=1.0)

        def __post_init__(self):
            if self.decay == 1.0:
                return
            if self.one_minus_decay != EMA_ONE_MINUS_DECAY:
                raise ValueError(
                    f"`ema.decay` and `ema.one_minus_decay` say the same, but got {self.decay} and "
                    f"{self.one_minus_decay}. Set one of them."
                )
            object.__setattr__(self, "one_minus_decay", round(1.0 - self.decay, 12))
            object.__setattr__(self, "decay", 1.0)

    def averager(self, model: Any, num_steps: int):
        return EmaAverager(model, self.config.one_minus_decay)
