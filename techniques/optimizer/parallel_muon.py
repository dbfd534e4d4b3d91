"""Matrices of one shape form a bank [N,r,c]: a rank iterates N/W of them; the updates are Muon's.

After the backward pass every bank's gradient is reduce-scattered (each rank receives the sum for its own
matrices only) while the other parameters' gradients are all-reduced; then momentum and Newton–Schulz of one
bank run while the updates of the bank before it are all-gathered. Muon's own way is an all-reduce of every
gradient, then another of every update: twice the bytes, and nothing runs beside them. The first axis is
padded to a multiple of the ranks W with zeros, which stay zero. Momentum lives in the optimiser's state, so
the warm-up is undone with it (in #1855 it survives). With grad_clip_norm, the norm is taken over all ranks.
A bank is a matter of the optimiser alone: the model keeps its named matrices, so that quantisers and hooks
see every one of them (in #549 they skip the banks in silence).
Source: "Parallel Muon" and parameter banks of PR #549, #1019, #1855 (83.4 against 84.5 to 85 ms a step; ±0
BPB). Published: gradients travel as bfloat16 (`comm`), clipped on each rank before the sum. Cost: none on one
rank. Conflicts: another Muon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from techniques.base import Technique, setting
from trainer.muon import decay, newton_schulz


def bank_of(matrices: list[Tensor], *, ranks: int, dtype: torch.dtype) -> Tensor:
    """[N', r, c] of N matrices [r, c], N' the next multiple of `ranks`; zeros behind the last."""
    rows = -(-len(matrices) // ranks) * ranks
    bank = torch.zeros(rows, *matrices[0].shape, dtype=dtype, device=matrices[0].device)
    bank[: len(matrices)].copy_(torch.stack(matrices))
    return bank


def matrices_of(bank: Tensor, count: int) -> list[Tensor]:
    """The `count` matrices of a bank, without its padding."""
    return list(bank[:count].unbind(0))


class ParallelMuon(torch.optim.Optimizer):
    """Muon over banks. `settle_gradients` comes before `step`; it leaves a rank its share of each bank."""

    def __init__(self, params: list[Any], lr: float, hyper: Any, world: Any, dtype: torch.dtype):
        defaults = {"lr": lr, "momentum": hyper.muon_momentum, "weight_decay": hyper.muon_weight_decay}
        super().__init__(params, defaults)
        self.hyper, self.world, self.dtype = hyper, world, dtype
        self.comm = torch.float32
        self.orthogonalize: Callable[[Tensor, int], Tensor] = newton_schulz
        self.banks: list[list[list[Tensor]]] = []  # of each group: matrices of one shape
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = {}
            for p in group["params"]:
                shapes.setdefault(tuple(p.shape), []).append(p)
            self.banks.append(list(shapes.values()))
        self.shares: dict[Tensor, Tensor] = {}  # a bank's first matrix -> this rank's summed gradients

    def every_bank(self) -> list[list[Tensor]]:
        return [bank for banks in self.banks for bank in banks]

    @torch.no_grad()
    def settle_gradients(self, params: Iterable[Tensor], most: float) -> None:
        """Sum every gradient over the ranks, then clip the norm of all to `most` (0: no clipping)."""
        mine = {p for bank in self.every_bank() for p in bank}
        others = [p.grad for p in params if p not in mine and p.grad is not None]
        waiting: list[Any] = []
        for bank in self.every_bank():
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bank]
            dtype = self.comm if self.world.size > 1 else grads[0].dtype
            share = whole = bank_of(grads, ranks=self.world.size, dtype=dtype)
            if self.world.size > 1:
                share = torch.empty_like(whole[: len(whole) // self.world.size])
                waiting.append(dist.reduce_scatter_tensor(share, whole, async_op=True))
            self.shares[bank[0]] = share
        if self.world.size > 1:
            flat = torch.cat([g.reshape(-1) for g in others])
            dist.all_reduce(flat)
            for g, part in zip(others, flat.split([g.numel() for g in others]), strict=True):
                g.copy_(part.view_as(g))
        for work in waiting:
            work.wait()
        self.shares = {p: share.to(p.dtype) for p, share in self.shares.items()}
        if most:
            self.clip(others, most)

    def clip(self, others: list[Tensor], most: float) -> None:
        shares = list(self.shares.values())
        norms = torch.stack(torch._foreach_norm([*shares, *others]))  # pyright: ignore[reportPrivateImportUsage]
        square = self.world.sum(norms[: len(shares)].square().sum()) + norms[len(shares) :].square().sum()
        factor = (most / (square.sqrt() + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([*shares, *others], factor)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group, banks in zip(self.param_groups, self.banks, strict=True):
            lr, amount = group["lr"], group["lr"] * group["weight_decay"]
            gathered = [self.gather(self.update(bank, group["momentum"])) for bank in banks]
            for bank, (updates, work) in zip(banks, gathered, strict=True):
                if work is not None:
                    work.wait()
                step = -lr * max(1.0, bank[0].size(-2) / bank[0].size(-1)) ** 0.5
                matrices = matrices_of(updates.to(bank[0].dtype), len(bank))
                reached = [(p, u) for p, u in zip(bank, matrices, strict=True) if p.grad is not None]
                if reached:
                    decay(reached, amount, cautious=self.hyper.cautious_decay)
                    params, found = (list(side) for side in zip(*reached, strict=True))
                    torch._foreach_add_(params, found, alpha=step)  # pyright: ignore[reportPrivateImportUsage]

    def update(self, bank: list[Tensor], mu: float) -> Tensor:
        """Momentum and Newton–Schulz of this rank's share of a bank."""
        grad = self.shares[bank[0]]
        buf = self.state[bank[0]].setdefault("bank_momentum", torch.zeros_like(grad))
        buf.mul_(mu).add_(grad)
        return self.orthogonalize(grad.add(buf, alpha=mu).to(self.dtype), self.hyper.muon_ns_steps)

    def gather(self, share: Tensor) -> tuple[Tensor, Any]:
        """(every rank's share in one bank, what to wait for)."""
        if self.world.size == 1:
            return share, None
        whole = share.new_empty(len(share) * self.world.size, *share.shape[1:])
        gather = vars(dist).get("all_gather_single", dist.all_gather_into_tensor)  # its newer name
        return whole, gather(whole, share.contiguous(), async_op=True)


class ParallelMuonBanks(Technique):
    """Muon over banks of matrices, their work and bytes shared among the ranks."""

    name = "parallel_muon"
    reference = "PR #549, #1019, #1855"

    @dataclass(frozen=True)
    class Config:
        comm: str = setting(
            "float32", "type in which gradients travel between ranks", choices=("float32", "bfloat16")
        )

    def muon(self, params: Any, lr: float, hyper: Any, world: Any, dtype: Any) -> Any:
        optimizer = ParallelMuon(params, lr, hyper, world, dtype)
        optimizer.comm = getattr(torch, self.config.comm)
        return optimizer
