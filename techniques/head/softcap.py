"""Logits without a cap, or c₊·tanh(z/c₊) for z > 0 and c₋·tanh(z/c₋) below: other than c·tanh(z/c).

c itself is the trainer's `logit_softcap`. `mode`:
- `off`   logits = z.
- `asym`  c₊ and c₋ are learned and start at c: equal to the baseline there. AsymLogit, #1923 (≈ −0.001 with
  AWQ-lite in #1945), where they exist on the evaluation path only and learn in global TTT; here the one
  forward has them in training too.
Cost: 2 scalars (asym). Identity at init: only `asym`, hence declared as no.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from techniques.base import Choice, Cost, Shape, Technique, TensorSpec, setting
from trainer.parameters import parameter

SOFTCAP_MODES = ("off", "asym")


def uncapped(z: torch.Tensor) -> torch.Tensor:
    """z in float32."""
    return z.float()


class AsymSoftcap(nn.Module):
    """z [..,V] -> float32, capped at c₊ above and −c₋ below."""

    def __init__(self, c: float):
        super().__init__()
        self.above, self.below = parameter(torch.tensor(c), "scalar"), parameter(torch.tensor(c), "scalar")

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        c, z = torch.where(z > 0, self.above, self.below), z.float()
        return c * torch.tanh(z / c)


class Softcap(Technique):
    """Another cap on the logits than c·tanh(z/c)."""

    name = "softcap"
    reference = "PR #1923, #1945 (asym)"
    space = {"mode": Choice(SOFTCAP_MODES)}
    smoke = {"mode": "asym"}

    @dataclass(frozen=True)
    class Config:
        mode: str = setting("asym", "which variant", choices=SOFTCAP_MODES)

    def cost(self, shape: Shape) -> Cost:
        scalars = (TensorSpec("scalar", ()),) * 2 if self.config.mode == "asym" else ()
        return Cost(scalars, flops_per_token=float(shape.vocab_size))

    def cap(self, shape: Shape):
        return AsymSoftcap(shape.logit_softcap) if self.config.mode == "asym" else uncapped
