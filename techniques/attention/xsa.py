"""y ← y − s_h·(y·v̂) v̂ with v̂ = v/‖v‖: attention output with less of its component along the token's own value
(XSA).

`mode` says what s_h is, one number a (layer, head):
- `plain`     1. Exclusive self attention, arXiv:2603.09078; last 3 layers in PR #265, last 4 in #414/#549,
  all in #1019/#1263.
- `gate`      tanh(α_h), α = 0: nothing is taken off at first. #2018, #2118; modded-nanogpt #264, whose
  table of runs (29 April 2026) has p = 0.0014 for it.
- `residual`  1 + tanh(α_h), α = 0: plain XSA at first. A candidate behind #2135, without a result of its
  own.
On another stack a learned gate of XSA won 0.003 before quantisation and lost 0.0015 behind it (#1125). Cost:
one dot product and one axpy per head and token; H scalars a layer for `gate` and `residual`. Identity at
init: only `gate`, hence declared as no. What we saw: studies/LOG.md, "own_text, 200 trials on twelve
public-domain books" and "laptop, 200 trials on the embedded corpus".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from techniques.base import Choice, Cost, Int, Shape, Technique, TensorSpec, setting
from trainer.parameters import parameter

XSA_MODES = ("plain", "gate", "residual")


def own_value(y: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """y [B,T,H,Dh] as [B,T,K,H/K,Dh], and its projection on v [B,T,K,Dh]; query head h belongs to key/value
    head h // (H/K)."""
    b, t, h, d = y.shape
    k = v.size(2)
    unit = F.normalize(v, dim=-1, eps=1e-12).unsqueeze(3)  # [B,T,K,1,Dh]
    grouped = y.view(b, t, k, h // k, d)
    return grouped, (grouped * unit).sum(-1, keepdim=True) * unit


def remove_own_value(y: torch.Tensor, v: torch.Tensor, *_: Any) -> torch.Tensor:
    """y [B,T,H,Dh] less its projection on v [B,T,K,Dh]."""
    grouped, along = own_value(y, v)
    return (grouped - along).view_as(y)


class GatedOwnValue(nn.Module):
    """y less first + tanh(α_h) times its projection on v."""

    def __init__(self, num_heads: int, first: float):
        super().__init__()
        self.first = first
        self.alpha = parameter(torch.zeros(num_heads), "scalar")

    def forward(self, y: torch.Tensor, v: torch.Tensor, *_: Any) -> torch.Tensor:
        grouped, along = own_value(y, v)
        share = (self.first + torch.tanh(self.alpha)).to(y.dtype).view(v.size(2), -1, 1)  # [K,H/K,1]
        return (grouped - share * along).view_as(y)


class Xsa(Technique):
    """Exclusive self attention in the last layers."""

    name = "xsa"
    reference = "arXiv:2603.09078; PR #265, #414, #1019; gated: #2018, #2118, modded-nanogpt #264"
    positionwise = True
    space = {"last_n": Int(1, "num_layers"), "mode": Choice(XSA_MODES)}
    env = {"XSA_LAST_N": "last_n"}
    smoke = {"last_n": 1}

    @dataclass(frozen=True)
    class Config:
        last_n: int = setting(4, "layers, counted from the last", low=1, high=64)
        mode: str = setting("plain", "how much of the component is taken off", choices=XSA_MODES)

    def check(self, shape: Shape) -> None:
        if self.config.last_n > shape.num_layers:
            raise ValueError(
                f"`xsa.last_n` must be at most num_layers, but got {self.config.last_n} and "
                f"{shape.num_layers}. Use {shape.num_layers} for all layers."
            )

    def cost(self, shape: Shape) -> Cost:
        c = self.config
        gates = () if c.mode == "plain" else (TensorSpec("scalar", (shape.num_heads,)),) * c.last_n
        return Cost(gates, flops_per_token=4.0 * c.last_n * shape.model_dim)

    def attn_out(self, shape: Shape, layer: int):
        c = self.config
        if layer < shape.num_layers - c.last_n:
            return None
        if c.mode == "plain":
            return remove_own_value
        return GatedOwnValue(shape.num_heads, float(c.mode == "residual"))
