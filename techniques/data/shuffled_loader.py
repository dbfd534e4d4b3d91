"""Sequences in random order: each draw is any of the epoch's sequences that are left, all equally likely.

Each shard gets a random phase u < T and a random permutation of its (n − 1 − u)/T sequences; a sequence's
shard is drawn in proportion to what the shards have left, which makes the whole order a uniform permutation
of the epoch. No token is a target twice in an epoch; phases and orders are new in the next one.
Source: PR #1394, #1855. Published: each rank owns every world-th shard and draws with the rank in its seed,
so that another number of GPUs trains on other batches. Here the global batch depends on `seed` alone, and
rank r takes its parts of it. Cost: none a step; scattered reads of the shards. Conflicts: one order at a
time; with seq_schedule, every length must divide the longest.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from techniques.base import Technique
from trainer.stream import BlockStream


def shuffled_blocks(n: int, rng: Any) -> Any:
    """A random permutation of n blocks."""
    return rng.permutation(n)


def pick_by_remaining(left: Any, n: int, batch: int, rng: Any) -> Any:
    """n draws without return, each shard in proportion to its blocks left: their counts, in random order."""
    counts = rng.multivariate_hypergeometric(left, n)
    return rng.permutation(np.repeat(np.arange(len(left)), counts))


class ShuffledLoader(Technique):
    """Training sequences in random order over all shards."""

    name = "shuffled_loader"
    reference = "PR #1394, #1855"
    env = {"SHUFFLE_LOADER": "on"}

    def loader(self, shards: Any, seed: int, longest: int) -> Any:
        return BlockStream(shards, block=longest, seed=seed, permute=shuffled_blocks, pick=pick_by_remaining)
