"""n_t ← n_t + Σ_{k=0..3} w_k ⊙ n_{t−k}, w [4,D] = 0, on the normed input of attention (A) and of the MLP (C).

`where` = A, C or AC; the layers are the last `last_n`. Two sets of weights a layer, one in each place; looped
layers share theirs. With `mask` no token reaches past the BOS of its document, n before it counting as 0; off
(as published) it does.
Source: Canon layers, Allen-Zhu (Physics of Language Models, part 4.1); PR #1204 (CANON_AC_LAYERS, behind
ln_scale, before both branches; empty in the record), negative for #375 in its stack. Its weights go to Adam
with the scalars, here too. Cost: 4·D weights and 8·D FLOPs a place; three shifted copies of the stream.
Identity at init: yes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from techniques.base import Choice, Cost, Int, Shape, Technique, TensorSpec, setting
from trainer.parameters import parameter

CANON_PLACES = {"A": ("attn",), "C": ("mlp",), "AC": ("attn", "mlp")}
CANON_BOS_ID = 1  # <s> in every tokenizer of the challenge
CANON_REACH = 4  # positions, the token's own included


class SinceBos(nn.Module):
    """x0, ids [B,T] -> positions since the document's BOS, [B,T], or since the row's begin."""

    def forward(self, _x0: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.size(1), device=ids.device).expand_as(ids)
        return places - torch.cummax(places * (ids == CANON_BOS_ID), 1).values


class CanonSum(nn.Module):
    """n [B,T,D], ctx, branch -> n plus the weighted sum of its last positions, in the branches named."""

    def __init__(self, model_dim: int, branches: tuple[str, ...], *, stops: bool):
        super().__init__()
        self.stops = stops
        self.weights = nn.ParameterDict(
            {branch: parameter(torch.zeros(CANON_REACH, model_dim), "scalar") for branch in branches}
        )

    def forward(self, n: torch.Tensor, ctx: dict[str, Any], branch: str) -> torch.Tensor:
        if branch not in self.weights:
            return n
        w, out = self.weights[branch].to(n.dtype), n
        for k in range(min(CANON_REACH, n.size(1))):
            back = F.pad(n[:, : n.size(1) - k], (0, 0, k, 0)) if k else n
            if k and self.stops:
                back = back * (ctx["canon"] >= k).unsqueeze(-1)
            out = out + w[k] * back
        return out


class Canon(Technique):
    """A short causal convolution, channel by channel, before attention and MLP."""

    name = "canon"
    reference = "Physics of Language Models 4.1 (Canon layers); PR #375, #1204"
    identity_at_init = True
    after = ("ln_scale",)
    space = {"last_n": Int(1, "num_layers"), "where": Choice(tuple(CANON_PLACES))}
    smoke = {"last_n": 1}

    @dataclass(frozen=True)
    class Config:
        last_n: int = setting(4, "layers, counted from the last", low=1, high=64)
        where: str = setting("AC", "before attention, before the MLP, or both", choices=tuple(CANON_PLACES))
        mask: bool = setting(True, "stop at BOS (published: no)")

    def check(self, shape: Shape) -> None:
        if self.config.last_n > shape.num_layers:
            raise ValueError(
                f"`canon.last_n` must be at most num_layers, but got {self.config.last_n} and "
                f"{shape.num_layers}. Use {shape.num_layers} for all layers."
            )

    def cost(self, shape: Shape) -> Cost:
        places = len(CANON_PLACES[self.config.where]) * self.config.last_n
        weights = (TensorSpec("scalar", (CANON_REACH, shape.model_dim)),) * places
        return Cost(weights, flops_per_token=2.0 * CANON_REACH * shape.model_dim * places)

    def shared(self, shape: Shape):
        return SinceBos() if self.config.mask else None

    def norm(self, shape: Shape, layer: int):
        if layer < shape.num_layers - self.config.last_n:
            return None
        return CanonSum(shape.model_dim, CANON_PLACES[self.config.where], stops=self.config.mask)
