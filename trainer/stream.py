"""Where training tokens come from: shards one after the other, or blocks of them in another order.

A stream gives whole global batches, uint16 [parts, rows, T + 1]: a row is T inputs and the T targets one
later, and the batch is the same for any number of ranks. It reads nothing but the arrays that it was given.
`state()` is all that `load()` needs to go on at the same token.

Legend: S shards, T sequence.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np


class TokenStream:
    """The shards' tokens in their order, for ever; `read` counts the tokens that were taken."""

    def __init__(self, shards: Sequence[np.ndarray]):
        self.shards, self.shard, self.at, self.read = shards, 0, 0, 0

    def take(self, n: int) -> np.ndarray:
        """The next n tokens, uint16 [n]."""
        parts: list[np.ndarray] = []
        self.read += n
        while n > 0:
            if self.at >= len(self.shards[self.shard]):
                self.shard, self.at = (self.shard + 1) % len(self.shards), 0
            part = self.shards[self.shard][self.at : self.at + n]
            parts.append(part)
            self.at += len(part)
            n -= len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def batch(self, parts: int, rows: int, seq_len: int) -> np.ndarray:
        """The next batch, uint16 [parts, rows, T + 1]; the rows of a part follow each other in the text."""
        span = rows * seq_len + 1
        spans = self.take(parts * span).reshape(parts, span)
        return np.lib.stride_tricks.sliding_window_view(spans, seq_len + 1, axis=1)[:, ::seq_len]

    def state(self) -> dict[str, Any]:
        return {"shard": self.shard, "at": self.at, "read": self.read}

    def load(self, state: dict[str, Any]) -> None:
        self.shard, self.at, self.read = state["shard"], state["at"], state["read"]


def block_of(lengths: Iterable[int]) -> int:
    """The block that sequences of all these lengths cut without rest, up to four times the longest; else the
    longest."""
    lengths = [*lengths]
    block = math.lcm(*lengths)
    return block if block <= 4 * max(lengths) else max(lengths)


def generator_of(*key: Any) -> np.random.Generator:
    """Random numbers that depend on `key` alone."""
    return np.random.default_rng(list(hashlib.sha256(repr(key).encode()).digest()))


class BlockStream:
    """Blocks of `block` tokens (and one more, the last target) in an order of their own.

    A shard with a random phase u < block is cut at u, u + block, …; each block is taken once an epoch: no
    token is a target twice in one. permute(n, rng) -> the order of a shard's n blocks; pick(left [S], n,
    batch, rng) -> the shard of each of n draws, int [n]. Rows shorter than a block cut it into pieces."""

    def __init__(
        self,
        shards: Sequence[np.ndarray],
        *,
        block: int,
        seed: int,
        permute: Callable[[int, np.random.Generator], np.ndarray],
        pick: Callable[[np.ndarray, int, int, np.random.Generator], np.ndarray],
    ):
        self.shards, self.block, self.seed, self.permute, self.pick = shards, block, seed, permute, pick
        if not any(len(tokens) > block for tokens in shards):
            raise ValueError(
                f"A shard must hold at least one sequence and its last target, {block + 1} tokens, but the "
                f"longest has {max(map(len, shards))}. Use shorter sequences or a larger corpus."
            )
        self.epoch, self.batches, self.read, self.order_hash = 0, 0, 0, ""
        self.pending: list[tuple[int, int, int]] = []  # (shard, start, end) of what is left of a cut block
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """New phases and new orders, from the seed and the epoch's number."""
        self.phases: list[int] = []
        self.orders: list[np.ndarray] = []
        for s, tokens in enumerate(self.shards):
            rng, spare = generator_of(self.seed, self.epoch, s), len(tokens) - 1 - self.block
            self.phases.append(int(rng.integers(min(self.block, spare + 1))) if spare >= 0 else 0)
            count = max(0, len(tokens) - 1 - self.phases[-1]) // self.block
            self.orders.append(self.permute(count, rng))
        self.used = np.zeros(len(self.shards), dtype=np.int64)

    def draw(self, n: int) -> list[tuple[int, int, int]]:
        """(shard, start, end) of the next n blocks."""
        out: list[tuple[int, int, int]] = []
        counts = np.array([len(order) for order in self.orders])
        while len(out) < n:
            left = counts - self.used
            if not left.any():
                self.epoch += 1
                self.begin_epoch()
                counts = np.array([len(order) for order in self.orders])
                continue
            rng = generator_of(self.seed, self.epoch, "batch", self.batches)
            for s in self.pick(left, min(n - len(out), int(left.sum())), self.batches, rng).tolist():
                start = self.phases[s] + int(self.orders[s][self.used[s]]) * self.block
                out.append((s, start, start + self.block))
                self.used[s] += 1
            self.batches += 1
        told = f"{self.order_hash}{out}".encode()
        self.order_hash = hashlib.sha256(told).hexdigest()[:16]
        return out

    def batch(self, parts: int, rows: int, seq_len: int) -> np.ndarray:
        """The next batch, uint16 [parts, rows, T + 1]. ValueError unless T divides the block."""
        if self.block % seq_len:
            raise ValueError(
                f"The blocks of this data order have {self.block} tokens, so sequences must divide that, but "
                f"one has {seq_len}. Choose lengths that divide the longest, or the sequential order."
            )
        need, at = parts * rows, self.pending
        pieces = sum((end - start) // seq_len for _, start, end in at)
        if pieces < need:
            at = at + self.draw(-(-(need - pieces) // (self.block // seq_len)))
        windows: list[np.ndarray] = []
        self.pending = []
        for s, start, end in at:
            while start + seq_len <= end and len(windows) < need:
                windows.append(self.shards[s][start : start + seq_len + 1])
                start += seq_len
            if start < end and len(windows) == need:
                self.pending.append((s, start, end))
        self.read += need * (seq_len + 1)
        return np.stack(windows).reshape(parts, rows, seq_len + 1)

    def state(self) -> dict[str, Any]:
        pending = [list(p) for p in self.pending]
        counters = {"epoch": self.epoch, "batches": self.batches, "read": self.read}
        return {**counters, "order_hash": self.order_hash, "used": self.used.tolist(), "pending": pending}

    def load(self, state: dict[str, Any]) -> None:
        self.epoch, self.batches, self.read = state["epoch"], state["batches"], state["read"]
        self.begin_epoch()
        self.order_hash, self.used = state["order_hash"], np.array(state["used"], dtype=np.int64)
        self.pending = [(s, start, end) for s, start, end in state["pending"]]
