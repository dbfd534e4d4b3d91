"""What training at evaluation time shares: which parameters move, and a step that any world takes alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from techniques.base import Unavailable


def ttt_parameters(
    model: Any, freeze_blocks: int, owner: str
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """(trained, frozen): the first `freeze_blocks` blocks stand still. ValueError if that matches nothing."""
    frozen = [p for block in list(model.blocks)[:freeze_blocks] for p in block.parameters()]
    if freeze_blocks and not frozen:
        raise ValueError(f"`{owner}.freeze_blocks` = {freeze_blocks} matches no parameter of this model.")
    ids = {id(p) for p in frozen}
    return [p for p in model.parameters() if id(p) not in ids], frozen


def element_counts(trained: Sequence[Tensor], frozen: Sequence[Tensor]) -> dict[str, int]:
    """What an audit tells of them."""
    return {f"{k}_elements": sum(p.numel() for p in v) for k, v in (("trained", trained), ("frozen", frozen))}


@contextmanager
def standing_still(params: Sequence[Tensor]) -> Iterator[None]:
    """No gradient reaches these; afterwards they may have one again."""
    for p in params:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in params:
            p.requires_grad_(True)


def set_rates(optimizer: torch.optim.Optimizer, lr: float, done: float) -> None:
    """lr·½(1 + cos(π·done)), times a group's own `mult`; `done` in [0, 1]."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("mult", 1.0) * 0.5 * (1.0 + math.cos(math.pi * done))


def rate_at(config: Any, chunk: int, last: int) -> tuple[float, float]:
    """(rate, share of the cosine that is done) of a phase's chunk: first the warm-up, then the cosine."""
    warm = min(config.warmup_chunks, last)
    if chunk >= warm:
        return config.global_lr, (chunk - warm) / max(1, last - warm)
    return config.warmup_lr + (config.global_lr - config.warmup_lr) * chunk / max(1, warm - 1), 0.0


TOKENS_AT_ONCE = 1 << 16  # of a backward pass: a step of more is taken in parts, for its memory


def parts_of(pieces: Sequence[Any], seq_len: int) -> list[Sequence[Any]]:
    """Pieces of `seq_len` tokens each, in parts of at most TOKENS_AT_ONCE tokens, one piece at least."""
    size = max(1, TOKENS_AT_ONCE // seq_len)
    return [pieces[i : i + size] for i in range(0, len(pieces), size)]


def finish_step(
    world: Any, optimizer: torch.optim.Optimizer, trained: Sequence[torch.nn.Parameter], grad_clip: float
) -> None:
    """Sum the gradients over the ranks (one that had no sequence adds zeros), clip them, step."""
    if world.size > 1:
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        flat = world.sum(torch.cat([g.reshape(-1) for g in parts]))
        for p, g in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            p.grad = g.view_as(p).clone()
    torch.nn.utils.clip_grad_norm_(trained, grad_clip)
    optimizer.step()


def sequence_step(
    run: Any,
    starts: Sequence[int],
    optimizer: torch.optim.Optimizer,
    trained: Sequence[torch.nn.Parameter],
    grad_clip: float,
) -> None:
    """One step on the whole sequences that begin at `starts`, split over the ranks: mean nats, clipped."""
    mine = run.world.my_range(len(starts))
    optimizer.zero_grad(set_to_none=True)
    for part in parts_of(mine, run.seq_len):
        ids, targets = run.windows([starts[k] for k in part], run.seq_len)
        with torch.enable_grad():
            loss = run.model(ids, targets)
            (loss * (len(part) / len(starts))).backward()
    finish_step(run.world, optimizer, trained, grad_clip)


class SplitCap(nn.Module):
    """z [..,V] -> float32, c₊·tanh(z/c₊) above 0, c₋·tanh(z/c₋) below; both begin at c."""

    def __init__(self, c: float, device: torch.device):
        super().__init__()
        self.above = nn.Parameter(torch.tensor(c, device=device))
        self.below = nn.Parameter(torch.tensor(c, device=device))

    def forward(self, z: Tensor) -> Tensor:
        z = z.float()
        c = torch.where(z > 0, self.above, self.below)
        return c * torch.tanh(z / c)


@contextmanager
def split_cap(model: Any) -> Iterator[None]:
    """The model with two caps in place of its one. Unavailable where another technique has replaced that."""
    plain = model.cap
    if len(plain.parts) > 1:
        raise Unavailable(
            "`phased_ttt.asym_cap` splits the trainer's own cap, but softcap is on. Turn one off."
        )
    model.cap = SplitCap(plain.parts[0].c, model.tok_emb.device)
    try:
        yield
    finally:
        model.cap = plain
