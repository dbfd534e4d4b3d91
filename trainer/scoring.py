"""What every scorer shares: nats of hidden states, one compiled forward, and whether the score is another.

Evaluation is forwards without gradient, mostly of full batches: one graph of one size, compiled on random
tokens while the clock that counts stands still. Batches of fewer rows are padded to it (below the last row,
where nothing can see it) and cut again. Shorter rows, the split's end, go through the model as it is: what a
technique does may depend on a row's length (partial_rope picks its table by it).

Two things look over a scorer's shoulder, whatever it is: `Meter` knows which positions it read, and stepped
on, before they had their score; `score_again` scores a sample with everything replaced that came later.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from trainer.parameters import load_weights
from trainer.world import compiled_or_eager, compiles

NATS_AT_ONCE = 1 << 28  # logits that exist at a time, float32: 1 GiB
COMPILE_FROM_TOKENS = 1 << 25  # forward tokens of a rank's evaluation from which on compiling it pays
SUMMED_AT_ONCE = 1 << 20  # positions that are summed or replaced together
SAMPLE = 16  # a sample is the first 16th of the scores, and four sequences at least


@dataclass(frozen=True)
class Score:
    val_loss: float  # nats per token
    val_bpb: float  # bits per byte
    tokens: int
    bytes: int


def score_of(run: Any, data: Any, count: int) -> Score:
    """Of the first `count` positions of an evaluation that all ranks finished, each by the rank that scored
    it. Float64 sums in the order of positions, in whatever order they were scored. ValueError unless each
    position has its bytes."""
    count = min(count, run.num_positions)
    sizes = data.target_bytes(run.stream[: count + 1].numpy())
    if len(sizes) != count:
        raise ValueError(
            f"Each scored token has its bytes, but there are {len(sizes):,} of {count:,}. "
            "Export the data again."
        )
    sums = torch.zeros(3, dtype=torch.float64)
    for start in range(0, count, SUMMED_AT_ONCE):
        part = slice(start, min(count, start + SUMMED_AT_ONCE))
        mine = run.written[part].bool()
        nats = run.nll[part][mine].sum(dtype=torch.float64)
        sums += torch.tensor([nats, sizes[part].sum(where=mine.numpy()), mine.sum()], dtype=torch.float64)
    nats, num_bytes, tokens = run.world.sum(sums.to(run.world.device)).tolist()
    return Score(nats / tokens, nats / math.log(2) / num_bytes, int(tokens), int(num_bytes))


def nats_of(model: Any, h: Tensor, targets: Tensor) -> Tensor:
    """Nats of `targets` [..] under hidden states h [.., D]; softmax over the whole vocabulary."""
    flat, ys = h.reshape(-1, h.size(-1)), targets.reshape(-1)
    size = max(1, NATS_AT_ONCE // model.tok_emb.size(0))
    parts = [
        F.cross_entropy(model.logits(x), y, reduction="none")
        for x, y in zip(flat.split(size), ys.split(size), strict=True)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(targets.shape)


class CompiledHidden:
    """ids [b,t] -> hidden [b,t,D], compiled for b ≤ rows and t = length."""

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
        if torch.is_grad_enabled() or rows > self.rows or length != self.length:
            return self.model.hidden(ids)
        return self.graph(F.pad(ids, (0, 0, 0, self.rows - rows)))[:rows]


def compile_scoring(run: Any, resolved: Any, scorer: str | None, clock: Any) -> None:
    """Compile the forward of an evaluation that is long enough, while the clock stands still: like the
    warm-up of the training it reads no data."""
    c = resolved.config
    passes = 1.0 + (resolved.costs[scorer].eval_passes if scorer in resolved.costs else 0.0)
    if not compiles(c, run.world) or passes * run.num_positions < COMPILE_FROM_TOKENS * run.world.size:
        return
    run.hidden = compiled = CompiledHidden(run.model, run.batch_seqs, run.seq_len)
    compiled.graph = compiled_or_eager(compiled.graph, run.model.hidden, c, run.world)
    clock.stop()
    compiled.warm_up(c.vocab_size)
    clock.start()


@torch.no_grad()
def score_changed(weights: Mapping[str, Tensor], run: Any) -> bool:
    """Does the scorer's result differ from the plain protocol's over the last sequences of this rank's
    share?"""
    load_weights(run.model, weights)
    t, changed = run.seq_len, 0
    for start in range(max(0, run.num_positions - 4 * t), run.num_positions, t):
        ids, targets = run.windows([start], min(t, run.num_positions - start))
        plain = run.nats(run.hidden(ids), targets)[0].cpu()
        noise = 0.0  # on a GPU a batch of another size has other last bits
        if ids.is_cuda:
            beside = run.nats(run.model.hidden(ids.expand(3, -1)), targets.expand(3, -1))[0].cpu()
            noise = 8 * float((beside - plain).abs().max())
        mine = run.written[start : start + len(plain)].bool()
        changed += int((run.nll[start : start + len(plain)] - plain)[mine].abs().gt(1e-6 + noise).sum())
    return run.world.max(float(changed)) > 0


class Meter:
    """Of one evaluation: which positions were trained on while they had no score (`early`), optimiser steps,
    and the first scores in their order.

    Early is a position that is read with gradients on, or read at all before an optimiser's step that comes
    before its score: whoever reads it without gradients may train on it all the same."""

    def __init__(self, run: Any):
        self.written = run.written  # and not the run, which holds this: both then go when it goes
        self.steps = 0
        self.early = torch.from_numpy(np.zeros(run.num_positions, bool))
        self.unscored: list[tuple[int, int]] = []  # read since the last step
        self.first: list[tuple[int, int]] = []  # written first, in their order
        self.size = max(run.num_positions // SAMPLE // run.world.size, 4 * run.seq_len)
        self.wanted = self.size

    def read(self, starts: Sequence[int], length: int) -> None:
        """A window of `length` targets from each of `starts`."""
        for start in starts:
            end = start + length
            if torch.is_grad_enabled():
                self.early[start:end] |= self.written[start:end] == 0
            last = self.unscored[-1] if self.unscored else (0, -1)
            if last[0] <= start <= last[1]:
                self.unscored[-1] = last[0], max(last[1], end)
            else:
                self.unscored.append((start, end))

    def wrote(self, start: int, end: int) -> None:
        if self.wanted > 0:
            self.wanted -= end - start
            if self.first and self.first[-1][1] == start:
                start = self.first.pop()[0]
            self.first.append((start, end))

    def stepped(self, *_: Any) -> None:
        self.steps += 1
        for start, end in self.unscored:
            self.early[start:end] |= self.written[start:end] == 0
        self.unscored.clear()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Rows are read side by side whose steps are on parameters of their own: that a later row's step
        comes before an earlier row's score says nothing. Reads with gradients on count all the same."""
        unscored = [*self.unscored]
        yield
        self.unscored = unscored

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Every optimiser's step in here counts."""
        handle = register_optimizer_step_post_hook(self.stepped)
        try:
            yield
        finally:
            handle.remove()

    def num_early(self, world: Any) -> int:
        """Over all ranks; a position counts on the rank that scored it."""
        mine = (self.early & self.written.view(torch.bool)).count_nonzero()
        return int(world.sum(mine.to(world.device, torch.float64)))

    def sample(self) -> Tensor:
        """The positions int32 [n] that got the first scores."""
        spans = [torch.arange(start, end, dtype=torch.int32) for start, end in self.first]
        return torch.cat(spans)[: self.size]


class TokenView:
    """The validation tokens as a scorer looks at them; each look is noted."""

    stream: Tensor  # [N + 1], uint16
    num_positions: int
    model: Any
    world: Any
    ledger: Meter

    @property
    def tokens(self) -> Tensor:
        """The stream [N + 1], int32: who asks for it has read all of it."""
        self.ledger.read([0], self.num_positions)
        return self.stream.to(torch.int32)

    def bounds(self, token: int) -> Tensor:
        """The stream [N + 1], int32, with -1 in place of all tokens but this one: where documents begin."""
        return torch.full(self.stream.shape, -1, dtype=torch.int32).masked_fill_(self.stream == token, token)

    def window(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """(inputs, targets), each [length] int64 on the device, from position `start`."""
        ids, targets = self.windows([start], length)
        return ids[0], targets[0]

    def windows(self, starts: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
        """(inputs, targets), each [n, length] int64 on the device, from the n positions `starts`."""
        self.ledger.read(starts, length)
        parts = torch.stack([self.stream[start : start + length + 1] for start in starts])
        parts = parts.to(self.world.device).to(torch.int64)
        return parts[:, :-1], parts[:, 1:]

    def nats(self, h: Tensor, targets: Tensor) -> Tensor:
        """Nats of `targets` [..] under hidden states h [.., D]; softmax over the whole vocabulary."""
        return nats_of(self.model, h, targets)


class Enough(BaseException):
    """The sample has its scores; no scorer may catch this."""


def sample_nats(
    run: Any, weights: Mapping[str, Tensor], scorer: Any, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """(positions, their nats) of the first scores of `tokens`, of this process alone and of fresh weights."""
    load_weights(run.model, weights)
    alone = copy.copy(run.world)
    alone.rank = 0
    alone.size = 1
    again = type(run)(run.model, tokens, run.seq_len, run.batch_seqs, alone)
    again.hidden = run.hidden
    again.ledger.size = again.ledger.wanted = run.ledger.size
    write = again.write

    def write_until_enough(start: int, nll: Tensor) -> None:
        write(start, nll)
        if again.ledger.wanted <= 0:
            raise Enough

    again.write = write_until_enough
    with suppress(Enough):
        scorer.score(again)
    del again.write
    run.model.zero_grad(set_to_none=True)
    found = again.ledger.sample()
    return found, again.nll[found]


def score_again(run: Any, weights: Mapping[str, Tensor], make_scorer: Any, bos: int) -> tuple[int, int]:
    """(scores that moved, scores tried): the first ones again, every token replaced whose score comes later.
    Every `bos` stays, for an order may look at those. Where something moves, it counts beyond what a
    second scoring of the same tokens moves (on a GPU gradients are not summed in one order). On several
    ranks the first one tries it, alone."""
    if run.world.rank or bool(run.ledger.early.any()):  # early: it is found out already
        return 0, 0
    found = run.ledger.sample()
    first = run.nll[found]
    if run.world.size > 1:
        found, first = sample_nats(run, weights, make_scorer(), run.stream)
    tokens = run.stream.clone()
    for part in tokens.split(SUMMED_AT_ONCE):
        old = part.int()
        part.copy_(torch.where(old == bos, bos, 2 + (old + 7) % (run.model.tok_emb.size(0) - 2)))
    earlier = F.pad(found + 1, (1, 0)).numpy()
    tokens.numpy()[earlier] = run.stream.numpy()[earlier]
    _, again = sample_nats(run, weights, make_scorer(), tokens)
    moved = (again - first).abs()
    if bool(moved.any()):
        noise = (sample_nats(run, weights, make_scorer(), run.stream)[1] - first).abs().max()
        moved = moved > 4 * noise + 1e-6
    return int(moved.sum()), len(found)
