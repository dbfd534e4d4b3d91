"""Ŵ_S ← int8 of W_S + E_R·H_RS·H_SS⁻¹ for the most salient group S of columns: AWQ-lite.

A group is `group` neighbouring columns; its saliency is the mean over them of sqrt(H_jj)·mean_i|w_ij|, the
inputs' RMS times the weights. R is the rest, E_R = W_R − Ŵ_R its error as gptq left it: the formula is the
least tr(E·H·Eᵀ) that S can still reach, which gptq's solve rounds at 8 bits with a scale a row of S. The
group's low-bit integers become zero. A matrix whose Hessian error would not fall stays as it is, and is
counted.

Source: PR #1908 (top group of 64, -0.0002 BPB alone in #1918), which gives the group its 8 bits inside of
GPTQ's solve; here the group is solved behind it, so that it takes the whole error of the others up. Needs
gptq's Hessians. Cost: per matrix rows · group bytes at 8 bits in place of the stored ones, and two bytes a
row. What we saw: studies/LOG.md, "quantisers on one trained model".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from techniques._quant import gptq_solve, hessian_error, round_rows
from techniques.base import Cost, Int, Shape, Technique, setting
from trainer.artifact import Fix


@dataclass(frozen=True)
class Solve:
    """Of the group: gptq's defaults."""

    damp: float = 0.01
    act_order: bool = True
    block_size: int = 128
    factor: str = "inverse"


def salient_group(weight: Tensor, hessian: Tensor, group: int) -> int:
    """First column of the group of largest mean saliency; the last group may be narrower."""
    saliency = hessian.diagonal().clamp_min(0).sqrt() * weight.abs().mean(0)
    return group * int(torch.stack([part.mean() for part in saliency.split(group)]).argmax())


def best_columns(weight: Tensor, stored: Tensor, hessian: Tensor, columns: slice) -> Tensor:
    """float64 [r,s]: what Ŵ's columns would be under the least tr(E·H·Eᵀ), all others kept."""
    w, h = weight.double(), hessian.double()
    error = w - stored.double()
    error[:, columns] = 0
    inner = h[columns, columns].clone()
    inner.diagonal().add_(Solve.damp * inner.diagonal().mean() + 1e-12)
    return w[:, columns] + torch.linalg.solve(inner, (error @ h[:, columns]).T).T


def error_of(weight: Tensor, stored: Tensor, hessian: Tensor) -> float:
    return float(hessian_error(weight, stored, torch.ones(len(weight)), hessian))


class AwqLite(Technique):
    """The columns that matter most, at 8 bits."""

    name = "awq_lite"
    reference = "PR #1908, #1918; AWQ, arXiv:2306.00978"
    stage = "quantize"
    requires = ("gptq",)
    after = ("quant_gate",)
    space = {"group": Int(16, 128, log=True)}
    env = {"AWQ_LITE_ENABLED": "on"}
    smoke = {"group": 16}

    @dataclass(frozen=True)
    class Config:
        group: int = setting(64, "columns of a group", low=1, high=4096)

    def cost(self, shape: Shape) -> Cost:
        matrices = [t for t in shape.tensor_specs() if t.role in ("attn", "mlp")]
        wider = sum(t.shape[0] * min(self.config.group, t.shape[1]) for t in matrices)
        return Cost(artifact_bytes=0.35 * wider + 2.0 * sum(t.shape[0] for t in matrices))

    def correct(self, packed: Any, export: Any) -> Any:
        out, ratios, rejected = list(packed), {}, 0
        for i, item in enumerate(packed):
            hessian = export.hessians.get(item.name)
            if hessian is None or item.scale is None or export.roles[item.name] not in ("attn", "mlp"):
                continue
            fixed, ratio = self.fixed(item, export.weights[item.name], hessian.cpu())
            if ratio < 1:
                out[i], ratios[item.name] = fixed, ratio
            else:
                rejected += 1
        mean = sum(ratios.values()) / len(ratios) if ratios else None
        export.note(corrected=len(ratios), rejected=rejected, hessian_error_left=mean)
        return out

    def fixed(self, item: Any, weight: Tensor, hessian: Tensor) -> tuple[Any, float]:
        """(the item with its group at 8 bits, its Hessian error over that without)."""
        at = salient_group(weight, hessian, self.config.group)
        columns = slice(at, min(at + self.config.group, weight.size(1)))
        stored = item.dequantized()
        best = best_columns(weight, stored, hessian, columns)
        scale = (best.abs().amax(1) / 127).clamp_min(1e-7).to(torch.float16)
        solved = gptq_solve(best, hessian[columns, columns], scale[None], 8, Solve())
        q = round_rows(best, scale, 8) if solved is None else solved[0]
        low = item.q.clone()
        low[:, columns] = 0
        fixed = dataclasses.replace(item, q=low, fixes=(*item.fixes, Fix("columns", q, scale, at)))
        before = error_of(weight, stored, hessian)
        return fixed, error_of(weight, fixed.dequantized(), hessian) / before if before else 1.0
