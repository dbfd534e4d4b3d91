"""Compiled graphs, each made before the clock that counts starts: the training's in the warm-up's steps, the
scoring's on random tokens.

Evaluation is forwards without gradient, mostly of full batches: one graph of one size. Smaller batches are
padded to it (behind a row's tokens and below its last row, where nothing can see it) and cut again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

COMPILE_FROM_TOKENS = 1 << 25  # forward tokens of a rank's evaluation from which on compiling it pays
GRAPHS = 64  # at most: one for each phase and each size of batch


def compiles(config: Any, world: Any) -> bool:
    return config.compile == "on" or (config.compile == "auto" and world.device.type == "cuda")


def maybe_compile(model: Any, config: Any, world: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The training's loss(ids [B,T], targets [B,T]), compiled where the settings want it."""
    if not compiles(config, world):
        return model
    torch._dynamo.config.recompile_limit = GRAPHS  # type: ignore[attr-defined]
    return torch.compile(model, dynamic=False, fullgraph=True)  # type: ignore[return-value]


class CompiledHidden:
    """ids [b,t] -> hidden [b,t,D] for b ≤ rows and t ≤ length. `seconds` went into compiling."""

    def __init__(self, model: Any, rows: int, length: int):
        self.model, self.rows, self.length = model, rows, length
        self.graph: Any = torch.compile(model.hidden, dynamic=False, fullgraph=True)

    @torch.no_grad()
    def warm_up(self, vocab_size: int) -> None:
        """Compile, on tokens that come from no data."""
        device = self.model.tok_emb.device
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(vocab_size, (self.rows, self.length), generator=generator)
        self(ids.to(device)).sum().item()

    def __call__(self, ids: Tensor) -> Tensor:
        rows, length = ids.shape
        if torch.is_grad_enabled() or rows > self.rows or length > self.length:
            return self.model.hidden(ids)
        padded = F.pad(ids, (0, self.length - length, 0, self.rows - rows))
        return self.graph(padded)[:rows, :length]


def compile_scoring(run: Any, resolved: Any, scorer: str | None) -> float:
    """Compile the forward of an evaluation that is long enough; the seconds it took. Like the warm-up of the
    training it reads no data, and is no part of the timed seconds."""
    start, c = time.perf_counter(), resolved.config
    passes = 1.0 + (resolved.costs[scorer].eval_passes if scorer else 0.0)
    if not compiles(c, run.world) or passes * run.num_positions < COMPILE_FROM_TOKENS * run.world.size:
        return 0.0
    run.hidden = graph = CompiledHidden(run.model, run.batch_seqs, run.seq_len)
    graph.warm_up(c.vocab_size)
    return time.perf_counter() - start
