"""v_l ← v_l + σ(α_l)·v_0 for l ≥ 1, v_0 = Wv⁽⁰⁾n_0: every layer's values hold layer 0's (VRL, ResFormer).

`mode` names three published variants (one technique), g = σ(α), α_l one scalar a layer:
- `add`     v + g·v_0. #569 (α = 0); #1019 has it, off.
- `lambda`  λ_0·v_0 + λ_1·v, two free scalars a layer that start at (g, 1−g). #413 and #549 (off): (0.5, 0.5).
- `interp`  (1−g)·v + g·v_0. #1313 and forks of #569 (α = −1.5).
v_0 is the raw projection, before value_embedding; v is what value_embedding left: xsa removes the mixture.
Cost: L−1 scalars, or 2(L−1). Identity at init: no (α → −∞ is, but for `lambda`). Forks of #569 saw it raise
the artifact's bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from techniques.base import Choice, Cost, Float, Shape, Technique, TensorSpec, setting
from trainer.parameters import parameter

VALUE_RESIDUAL_MODES = ("add", "lambda", "interp")


def keep_first_values(v: torch.Tensor, ctx: dict[str, torch.Tensor]) -> torch.Tensor:
    """Layer 0: v as it is; its raw projection becomes v_0 (of the first pass, where the layer is looped)."""
    if "value_residual" not in ctx:
        ctx["value_residual"] = ctx["values"]
    return v


class ValueResidualMix(nn.Module):
    """v [B,T,K,Dh] -> v mixed with ctx["value_residual"] of the same shape."""

    def __init__(self, mode: str, alpha: float):
        super().__init__()
        self.mode = mode
        share = torch.sigmoid(torch.tensor(alpha))
        first = torch.stack((share, 1 - share)) if mode == "lambda" else torch.tensor(alpha)
        self.weight = parameter(first, "scalar")

    def forward(self, v: torch.Tensor, ctx: dict[str, torch.Tensor]) -> torch.Tensor:
        v0, weight = ctx["value_residual"], self.weight
        if self.mode == "lambda":
            return weight[0].to(v.dtype) * v0 + weight[1].to(v.dtype) * v
        share = torch.sigmoid(weight).to(v.dtype)
        return v + share * v0 if self.mode == "add" else (1 - share) * v + share * v0


class ValueResidual(Technique):
    """Layer 0's values in the values of every later layer."""

    name = "value_residual"
    reference = "arXiv:2410.17897 (ResFormer); PR #413, #549, #569, #1313"
    after = ("value_embedding",)
    space = {"mode": Choice(VALUE_RESIDUAL_MODES), "alpha_init": Float(-3.0, 1.0)}
    env = {"VRL_ENABLED": "on", "VRL_MODE": "mode", "VRL_ALPHA_INIT": "alpha_init"}

    @dataclass(frozen=True)
    class Config:
        mode: str = setting("add", "which variant", choices=VALUE_RESIDUAL_MODES)
        alpha_init: float = setting(0.0, "α at first, before the logistic function", low=-20.0, high=20.0)

    def check(self, shape: Shape) -> None:
        if shape.num_layers < 2:
            raise ValueError(
                f"`value_residual` enters layers from the second on, but `num_layers` is {shape.num_layers}. "
                f"Use two layers or more, or turn value_residual off."
            )

    def cost(self, shape: Shape) -> Cost:
        sides, layers = ((2,) if self.config.mode == "lambda" else ()), shape.num_layers - 1
        return Cost((TensorSpec("scalar", sides),) * layers, flops_per_token=2.0 * layers * shape.kv_dim)

    def values(self, shape: Shape, layer: int):
        return ValueResidualMix(self.config.mode, self.config.alpha_init) if layer else keep_first_values
