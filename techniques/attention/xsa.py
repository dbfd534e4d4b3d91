"""y ← y − (y·v̂) v̂ with v̂ = v/‖v‖: attention output without its component along the token's own value
(XSA).

Source: exclusive self attention, arXiv:2603.09078; last 3 layers in PR #265, last 4 in #414/#549, all in
#1019/#1263. Cost: no parameters; one dot product and one axpy per head and token. Identity at init: no.
What we saw: studies/LOG.md, "own_text, 200 trials on twelve public-domain books" and "laptop, 200 trials on
the embedded corpus".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from techniques.base import Cost, Int, Shape, Technique, setting


def remove_own_value(y: torch.Tensor, v: torch.Tensor, _n: torch.Tensor) -> torch.Tensor:
    """y [B,T,H,Dh] less its projection on v [B,T,K,Dh]; query head h belongs to key/value head h // (H/K)."""
    b, t, h, d = y.shape
    k = v.size(2)
    unit = F.normalize(v, dim=-1, eps=1e-12).unsqueeze(3)  # [B,T,K,1,Dh]
    grouped = y.view(b, t, k, h // k, d)
    return (grouped - (grouped * unit).sum(-1, keepdim=True) * unit).view(b, t, h, d)


class Xsa(Technique):
    """Exclusive self attention in the last layers."""

    name = "xsa"
    reference = "arXiv:2603.09078; PR #265, #414, #1019"
    space = {"last_n": Int(1, "num_layers")}
    env = {"XSA_LAST_N": "last_n"}
    smoke = {"last_n": 1}

    @dataclass(frozen=True)
    class Config:
        last_n: int = setting(4, "layers, counted from the last", low=1, high=64)

    def check(self, shape: Shape) -> None:
        if self.config.last_n > shape.num_layers:
            raise ValueError(
                f"`xsa.last_n` must be at most num_layers, but got {self.config.last_n} and "
                f"{shape.num_layers}. Use {shape.num_layers} for all layers."
            )

    def cost(self, shape: Shape) -> Cost:
        return Cost(flops_per_token=4.0 * self.config.last_n * shape.model_dim)

    def attn_out(self, shape: Shape, layer: int):
        return remove_own_value if layer >= shape.num_layers - self.config.last_n else None
