"""nats = lse(A·σ(2z/c)) − A·σ(2z_y/c), A = 2c: the capped cross-entropy in one pass, recomputed going back.

c·tanh(z/c) = 2c·σ(2z/c) − c, and a shift of all logits cancels in the softmax. Forward keeps z and one lse a
row; backward recomputes p = exp(A·σ(2z/c) − lse) and gives (p − 1[y])·4σ(1 − σ)/N. Rows are taken
`chunk_rows` at a time, so that float32 logits never exist for the whole batch. Training only: evaluation
computes the plain form.
Source: PR #1787 ("at worst neutral"), #1855. Cost: none; less memory, a second pass over the logits going
back. Conflicts: softcap (another formula). Not here: a hand-written Triton kernel; on a GPU Inductor fuses
each chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from techniques.base import Shape, Technique, setting


class CappedCrossEntropy(torch.autograd.Function):
    """z [N,V], targets [N] -> mean nats, float32; the gradient has z's dtype."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, targets: torch.Tensor, c: float, rows: int) -> torch.Tensor:
        lse, nats = [], []
        for part, y in zip(z.split(rows), targets.split(rows), strict=True):
            logits = 2 * c * torch.sigmoid(part.float() * (2 / c))
            lse.append(torch.logsumexp(logits, -1))
            nats.append(lse[-1] - logits.gather(1, y[:, None])[:, 0])
        ctx.save_for_backward(z, targets, torch.cat(lse))
        ctx.c, ctx.rows = c, rows
        return torch.cat(nats).mean()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        z, targets, lse = ctx.saved_tensors
        rows, parts = ctx.rows, []
        scale, columns = 4 * grads[0] / z.size(0), torch.arange(z.size(1), device=z.device)
        for part, y, norm in zip(z.split(rows), targets.split(rows), lse.split(rows), strict=True):
            s = torch.sigmoid(part.float() * (2 / ctx.c))
            p = torch.exp(2 * ctx.c * s - norm[:, None])
            p = p - (columns == y[:, None]).to(p.dtype)  # unlike a scatter it fuses with the rest
            parts.append((p * s * (1 - s) * scale).to(z.dtype))
        return torch.cat(parts), None, None, None


class StreamedLoss(nn.Module):
    """z [N,V] before the cap, targets [N] -> mean nats."""

    def __init__(self, c: float, rows: int):
        super().__init__()
        self.c, self.rows = c, rows

    def forward(self, z: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = CappedCrossEntropy.apply(z, targets, self.c, self.rows)
        assert isinstance(loss, torch.Tensor)
        return loss


class FusedCe(Technique):
    """The softcapped training loss in one streaming pass."""

    name = "fused_ce"
    reference = "PR #1787, #1855"
    identity_at_init = True
    conflicts = {"softcap": "it computes the cap c·tanh(z/c) itself"}
    env = {"FUSED_CE_ENABLED": "on"}
    smoke = {"chunk_rows": 48}

    @dataclass(frozen=True)
    class Config:
        chunk_rows: int = setting(8192, "tokens whose float32 logits exist at a time", low=1, high=1 << 24)

    def cross_entropy(self, shape: Shape):
        return StreamedLoss(shape.logit_softcap, self.config.chunk_rows)
