"""One pass over the stream: every query sees its last W keys, each token is scored once. W ≤ S.

What a layer knows of a position reaches W − 1 back, so L layers reach L·(W − 1): a token's context never
starts anew, and is longer than any that training saw (keys and values of a cache, as text is generated).
Rows of `row_tokens` new tokens go through the model one after the other; each attention keeps the keys, not
yet rotated, and the values of the last W − 1 positions, so memory does not grow with the stream. What
reaches a few positions back without attention (smear_gate, bigram_hash, canon) finds them in the 128
positions before, which every row runs again without their keys, values and scores.
`shares` equal parts of the stream are passes of their own, for ranks, each behind W − 1 tokens that are not
scored; a stream of fewer than 8·W tokens a share is cut into fewer.
Kernels: `blocked`, matrix products over 64 queries and their W + 63 keys; `flex`, FlexAttention, compiled:
`auto` takes it on a GPU.
Source: this repository; a sliding-window attention (Beltagy et al. 2020, Longformer; Child et al. 2019) at
evaluation alone. A protocol of its own: its score is no sliding window's. Cost: one pass, its attention W
keys a token where the plain protocol has S/2 on average. Conflicts: it is the scorer, another one cannot be
on; varlen_attention, whose mask it would have to meet.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from techniques.base import LEGAL, Cost, Int, Legality, Shape, Technique, setting
from trainer.attention import BLOCK, by_group, by_position

BAND_HALO = 128  # positions that a row runs again
BAND_ROW = 4096  # new tokens of a row, at least


def in_band(query: Tensor, key: Tensor, window: int) -> Tensor:
    """Whether the query at a position sees the key at another."""
    return (query >= key) & (query < key + window)


def banded_blocked(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """q [B,T,H,Dh] of the last T positions of k and v [B,N,K,Dh] -> y [B,T,H,Dh]."""
    t = q.size(1)
    kv_heads = k.size(2)
    before = k.size(1) - t
    q = by_group(q * q.size(3) ** -0.5, kv_heads)
    k = by_group(k, kv_heads)
    v = by_group(v, kv_heads)
    group = q.size(1) // t
    y = torch.empty_like(q)
    hidden: dict[tuple[int, int], Tensor] = {}  # of blocks of one form
    for i in range(0, t, BLOCK):
        end = min(i + BLOCK, t)
        rows = slice(i * group, end * group)
        seen = slice(max(0, before + i - window + 1), before + end)
        if (form := (end - i, seen.stop - seen.start)) not in hidden:
            at = torch.arange(seen.start, seen.stop, device=q.device)
            inside = in_band(at[i - end :, None], at, window)
            hidden[form] = torch.where(inside, 0.0, -torch.inf).to(q.dtype)[:, None]
        scores = torch.bmm(q[:, rows], k[:, seen].mT)
        scores.view(-1, end - i, group, form[1]).add_(hidden[form])
        y[:, rows] = torch.bmm(torch.softmax(scores, -1), v[:, seen])
    return by_position(y, t, kv_heads)


@functools.cache
def band_blocks(t: int, n: int, window: int, device: torch.device) -> Any:
    """FlexAttention's mask of t queries behind n − t earlier keys."""
    return create_block_mask(lambda _b, _h, q, k: in_band(q + n - t, k, window), None, None, t, n, device)


@functools.cache
def compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


def banded_flex(q: Tensor, k: Tensor, v: Tensor, window: int, attend: Any = None) -> Tensor:
    """The same by FlexAttention."""
    mask = band_blocks(q.size(1), k.size(1), window, q.device)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.size(1) != k.size(1)
    return (attend or compiled_flex())(q, k, v, block_mask=mask, enable_gqa=grouped).transpose(1, 2)


def lengthen(rope: Any, length: int) -> dict[str, Tensor]:
    """The rotary tables of evaluation's own length, [length, 1, ..], under every name that `rope` has for
    tables; the angle of position 1 says them all."""
    late = "_long" if hasattr(rope, "cos_long") else ""
    angle = torch.atan2(getattr(rope, "sin" + late)[1:2].double(), getattr(rope, "cos" + late)[1:2].double())
    angles = angle * torch.arange(length, device=angle.device)[:, None, None]
    made = {"cos": angles.cos().float(), "sin": angles.sin().float()}
    return {name + end: table for name, table in made.items() for end in {"", late}}


class Band:
    """Keys and values of the positions before a row, of every attention in the order in which the row's
    forward comes to it."""

    def __init__(self, window: int, kernel: str):
        self.window = window
        self.kernel = kernel
        self.begin(again=0)
        self.forget()

    def forget(self) -> None:
        self.keys: dict[tuple[int, int], Tensor] = {}  # layer, its visit -> [1, ≤ W − 1 + halo, K, Dh]
        self.past_values: dict[tuple[int, int], Tensor] = {}

    def begin(self, again: int) -> None:
        """A row whose first `again` positions stand in the cache."""
        self.again = again
        self.visits: dict[int, int] = {}

    def extended(self, kept: dict[tuple[int, int], Tensor], at: tuple[int, int], x: Tensor) -> Tensor:
        new = x[:, self.again :]
        whole = torch.cat((kept[at], new), 1) if at in kept else new
        kept[at] = whole[:, -(self.window - 1 + BAND_HALO) :].clone()
        return whole

    def rotate(self, layer: int, rope: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """q [1,T,H,Dh], and k [1,N,K,Dh] of the positions before as well."""
        self.visits[layer] = self.visits.get(layer, 0) + 1
        k = self.extended(self.keys, (layer, self.visits[layer]), k)
        before = k.size(1) - q.size(1)
        q, k = rope(F.pad(q, (0, 0, 0, 0, before, 0)), k)
        return q[:, before:], k

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, _ctx: Any) -> Tensor:
        v = self.extended(self.past_values, (layer, self.visits[layer]), v)
        flex = self.kernel == "flex" or (self.kernel == "auto" and q.is_cuda)
        return (banded_flex if flex else banded_blocked)(q, k, v, self.window)


@contextmanager
def banded_model(model: Any, length: int) -> Iterator[Callable[[Band], None]]:
    """Every attention goes through the Band that is given last; `length` positions a row at most, those
    before it counted. The model is as it was at the end."""
    tables: list[tuple[Any, str, Tensor]] = []
    found = [(layer, block.attn) for layer, block in enumerate(model.blocks) if block.attn is not None]

    def use(band: Band) -> None:
        for layer, attn in found:
            attn.rope.parts = [functools.partial(band.rotate, layer, ropes[layer])]
            attn.attend.parts = [functools.partial(band.attend, layer)]

    ropes = {layer: attn.rope.parts[0] for layer, attn in found}
    saved = [(slot, slot.parts) for _, attn in found for slot in (attn.rope, attn.attend)]
    for rope in set(ropes.values()):
        for name, table in lengthen(rope, length).items():
            tables.append((rope, name, getattr(rope, name)))
            setattr(rope, name, table)
    try:
        yield use
    finally:
        for slot, parts in saved:
            slot.parts = parts
        for rope, name, table in tables:
            setattr(rope, name, table)


class BandedScorer:
    """Ranks take contiguous shares of the stream."""

    def __init__(self, config: Any):
        self.config = config
        self.facts: dict[str, Any] = {}

    def score(self, run: Any) -> None:
        c = self.config
        n = run.num_positions
        window = c.window or run.seq_len
        size = c.row_tokens or max(BAND_ROW, 2 * window)
        size = size if c.carry else min(size, window)
        shares = max(1, min(c.shares, n // (8 * window)))
        self.facts = {"window": window, "shares": shares, "rows": 0}
        with torch.no_grad(), banded_model(run.model, window - 1 + BAND_HALO + size) as use:
            for share in run.world.my_range(shares):
                use(band := Band(window, c.kernel))
                first = n * share // shares
                end = n * (share + 1) // shares
                for start in range(max(0, first - window + 1), end, size):
                    self.score_row(run, band, (max(start, first), start, min(start + size, end)))

    def score_row(self, run: Any, band: Band, row: tuple[int, int, int]) -> None:
        """The positions start … end - 1; those from `first` on get their score."""
        first, start, end = row
        if not self.config.carry:
            band.forget()
        again = min(BAND_HALO, next((k.size(1) for k in band.keys.values()), 0))
        band.begin(again)
        ids, targets = run.windows([start - again], end - start + again)
        h = run.model.hidden(ids)
        self.facts["rows"] += 1
        if first < end:
            context = again + first - start
            run.write(first, run.nats(h[:, context:], targets[:, context:])[0])


class Banded(Technique):
    """One left-to-right pass in which every query sees its last W keys."""

    name = "banded"
    reference = "this repository; after sliding-window attention (Longformer, Mistral)"
    legality = Legality(LEGAL.verdict, "a frozen model under a strict prefix: issue #1017, track A")
    stage = "evaluate"
    conflicts = {"varlen_attention": "its mask of documents and the band would have to be one"}
    null = {"carry": False}
    space = {"window": Int(64, "eval_seq_len", log=True)}
    smoke = {"window": 12, "row_tokens": 40, "shares": 2}

    @dataclass(frozen=True)
    class Config:
        window: int = setting(0, "W, keys that a query sees; 0: the evaluation sequence", low=0, high=65_536)
        row_tokens: int = setting(0, "new tokens of a row; 0: 4096, and 2·W at least", low=0, high=1 << 24)
        shares: int = setting(8, "parts of the stream that are passes of their own", low=1, high=65_536)
        carry: bool = setting(True, "rows see what stands before; off: each begins anew, of W tokens at most")
        kernel: str = setting("auto", "auto, flex or blocked", choices=("auto", "flex", "blocked"))

    def check(self, shape: Shape) -> None:
        if self.config.window > shape.eval_seq_len:
            raise ValueError(
                f"`banded.window` must be at most the evaluation sequence, but got {self.config.window} and "
                f"{shape.eval_seq_len}."
            )

    def cost(self, shape: Shape) -> Cost:
        window = self.config.window or shape.eval_seq_len
        attended = shape.num_layers - shape.bare_layers
        scores = 4.0 * attended * shape.model_dim * (window - shape.eval_seq_len / 2)
        again = BAND_HALO / (self.config.row_tokens or max(BAND_ROW, 2 * window))
        return Cost(eval_passes=max(0.0, scores / shape.flops_per_token()) + again)

    def scorer(self) -> BandedScorer:
        return BandedScorer(self.config)
