"""n_l ← n_l / √(l+1) for both normed inputs of block l = 0, 1, …: deeper blocks read, and so write, less.

Source: PR #315 (−0.0023 bpb together with partial RoPE), #414 and all 11-layer records since; fixed, never
learned.
Cost: no parameters. Identity at init: no. What we saw: studies/LOG.md, "own_text, 200 trials on twelve
public-domain books" and "laptop, 200 trials on the embedded corpus".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from techniques.base import Cost, Shape, Technique


class LnScaleBy(nn.Module):
    """n [B,T,D] -> factor·n; the factor is a constant of the graph."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, n: torch.Tensor, *_: Any) -> torch.Tensor:
        return n * self.factor


class LnScale(Technique):
    """A fixed depth-dependent scale behind each block's norms."""

    name = "ln_scale"
    reference = "PR #315, #414, #549, #1019, #1855"
    positionwise = True
    env = {"LN_SCALE": "on"}

    def check(self, shape: Shape) -> None:
        if shape.num_layers < 2:
            raise ValueError(
                f"`ln_scale` changes layers from the second on, but `num_layers` is {shape.num_layers}. "
                f"Use two layers or more, or turn ln_scale off."
            )

    def cost(self, shape: Shape) -> Cost:
        return Cost(flops_per_token=2.0 * (shape.num_layers - 1) * shape.model_dim)

    def norm(self, shape: Shape, layer: int):
        return LnScaleBy((layer + 1) ** -0.5) if layer else None
