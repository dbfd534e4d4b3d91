"""Muon: momentum, then the nearest semi-orthogonal matrix by Newton–Schulz (K. Jordan et al.).

Techniques wrap or replace the iteration through `Muon.orthogonalize` (seam `orthogonalize`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def newton_schulz(g: Tensor, steps: int) -> Tensor:
    """Quintic iteration towards the nearest semi-orthogonal matrices of g [N, rows, cols] (Muon, Jordan et
    al.)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """buf ← μ·buf + g; u = g + μ·buf; p ← p·(1 − lr·wd) − lr·√max(1, rows/cols)·NS(u). Ranks share the
    matrices out round-robin and exchange the updates; matrices of one shape are iterated together."""

    def __init__(self, params: list[Any], lr: float, hyper: Any, world: Any, dtype: torch.dtype):
        decay = hyper.muon_weight_decay
        super().__init__(params, {"lr": lr, "momentum": hyper.muon_momentum, "weight_decay": decay})
        self.hyper, self.world, self.dtype = hyper, world, dtype
        self.orthogonalize: Callable[[Tensor, int], Tensor] = newton_schulz

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params, mu, lr = group["params"], group["momentum"], group["lr"]
            updates = [torch.zeros_like(p, dtype=self.dtype) for p in params]
            shapes: dict[tuple[int, ...], list[int]] = {}
            for i, p in enumerate(params):
                if i % self.world.size == self.world.rank and p.grad is not None:
                    shapes.setdefault(tuple(p.shape), []).append(i)
            for indices in shapes.values():
                stack: list[Tensor] = []
                for i in indices:
                    state = self.state[params[i]]
                    buf = state.setdefault("momentum_buffer", torch.zeros_like(params[i]))
                    buf.mul_(mu).add_(params[i].grad)
                    stack.append(params[i].grad.add(buf, alpha=mu).to(self.dtype))
                for i, u in zip(
                    indices, self.orthogonalize(torch.stack(stack), self.hyper.muon_ns_steps), strict=True
                ):
                    updates[i] = u
            if self.world.size > 1:
                flat = self.world.sum(torch.cat([u.reshape(-1) for u in updates]))
                updates = [
                    u.view_as(p) for u, p in zip(flat.split([p.numel() for p in params]), params, strict=True)
                ]
            for p, u in zip(params, updates, strict=True):
                if p.grad is None:  # of a part that this phase's graph does not reach
                    continue
                p.mul_(1.0 - lr * group["weight_decay"])
                p.add_(u.to(p.dtype), alpha=-lr * max(1.0, p.size(-2) / p.size(-1)) ** 0.5)
