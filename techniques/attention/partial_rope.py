"""(q, k)[:r] ← rotated by position·base^(−2i/r), pairs (i, i + r/2); the other Dh − r dims carry no position.

Source: PR #315 (with LN scale); r = 16 of 64 in #414/#549/#569/#1019/#1855. NTK: that lineage hard-codes a
RoPE training length of 1024, so at T > 1024 its base is base·(T/1024)^(r/(r−2)), 22,082 for r = 16 at T =
2048, in training as well as evaluation (`train_len` 1024); #1855 uses none (`train_len` 0).
T is train_seq_len for every sequence up to that length, and eval_seq_len for longer ones: what was trained
keeps its frequencies in shorter windows (the published code rescales to each call's length; equal where the
two lengths are).
Cost: none. Identity at init: no.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from techniques.base import Choice, Shape, Technique, setting


def partial_rope_base(base: float, dims: int, length: int, train_len: int) -> float:
    """NTK-scaled base for sequences of `length` tokens; unchanged up to `train_len`, and with train_len 0."""
    if not train_len or length <= train_len:
        return base
    return base * (length / train_len) ** (dims / (dims - 2))


def partial_rope_tables(length: int, dims: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """cos, sin [length, 1, dims/2]."""
    theta = base ** (-torch.arange(0, dims, 2, dtype=torch.float32) / dims)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), theta)[:, None, :]
    return angle.cos(), angle.sin()


class PartialRotary(nn.Module):
    """q [B,T,H,Dh], k [B,T,K,Dh] -> the same with their first `dims` dims rotated."""

    cos: torch.Tensor
    sin: torch.Tensor
    cos_long: torch.Tensor
    sin_long: torch.Tensor

    def __init__(self, shape: Shape, dims: int, train_len: int):
        super().__init__()
        self.dims, self.seq_len = dims, shape.seq_len
        for name, length in (("", shape.seq_len), ("_long", shape.eval_seq_len)):
            if name and length <= shape.seq_len:
                continue
            base = partial_rope_base(shape.rope_base, dims, length, train_len)
            cos, sin = partial_rope_tables(length, dims, base)
            self.register_buffer("cos" + name, cos, persistent=False)
            self.register_buffer("sin" + name, sin, persistent=False)

    def forward(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        t = q.size(1)
        late = t > self.seq_len and hasattr(self, "cos_long")
        tables = (self.cos_long, self.sin_long) if late else (self.cos, self.sin)
        cos, sin = (table[:t].to(q.dtype) for table in tables)

        def turn(x: torch.Tensor) -> torch.Tensor:
            half = self.dims // 2
            a, b, rest = x[..., :half], x[..., half : self.dims], x[..., self.dims :]
            return torch.cat((a * cos + b * sin, b * cos - a * sin, rest), dim=-1)

        return turn(q), turn(k)


class PartialRope(Technique):
    """Rotary positions in a part of every head."""

    name = "partial_rope"
    reference = "PR #315, #414, #1855"
    # a share, not a number of dims: valid for every head_dim. Not 1.0: that is the baseline where T ≤ 1024
    space = {"fraction": Choice((0.125, 0.25, 0.375, 0.5, 0.75)), "train_len": Choice((0, 1024))}
    env = {"ROPE_DIMS": "dims"}
    unseen = ("train_len",)  # it counts in longer sequences
    smoke = {"fraction": 0.5}

    @dataclass(frozen=True)
    class Config:
        dims: int = setting(16, "rotated dims of each head, even", low=4, high=1024)
        fraction: float = setting(
            0.0,
            "rotated share of head_dim (to the nearest even number, 4 at least); 0: `dims`",
            low=0.0,
            high=1.0,
        )
        train_len: int = setting(
            1024, "tokens up to which the base is not NTK-scaled; 0: never scaled", choices=(0, 1024)
        )

    def dims(self, shape: Shape) -> int:
        """r: the rotated dims of a head."""
        if not self.config.fraction:
            return self.config.dims
        return min(shape.head_dim, max(4, 2 * round(self.config.fraction * shape.head_dim / 2)))

    def check(self, shape: Shape) -> None:
        if self.config.fraction and self.config.dims != 16:
            raise ValueError(
                f"`partial_rope.dims` and `partial_rope.fraction` say the same, but got {self.config.dims} "
                f"and {self.config.fraction}. Set one of them."
            )
        dims = self.dims(shape)
        if dims % 2 or not 2 < dims <= shape.head_dim:
            raise ValueError(
                f"`partial_rope.dims` must be even, above 2 and at most head_dim, but got {dims} and "
                f"{shape.head_dim}. Set partial_rope.fraction, which fits every head_dim from 4 on."
            )

    def rope(self, shape: Shape):
        return PartialRotary(shape, self.dims(shape), self.config.train_len)
