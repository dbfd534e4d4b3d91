"""Muon: momentum, then the nearest semi-orthogonal matrix by Newton–Schulz (K. Jordan et al.).

Techniques wrap or replace the iteration through `Muon.orthogonalize` (seam `orthogonalize`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
        defaults = {"lr": lr, "momentum": hyper.muon_momentum, "weight_decay": hyper.muon_weight_decay}
        super().__init__(params, defaults)
        self.hyper, self.world, self.dtype = hyper, world, dtype
        self.orthogonalize: Callable[[Tensor, int], Tensor] = newton_schulz

    def settle_gradients(self, params: Iterable[Tensor], most: float) -> None:
        """Sum every gradient over the ranks, before any clipping: one rank and many take the same step. Then
        clip the norm of all to `most` (0: no clipping)."""
        params = list(params)
        if self.world.size > 1:
            grads = [p.grad for p in params if p.grad is not None]
            flat = self.world.sum(torch.cat([g.reshape(-1) for g in grads]))
            for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                g.copy_(part.view_as(g))
        if most:
            torch.nn.utils.clip_grad_norm_(params, most)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = group["params"]
            shapes: dict[tuple[int, ...], list[int]] = {}
            for i, p in enumerate(params):
                if i % self.world.size == self.world.rank and p.grad is not None:
                    shapes.setdefault(tuple(p.shape), []).append(i)
            updates: dict[int, Tensor] = {}
            for indices in shapes.values():
                stack = self.momentum([params[i] for i in indices], group["momentum"])
                whole = self.orthogonalize(stack, self.hyper.muon_ns_steps)
                updates |= dict(zip(indices, whole, strict=True))
            if self.world.size > 1:
                mine = [updates.get(i, torch.zeros_like(p, dtype=self.dtype)) for i, p in enumerate(params)]
                flat = self.world.sum(torch.cat([u.reshape(-1) for u in mine]))
                updates = dict(enumerate(flat.split([p.numel() for p in params])))
            # without a gradient: of a part that this phase's graph does not reach
            moved = [(p, updates[i]) for i, p in enumerate(params) if p.grad is not None]
            apply_updates(moved, group["lr"], group["weight_decay"], cautious=self.hyper.cautious_decay)

    def momentum(self, params: list[Tensor], mu: float) -> Tensor:
        """buf ← μ·buf + g of parameters of one shape; the Nesterov updates g + μ·buf [N, rows, cols]."""
        grads: list[Tensor] = [p.grad for p in params if p.grad is not None]
        bufs = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in params]
        torch._foreach_mul_(bufs, mu)  # type: ignore[attr-defined]
        torch._foreach_add_(bufs, grads)  # type: ignore[attr-defined]
        return torch.stack(torch._foreach_add(grads, bufs, alpha=mu)).to(self.dtype)  # type: ignore[attr-defined]


def decay(moved: list[tuple[Tensor, Tensor]], amount: float, *, cautious: bool) -> None:
    """p ← p·(1 − amount) of pairs (p, u); cautious: of the elements where u has p's sign."""
    if not cautious:
        torch._foreach_mul_([p for p, _ in moved], 1.0 - amount)  # type: ignore[attr-defined]
        return
    for p, u in moved:
        p.mul_(1.0 - amount * (u.view_as(p) * p > 0).to(p.dtype))


def apply_updates(
    moved: list[tuple[Tensor, Tensor]], lr: float, weight_decay: float, *, cautious: bool = False
) -> None:
    """p ← p·(1 − lr·wd) − lr·√max(1, rows/cols)·u of pairs (p, u), a few kernels for all of one shape."""
    if not moved:
        return
    decay(moved, lr * weight_decay, cautious=cautious)
    scales: dict[float, list[tuple[Tensor, Tensor]]] = {}
    for p, u in moved:
        scales.setdefault(max(1.0, p.size(-2) / p.size(-1)) ** 0.5, []).append((p, u.view_as(p).to(p.dtype)))
    for scale, pairs in scales.items():
        step = -lr * scale
        torch._foreach_add_([p for p, _ in pairs], [u for _, u in pairs], alpha=step)  # type: ignore[attr-defined]
