"""q_ij ← 0 for the stored integers of least (s_i·q_ij)², as many as `fraction` says or as bytes demand.

`fraction` is a share of all stored integers that are not zero yet. With `target_bytes` only |q| = 1 may
fall, and the fewest are sought that bring the whole submission, code and all, to the target: each tensor's
entropy says how bytes fall with the count, and the packings made so far correct it. Of a small file up to 24
are made, until one integer fewer would not fit; of a large one six at most where one of them fits, and
0.05 % of the target is near enough. The file that is submitted is one of them. Where no count fits, all of
them fall, and the report says so and which bytes can be reached. It stands behind the corrections that add
bytes, so that the target is the file's.

Source: "2 %" in PR #569 takes its threshold as a quantile of |q|, which is 0 (8.7 % are zero already), and
so zeroes nothing; the selective ±1 of #609 and #1019 aims at 15.9 · 1024² = 16,672,358 bytes, above the cap,
and never fires. Here bytes are decimal, zeros do not count, and a run that zeroes nothing is inactive. Never
larger: if the file does not shrink, the tensors stay as they were. Cost: two packings for `fraction`, two to
six for `target_bytes` of a large file. What we saw: studies/LOG.md, "quantisers on one trained model".
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from techniques._quant import ByteSearch
from techniques.base import Float, Shape, Technique, setting


class Candidates:
    """The stored integers that may fall, cheapest first: damage (s·q)², ties in their order."""

    def __init__(self, packed: list[Any], only_ones: bool):
        self.packed = packed
        self.items = [i for i, item in enumerate(packed) if item.scale is not None]
        self.places: list[Tensor] = []
        damages: list[Tensor] = []
        for i in self.items:
            q, scale = packed[i].q, packed[i].scale
            chosen = (q.abs() == 1) if only_ones else (q != 0)
            self.places.append(chosen.flatten().nonzero().flatten())
            damages.append((q.float() * scale.float()[:, None]).square().flatten()[self.places[-1]])
        self.order = torch.argsort(torch.cat(damages), stable=True)
        self.total = self.order.numel()

    def pruned(self, count: int) -> list[Any]:
        """Copies of the items with the `count` cheapest at zero."""
        falls = torch.zeros(self.total, dtype=torch.bool)
        falls[self.order[:count]] = True
        out = list(self.packed)
        parts = falls.split([p.numel() for p in self.places])
        for i, place, fall in zip(self.items, self.places, parts, strict=True):
            q = self.packed[i].q.clone()
            q.view(-1)[place[fall]] = 0
            out[i] = dataclasses.replace(self.packed[i], q=q)
        return out


def pruned(packed: list[Any], count: int, only_ones: bool) -> list[Any]:
    """Copies of the items with the `count` cheapest candidates at zero; equal damages fall in their order."""
    return Candidates(packed, only_ones).pruned(count)


class EntropyOfCount:
    """Order-0 entropy of all tensors, bytes, once the cheapest `count` of the candidates are zero; it builds
    no tensor for it."""

    def __init__(self, candidates: Candidates):
        self.counts = torch.zeros(len(candidates.items), 256, dtype=torch.float64)
        labels = []
        for row, (i, place) in enumerate(zip(candidates.items, candidates.places, strict=True)):
            symbols = candidates.packed[i].q.flatten().to(torch.int32) + 128
            self.counts[row] = torch.bincount(symbols, minlength=256).double()
            labels.append(row * 256 + symbols[place])
        self.labels = torch.cat(labels)[candidates.order]

    def bytes(self, count: int) -> float:
        fallen = torch.bincount(self.labels[:count], minlength=self.counts.numel()).view(self.counts.shape)
        left = self.counts - fallen
        left[:, 128] += fallen.sum(1)
        totals = left.sum(1, keepdim=True).clamp_min(1)
        return float(-(left * (left.clamp_min(1) / totals).log2()).sum() / 8)


class Prune(Technique):
    """The cheapest stored integers become zero."""

    name = "prune"
    reference = "PR #569 (global), #609, #1019 (selective ±1)"
    stage = "quantize"
    after = ("awq_lite", "lqer", "quant_gate")
    space = {"fraction": Float(0.005, 0.2, log=True)}
    smoke = {"fraction": 0.05}

    @dataclass(frozen=True)
    class Config:
        fraction: float = setting(0.02, "share of the nonzero stored integers", low=0.0, high=0.9)
        target_bytes: int = setting(
            0, "bytes of the whole submission to come down to; 0: prune `fraction`", low=0
        )

    def check(self, shape: Shape) -> None:
        if not (self.config.fraction or self.config.target_bytes):
            raise ValueError("`prune` zeroes nothing without fraction or target_bytes. Set one of them.")

    @property
    def aims_at_bytes(self) -> bool:
        return bool(self.config.target_bytes)

    def correct(self, packed: Any, export: Any) -> Any:
        c = self.config
        if all(item.scale is None for item in packed):
            return packed  # no tensor is stored as integers
        candidates = Candidates(packed, bool(c.target_bytes))
        total, sizes = candidates.total, {0: export.bytes(packed)}
        facts: dict[str, Any] = {"candidates": total, "bytes_before": sizes[0]}
        if c.target_bytes:
            search = self.search(candidates, sizes, export)
            count = search.run()
            facts |= search.facts(count)
        else:
            count = round(c.fraction * total)
        out = candidates.pruned(count)
        if count not in sizes:
            sizes[count] = export.bytes(out)
        if sizes[count] > sizes[0]:
            out, count = packed, 0
        facts |= {"newly_zeroed": count, "packings": len(sizes), "bytes_after": sizes[count]}
        export.note(**facts)
        return out

    def search(self, candidates: Candidates, sizes: dict[int, int], export: Any) -> ByteSearch:
        """For the fewest that fit the target; `sizes` gets the bytes of the counts tried."""

        def measure(count: int) -> int:
            return export.bytes(candidates.pruned(count))

        entropy = functools.cache(EntropyOfCount(candidates).bytes)
        return ByteSearch(self.config.target_bytes, candidates.total, entropy, measure, sizes)
