"""y_h ← g_h(n)·y_h, one gate a head and token, from the block's normed input n, before the output projection.

`mode` names four published variants (one technique):
- `bias`    σ(w_h·n + b_h), w [H,D] = 0, b = 4: 0.982 at first. #549 (flag, off).
- `out`     2σ(w_h·n[:window]), w [H,window] = 0: exactly 1 at first. AttnOutGate, #1667.
- `gated`   σ(w_h·n), w [H,D] ~ N(0, 0.005²): about 0.5 at first. #1736.
- `sparse`  σ(κ·w_h·n[:window]), w = 0: 0.5 at first. SparseAttnGate, #1787 (κ = 1), #1855 (κ = 0.5).
`source = "q"` lets them read the token's query projection, before its norm and its rotation, in place of n
(#1667's GATE_ATTN_SRC; its record reads the block's input; #2005 gives each head its own query, here every
head reads the same dims). The weights have role `gate`: Adam at scalar_lr, stored as float16 unless a
technique quantises them. Cost: H·window or H·D weights a layer, and H biases (11 layers, 8 heads, window 12:
1,056). Identity at init: only `out`, hence declared as no. Skipping the gate in a second forward path once
cost 0.8 bpb (#1787); here there is one forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from techniques.base import Choice, Cost, Shape, Technique, TensorSpec, setting
from trainer.parameters import parameter

ATTENTION_GATE_MODES = ("bias", "out", "gated", "sparse")
WINDOWED_GATES = ("out", "sparse")
GATE_SOURCES = ("input", "q")


class HeadGate(nn.Module):
    """y [B,T,H,Dh], v, n [B,T,D], ctx -> gated y."""

    def __init__(self, num_heads: int, width: int, mode: str, kappa: float, *, of_queries: bool = False):
        super().__init__()
        self.of_queries = of_queries
        self.width, self.factor = width, 2.0 if mode == "out" else 1.0
        self.kappa = kappa if mode == "sparse" else 1.0
        weight = torch.randn(num_heads, width) * 0.005 if mode == "gated" else torch.zeros(num_heads, width)
        self.weight = parameter(weight, "gate")
        self.bias = parameter(torch.full((num_heads,), 4.0), "scalar") if mode == "bias" else None

    def forward(self, y: torch.Tensor, _v: torch.Tensor, n: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        n = ctx["queries"].flatten(2) if self.of_queries else n
        z = self.kappa * F.linear(n[..., : self.width], self.weight.to(n.dtype))  # [B,T,H]
        if self.bias is not None:
            z = z + self.bias.to(n.dtype)
        return y * (self.factor * torch.sigmoid(z)).unsqueeze(-1)


class AttentionGate(Technique):
    """A gate on every head's output, read from the token that attends."""

    name = "attention_gate"
    reference = "PR #549 (bias), #1667 (out), #1736 (gated), #1787 and #1855 (sparse)"
    positionwise = True
    after = ("xsa",)
    space = {
        "mode": Choice(ATTENTION_GATE_MODES),
        "source": Choice(("input", "q")),
    }  # not window and κ: two modes of four never read them
    smoke = {"mode": "sparse"}

    @dataclass(frozen=True)
    class Config:
        mode: str = setting("out", "which variant", choices=ATTENTION_GATE_MODES)
        window: int = setting(12, "first dims of n that out and sparse read", low=1, high=8192)
        kappa: float = setting(0.5, "κ, factor inside sparse's logistic function", low=0.01, high=10.0)
        source: str = setting("input", "what it reads: the block's input, or q", choices=("input", "q"))

    def width(self, shape: Shape) -> int:
        """Inputs of a head's gate."""
        return self.config.window if self.config.mode in WINDOWED_GATES else shape.model_dim

    def check(self, shape: Shape) -> None:
        if self.width(shape) > shape.model_dim:
            raise ValueError(
                f"`attention_gate.window` must be at most model_dim, but got {self.config.window} and "
                f"{shape.model_dim}. Use {min(12, shape.model_dim)}."
            )

    def cost(self, shape: Shape) -> Cost:
        width = self.width(shape)
        one = [TensorSpec("gate", (shape.num_heads, width))]
        if self.config.mode == "bias":
            one.append(TensorSpec("scalar", (shape.num_heads,)))
        flops = 2.0 * shape.num_heads * width + shape.model_dim
        return Cost(tuple(one) * shape.num_layers, flops_per_token=flops * shape.num_layers)

    def attn_out(self, shape: Shape, layer: int):
        c = self.config
        return HeadGate(shape.num_heads, self.width(shape), c.mode, c.kappa, of_queries=c.source == "q")
