"""x ← x + c·P·Eb[h], h_0 = N−1, h_i = (36313·t_i XOR 27191·t_{i−1}) mod (N−1): hashed pairs of tokens.

Source: BigramHash, PR #162; this hash and N×e = 2048×128 in #414/#518/#569, 1536×128 in #549, 3072×112 in
#1019.
Cost: N·e + e·D + 1 parameters (2048×128 at D=512: 327,681); one look-up and one e×D product per token.
Identity at init: yes, Eb = 0. P must not be 0 as well: then Eb and P both have a gradient of exactly 0 and
the technique is dead for ever. P starts with orthonormal columns, which is what
the seeds really train, because their orthogonal-initialisation loop overwrites the zeros that they write
first.
Uses input tokens only (no target, no count): not an n-gram cache. What we saw: studies/LOG.md, "laptop, 200
trials on the embedded corpus".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from techniques.base import Cost, Int, Shape, Technique, TensorSpec, setting
from trainer.parameters import parameter


def bigram_rows(ids: torch.Tensor, rows: int) -> torch.Tensor:
    """Row of every position, [B,T] in [0, rows−1]. int64: the published int32 is good for t < 59,138."""
    t = ids.to(torch.int64)
    mixed = torch.bitwise_xor(36313 * t[:, 1:], 27191 * t[:, :-1]) % (rows - 1)
    return F.pad(mixed, (1, 0), value=rows - 1)


class BigramHashLayer(nn.Module):
    """x [B,T,D], ids [B,T] -> x [B,T,D]."""

    def __init__(self, rows: int, dim: int, model_dim: int):
        super().__init__()
        self.rows = rows
        self.table = parameter(torch.zeros(rows, dim), "embed")
        self.proj = parameter(nn.init.orthogonal_(torch.empty(model_dim, dim)), "matrix")
        self.scale = parameter(torch.tensor(0.05), "scalar")

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        pair = F.embedding(bigram_rows(ids, self.rows), self.table).to(x.dtype)  # [B,T,e]
        return x + self.scale.to(x.dtype) * F.linear(pair, self.proj.to(x.dtype))


class BigramHash(Technique):
    """A second embedding, of the pair (previous token, token), by hash."""

    name = "bigram_hash"
    reference = "PR #162, #414, #549, #1019"
    identity_at_init = True
    space = {"rows": Int(512, 16_384, log=True), "dim": Int(32, 160, step=16)}
    env = {"BIGRAM_VOCAB_SIZE": "rows", "BIGRAM_DIM": "dim"}
    smoke = {"rows": 61, "dim": 16}

    @dataclass(frozen=True)
    class Config:
        rows: int = setting(
            2048, "rows of the hash table; the last is for first positions", low=2, high=2**20
        )
        dim: int = setting(128, "width of a row, projected to model_dim", low=1, high=4096)

    def cost(self, shape: Shape) -> Cost:
        rows, dim, d = self.config.rows, self.config.dim, shape.model_dim
        tensors = (TensorSpec("embed", (rows, dim)), TensorSpec("matrix", (d, dim)), TensorSpec("scalar", ()))
        return Cost(tensors=tensors, flops_per_token=2.0 * dim * d)

    def embed_in(self, shape: Shape):
        return BigramHashLayer(self.config.rows, self.config.dim, shape.model_dim)
