"""Ŵ ← Ŵ + A·B with A·B the rank-r part of E = W − Ŵ, for the `tensors` stored matrices of largest ‖E‖_F:
LQER.

From the SVD of E: A = U_r·S_r [rows,r] in two bits, −2 … 1 under one scale max|A|/1.5; B = V_rᵀ [r,cols] in
four bits, −8 … 7 with a scale max/7.5 for each group of `group` elements (of fewer, where only fewer divide
r·cols). A correction that would not bring
Ŵ nearer to W is left out and counted.

Source: LQER, arXiv:2402.02446; asymmetric form of PR #1797 and #1855 (r 4, 3 tensors, groups of 64), #2060
(r 2, 4 tensors, groups of 32). In #1855 the three are the int7 embedding and MLP up-projections. The gain
was never isolated. Cost: rows·r/4 + cols·r/2 bytes a tensor before the codec, a small SVD. What we saw:
studies/LOG.md, "quantisers on one trained model".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from techniques.base import Cost, Int, Shape, Technique, setting
from trainer.artifact import Fix


def round_group(x: Tensor, group: int, low: int, high: int, divisor: float) -> tuple[Tensor, Tensor]:
    """(q int8 [n, group], scale float16 [n]) of x's elements in groups, s = max/divisor."""
    rows = x.reshape(-1, group)
    scale = (rows.abs().amax(1) / divisor).clamp_min(1e-7).to(torch.float16)
    q = torch.round(rows / scale.float()[:, None]).clamp(low, high)
    return q.to(torch.int8), scale


def whole_group(numel: int, group: int) -> int:
    """The most elements, at most `group`, that divide `numel`."""
    return next(size for size in range(min(group, numel), 0, -1) if numel % size == 0)


def low_rank_fixes(error: Tensor, rank: int, group: int) -> list[Fix]:
    """The two stored factors of `error` [rows,cols]."""
    rank = min(rank, *error.shape)
    u, s, vt = torch.linalg.svd(error.double(), full_matrices=False)
    left, right = (u[:, :rank] * s[:rank]).float(), vt[:rank].float()
    a, a_scale = round_group(left, left.numel(), -2, 1, 1.5)
    b, b_scale = round_group(right, whole_group(right.numel(), group), -8, 7, 7.5)
    return [Fix("left", a, a_scale), Fix("right", b, b_scale)]


class Lqer(Technique):
    """A low-rank correction of the worst-rounded matrices."""

    name = "lqer"
    reference = "arXiv:2402.02446; PR #1797, #1855, #2060"
    stage = "quantize"
    after = ("awq_lite", "quant_gate")
    space = {"rank": Int(1, 16, log=True), "tensors": Int(1, 12)}
    env = {
        "LQER_ENABLED": "on",
        "LQER_RANK": "rank",
        "LQER_TOP_K": "tensors",
        "LQER_ASYM_GROUP": "group",
    }
    smoke = {"rank": 4, "tensors": 2, "group": 32}

    @dataclass(frozen=True)
    class Config:
        rank: int = setting(4, "columns of A", low=1, high=256)
        tensors: int = setting(3, "matrices that are corrected, at most", low=1, high=1000)
        group: int = setting(64, "elements of B that share a scale", low=1, high=65_536)

    def cost(self, shape: Shape) -> Cost:
        """As if the largest matrices were the worst: A in two bits, B in four, scales in float16."""
        c, total = self.config, 0.0
        matrices = [t for t in shape.tensor_specs() if len(t.shape) == 2 and t.role != "scalar"]
        for t in sorted(matrices, key=lambda t: -t.numel)[: c.tensors]:
            rank = min(c.rank, *t.shape)
            right = rank * t.shape[1]
            total += rank * t.shape[0] / 4 + right / 2 + 2 * (1 + right / whole_group(right, c.group))
        return Cost(artifact_bytes=total)

    def correct(self, packed: Any, export: Any) -> Any:
        c, out = self.config, list(packed)
        errors = {
            i: export.weights[item.name].float() - item.dequantized()
            for i, item in enumerate(packed)
            if item.scale is not None and export.roles[item.name] != "gate"
        }
        worst = sorted(errors, key=lambda i: (-float(errors[i].norm()), i))[: c.tensors]
        gains, rejected = {}, 0
        for i in worst:
            fixes = low_rank_fixes(errors[i], c.rank, c.group)
            fixed = dataclasses.replace(packed[i], fixes=(*packed[i].fixes, *fixes))
            left = float((export.weights[packed[i].name].float() - fixed.dequantized()).norm())
            if left < float(errors[i].norm()):
                out[i], gains[packed[i].name] = fixed, left / float(errors[i].norm())
            else:
                rejected += 1
        export.note(error_left=gains, rejected=rejected)
        return out
