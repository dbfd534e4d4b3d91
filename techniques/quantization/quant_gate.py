"""g ≈ s_i·q_ij, s_i = max_j |g_ij|/127: attention gates as int8 by row instead of float16.

Which tensors: those of role `gate` (the attention gates), 2-D, of 32 to 8192 elements. Source: PR #1736,
#1855 (QuantGate): a few kilobytes with sparse gates, 15 to 40 with dense ones. Relative error below 1 % of
the row's maximum. Without a gate on it changes nothing, and the activity audit says so. Cost: none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from techniques.base import Technique, setting


class QuantGate(Technique):
    """Gates stored as int8."""

    name = "quant_gate"
    reference = "PR #1736, #1855"
    stage = "quantize"
    requires = ("attention_gate",)
    env = {"GATED_ATTN_QUANT_GATE": "on"}

    @dataclass(frozen=True)
    class Config:
        min_numel: int = setting(32, "elements of the smallest gate that is quantised", low=1)
        max_numel: int = setting(8192, "elements of the largest", low=1)

    def correct(self, packed: Any, export: Any) -> Any:
        return [self.stored(item, export) for item in packed]

    def stored(self, item: Any, export: Any) -> Any:
        c, w = self.config, export.weights[item.name].float()
        fits = w.ndim == 2 and c.min_numel <= w.numel() <= c.max_numel
        if export.roles[item.name] != "gate" or not fits or item.scale is not None:
            return item
        scale = (w.abs().amax(1) / 127).clamp_min(1e-7).to(torch.float16)
        q = torch.round(w / scale.float()[:, None]).clamp(-127, 127).to(torch.int8)
        return replace(item, q=q, scale=scale)
