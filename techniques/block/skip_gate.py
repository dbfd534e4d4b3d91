"""x ← σ(γ_j)⊙x + (1−σ(γ_j))⊙(w_j⊙skip_j): the j-th U-Net skip replaces a share of the stream.

Source: PR #1089, #1218, #1394, #1855. γ_j [D] = 0: half and half at first, so the stream enters the second
half at half the scale of the plain form x + w_j⊙skip_j. Skips are taken back last in, first out; with
depth_recurrence there are more of them, and a gate for each. No skips at all: the trainer's `unet_skips` = 0.
Cost: D parameters a skip. Identity at init: no.
"""

from __future__ import annotations

import torch
from torch import nn

from techniques.base import Cost, Shape, Technique, TensorSpec
from trainer.parameters import parameter


class SkipGates(nn.Module):
    """x, skip [B,T,D], the skip's weight [D], its number -> x."""

    def __init__(self, num_skips: int, model_dim: int):
        super().__init__()
        self.gates = parameter(torch.zeros(num_skips, model_dim), "scalar")

    def forward(self, x: torch.Tensor, skip: torch.Tensor, weight: torch.Tensor, j: int) -> torch.Tensor:
        share = torch.sigmoid(self.gates[j]).to(x.dtype)
        return share * x + (1 - share) * (weight.to(x.dtype) * skip)


class SkipGate(Technique):
    """A learned blend of the stream and each skip."""

    name = "skip_gate"
    reference = "PR #1089, #1218, #1394, #1855"
    env = {"SKIP_GATES_ENABLED": "on"}

    def check(self, shape: Shape) -> None:
        if not shape.num_skips:
            raise ValueError(
                "`skip_gate` needs a skip, but this model has none: set unet_skips to 1 and use two layers "
                "or more, or turn skip_gate off."
            )

    def cost(self, shape: Shape) -> Cost:
        gates = TensorSpec("scalar", (shape.num_skips, shape.model_dim))
        return Cost((gates,), flops_per_token=3.0 * gates.numel)

    def skip(self, shape: Shape):
        return SkipGates(shape.num_skips, shape.model_dim)
