"""A shard's j-th sequence is its (a + j·s) mod n-th, gcd(s, n) = 1; a batch mixes m shards, taken in turn.

Each shard gets a random phase u < T, start a and stride s; a stride that shares no factor with n visits
every sequence once an epoch, far from the one before it. For each batch m different shards are drawn with
weights (sequences left)^α, and give one sequence each in turn. m grows from `shards_start` to `shards_end`
and α falls from `alpha_start` to `alpha_end` over the first `grow_batches` batches.
Source: PR #726, #1060 (8 → 64 shards on 8 GPUs, α 0.9 → 0.5, 1800 batches). Published: the random numbers
come from the shards' path strings, and ranks take every world-th sequence. Here they come from `seed`, and
the global batch is the same for any number of ranks. Cost: none a step. Conflicts: one order at a time; with
seq_schedule, every length must divide the longest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from techniques.base import Float, Int, Shape, Technique, setting
from trainer.stream import BlockStream


def coprime_blocks(n: int, rng: Any) -> Any:
    """(a + j·s) mod n for j < n, with a random start and a random stride that shares no factor with n."""
    start, stride = (int(rng.integers(n)), int(rng.integers(1, n + 1))) if n else (0, 1)
    while math.gcd(stride, n) != 1:
        stride = stride % n + 1
    return (start + stride * np.arange(n)) % max(1, n)


def mixing_pick(config: Any) -> Callable[[Any, int, int, Any], Any]:
    """n draws in turn from m shards; further shards where those run dry."""

    def pick(left: Any, n: int, batch: int, rng: Any) -> Any:
        grown = min(1.0, batch / max(1, config.grow_batches))
        most = round(config.shards_start + grown * (config.shards_end - config.shards_start))
        alpha = config.alpha_start + grown * (config.alpha_end - config.alpha_start)
        left, out = left.copy(), np.zeros(0, dtype=np.int64)
        while len(out) < n:
            weight = np.where(left > 0, left.astype(np.float64), 0.0) ** alpha * (left > 0)
            m = min(most, int((left > 0).sum()))
            chosen = rng.choice(len(left), size=m, replace=False, p=weight / weight.sum())
            turns = np.arange(-(-(n - len(out)) // m))[:, None] < left[chosen][None, :]
            drawn = np.broadcast_to(chosen, turns.shape)[turns][: n - len(out)]
            left = left - np.bincount(drawn, minlength=len(left))
            out = np.concatenate((out, drawn))
        return out

    return pick


class CoprimeLoader(Technique):
    """Each shard by a coprime stride, batches mixed from several shards."""

    name = "coprime_loader"
    reference = "PR #726, #1060"
    space = {
        "shards_start": Int(1, 32, log=True),
        "shards_end": Int(8, 80, log=True),
        "alpha_end": Float(0.0, 1.0),
    }
    env = {"COPRIME_LOADER": "on", "COPRIME_MAX_LOADERS": "shards_end"}
    unseen = ("alpha_end",)  # shards of one size are alike to it
    smoke = {"shards_start": 1, "shards_end": 3, "grow_batches": 6}

    @dataclass(frozen=True)
    class Config:
        shards_start: int = setting(8, "shards that the first batches mix", low=1, high=100_000)
        shards_end: int = setting(64, "shards that later batches mix", low=1, high=100_000)
        grow_batches: int = setting(1800, "batches over which the mix widens", low=0, high=10_000_000)
        alpha_start: float = setting(0.9, "power of a shard's sequences left, at first", low=0.0, high=4.0)
        alpha_end: float = setting(0.5, "the same, later", low=0.0, high=4.0)

    def check(self, shape: Shape) -> None:
        if self.config.shards_end < self.config.shards_start:
            raise ValueError(
                f"`coprime_loader.shards_end` must be at least shards_start, but got "
                f"{self.config.shards_end} and {self.config.shards_start}."
            )

    def loader(self, shards: Any, seed: int, longest: int) -> Any:
        pick = mixing_pick(self.config)
        return BlockStream(shards, block=longest, seed=seed, permute=coprime_blocks, pick=pick)
