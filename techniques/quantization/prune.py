"""q_ij ← 0 for the stored integers of least (s_i·q_ij)², as many as `fraction` says or as bytes demand.

`fraction` is a share of all stored integers that are not zero yet. With `target_bytes` only |q| = 1 may
fall, and the smallest number of them is sought (by bisection, each try packs) that brings the whole
submission, code and all, to the target; where none does, all of them fall and `fits` is False in the report.

Source: "2 %" in PR #569 takes its threshold as a quantile of |q|, which is 0 (8.7 % are zero already), and
so zeroes nothing; the selective ±1 of #609 and #1019 aims at 15.9 · 1024² = 16,672,358 bytes, above the cap,
and never fires. Here bytes are decimal, zeros do not count, and a run that zeroes nothing is inactive. Never
larger: if the file does not shrink, the tensors stay as they were. Cost: seconds of packing. What we saw:
studies/LOG.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from techniques.base import Float, Shape, Technique, setting

PRUNE_TRIES = 16  # of the bisection


def prune_candidates(packed: list[Any], only_ones: bool) -> tuple[list[int], list[Tensor], Tensor]:
    """(items with integers, their flat candidates' indices, damage (s·q)² of all candidates one after the
    other)."""
    items = [i for i, item in enumerate(packed) if item.scale is not None]
    places: list[Tensor] = []
    damages: list[Tensor] = []
    for i in items:
        q, scale = packed[i].q, packed[i].scale
        chosen = (q.abs() == 1) if only_ones else (q != 0)
        places.append(chosen.flatten().nonzero().flatten())
        damages.append((q.float() * scale.float()[:, None]).square().flatten()[places[-1]])
    return items, places, torch.cat(damages)


def pruned(packed: list[Any], count: int, only_ones: bool) -> list[Any]:
    """Copies of the items with the `count` cheapest candidates at zero; equal damages fall in their order."""
    items, places, damage = prune_candidates(packed, only_ones)
    falls = torch.zeros(damage.numel(), dtype=torch.bool)
    falls[torch.argsort(damage, stable=True)[:count]] = True
    out = list(packed)
    for i, place, fall in zip(items, places, falls.split([p.numel() for p in places]), strict=True):
        q = packed[i].q.clone()
        q.view(-1)[place[fall]] = 0
        out[i] = dataclasses.replace(packed[i], q=q)
    return out


class Prune(Technique):
    """The cheapest stored integers become zero."""

    name = "prune"
    reference = "PR #569 (global), #609, #1019 (selective ±1)"
    stage = "quantize"
    after = ("quant_gate",)
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

    def correct(self, packed: Any, export: Any) -> Any:
        c = self.config
        total = int(prune_candidates(packed, bool(c.target_bytes))[2].numel())
        before = export.bytes(packed)
        if c.target_bytes:
            count = self.fewest(packed, total, export)
        else:
            count = round(c.fraction * total)
        out = pruned(packed, count, bool(c.target_bytes))
        after = export.bytes(out)
        if after > before:
            out, after, count = packed, before, 0
        facts: dict[str, Any] = {"newly_zeroed": count, "candidates": total}
        facts |= {"bytes_before": before, "bytes_after": after}
        if c.target_bytes:
            facts["fits"] = after <= c.target_bytes
        export.note(**facts)
        return out

    def fewest(self, packed: list[Any], total: int, export: Any) -> int:
        """The smallest number found that fits the target; all candidates if none does."""
        target = self.config.target_bytes
        if export.bytes(packed) <= target:
            return 0
        low, high = 0, total  # `low` does not fit
        for _ in range(PRUNE_TRIES):
            middle = (low + high) // 2
            if middle in (low, high):
                break
            fits = export.bytes(pruned(packed, middle, True)) <= target
            low, high = (low, middle) if fits else (middle, high)
        return high
