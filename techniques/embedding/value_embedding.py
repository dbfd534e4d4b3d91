"""v_l ← v_l + β_l·c·P·S[ids] in the last layers: the token's identity enters the values directly (VE128).

Source: PR #374; e = 128 in layers 9 and 10 of 11 in #414/#518/#549/#569/#1019; dropped at V = 8192 by #1394.
S [V,e] ~ N(0, 0.01²), P [K·Dh,e] orthogonal, one scalar c = 0.1, one scalar β = 1 per layer; S, P and c are
shared and computed once a forward. Cost: V·e + K·Dh·e + 1 + last_n parameters (V=1024, e=128, K·Dh=256, 2
layers: 163,843).
Identity at init: no, though small: |c·P·S[t]| ≈ 0.1·0.01·√e. P = 0 would start at identity; the seeds write
that, but their orthogonal-initialisation loop overwrites it. What we saw:
studies/LOG.md, "own_text, 200 trials on twelve public-domain books" and "laptop, 200 trials on the embedded
corpus".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from techniques.base import Cost, Int, Shape, Technique, TensorSpec, setting
from trainer.parameters import parameter


class ValueEmbeddingTable(nn.Module):
    """x0 [B,T,D], ids [B,T] -> c·P·S[ids] [B,T,K·Dh] in x0's dtype."""

    def __init__(self, vocab_size: int, dim: int, kv_dim: int):
        super().__init__()
        self.table = parameter(torch.randn(vocab_size, dim) * 0.01, "embed")
        self.proj = parameter(nn.init.orthogonal_(torch.empty(kv_dim, dim)), "matrix")
        self.scale = parameter(torch.tensor(0.1), "scalar")

    def forward(self, x0: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        rows = F.embedding(ids, self.table).to(x0.dtype)  # [B,T,e]
        return self.scale.to(x0.dtype) * F.linear(rows, self.proj.to(x0.dtype))


class ValueEmbeddingAdd(nn.Module):
    """v [B,T,K,Dh] -> v + β·ctx["value_embedding"]."""

    def __init__(self):
        super().__init__()
        self.strength = parameter(torch.ones(()), "scalar")

    def forward(self, v: torch.Tensor, ctx: dict[str, torch.Tensor]) -> torch.Tensor:
        return v + self.strength.to(v.dtype) * ctx["value_embedding"].view(v.shape)


class ValueEmbedding(Technique):
    """A low-rank token embedding, added to the values of the last layers."""

    name = "value_embedding"
    reference = "PR #374, #414, #549, #1019"
    space = {"dim": Int(32, 256, step=32), "last_n": Int(1, "num_layers")}
    env = {"VE_ENABLED": "on", "VE_DIM": "dim", "VE_LAYERS": "layers"}
    smoke = {"dim": 16, "last_n": 1}

    @dataclass(frozen=True)
    class Config:
        dim: int = setting(128, "width of a row, projected to num_kv_heads · head_dim", low=1, high=4096)
        last_n: int = setting(2, "layers, counted from the last", low=1, high=64)
        layers: str = setting("", 'layers by number, as VE_LAYERS says them ("9,10"); empty: last_n')

    def layers(self, shape: Shape) -> list[int]:
        """The layers whose values it enters."""
        if not self.config.layers:
            return list(range(shape.num_layers - self.config.last_n, shape.num_layers))
        words = self.config.layers.split(",")
        found = sorted({int(w) for w in words if w.strip().isdecimal()})
        if len(found) != len(words) or found[-1] >= shape.num_layers:
            raise ValueError(
                f"`value_embedding.layers` names different layers from 0 to {shape.num_layers - 1}, with "
                f"commas, but got {self.config.layers!r}."
            )
        return found

    def check(self, shape: Shape) -> None:
        self.layers(shape)
        if not self.config.layers and self.config.last_n > shape.num_layers:
            raise ValueError(
                f"`value_embedding.last_n` must be at most num_layers, but got {self.config.last_n} and "
                f"{shape.num_layers}. Use 1 to {shape.num_layers}."
            )

    def cost(self, shape: Shape) -> Cost:
        dim, kv = self.config.dim, shape.kv_dim
        tensors = (TensorSpec("embed", (shape.vocab_size, dim)), TensorSpec("matrix", (kv, dim)))
        num = len(self.layers(shape))
        scalars = (TensorSpec("scalar", ()),) * (1 + num)
        return Cost(tensors + scalars, flops_per_token=2.0 * kv * (dim + num))

    def shared(self, shape: Shape):
        return ValueEmbeddingTable(shape.vocab_size, self.config.dim, shape.kv_dim)

    def values(self, shape: Shape, layer: int):
        return ValueEmbeddingAdd() if layer in self.layers(shape) else None
