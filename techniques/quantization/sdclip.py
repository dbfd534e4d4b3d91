"""s_i = k·std(w_i)/qmax for each row i, times 1 + λ(r_i − 1) where a Hessian is there: SDClip.

r_i = mean_j |w_ij|·H_jj/mean(diag H), then over its mean over the rows. Both plain rounding and gptq round
under these scales; gptq then searches no percentile. Larger k: finer use of few symbols, a smaller file,
more error: σ_q = qmax/k, so a Gaussian row's entropy is about log2(4.13·qmax/k); at int6 and k = 12.85
nothing is clipped.

Source: PR #1394 (k 12.85 at int6, 20 for the int8 embedding), #1412 (λ 0.175; 0.30 was worse), #1626 and
#1855 (MLP 12.0 and 11.5, attention 13.0, embedding 14 or 15 at int7). Cost: none. λ > 0 needs gptq, which
collects H; tensors that it has none for (the embedding, unless `gptq.embedding`) keep λ = 0. Conflicts:
gptq_lite searches the clip itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from techniques.base import Float, Technique, Unavailable, setting

TINY_SD_SCALE = 1e-7  # above float16's smallest subnormal: a constant row keeps a scale that divides


def sd_scales(weight: Tensor, bits: int, k: float, hessian: Tensor | None, strength: float) -> Tensor:
    """Scales float16 [r] of weight [r,c]; hessian [c,c]."""
    w = weight.float()
    scale = k * w.std(dim=1) / (2 ** (bits - 1) - 1)
    if hessian is not None and strength:
        diagonal = hessian.diagonal().float()
        rows = (w.abs() * (diagonal / diagonal.mean().clamp_min(1e-30))).mean(1)
        scale = scale * (1.0 + strength * (rows / rows.mean().clamp_min(1e-30) - 1.0))
    return scale.clamp_min(TINY_SD_SCALE).to(torch.float16)


class SdClip(Technique):
    """Rows clipped at k standard deviations."""

    name = "sdclip"
    reference = "PR #1394, #1412 (Hessian-aware), #1626, #1855"
    stage = "quantize"
    conflicts = {"gptq_lite": "each of them chooses the clip of a row"}
    setting_requires = {"hessian_lambda": "gptq"}
    space = {
        "attn_k": Float(6.0, 30.0, log=True),
        "mlp_k": Float(6.0, 30.0, log=True),
        "embed_k": Float(6.0, 30.0, log=True),
        "hessian_lambda": Float(0.0, 0.5),
    }
    env = {
        "ATTN_CLIP_SIGMAS": "attn_k",
        "MLP_CLIP_SIGMAS": "mlp_k",
        "EMBED_CLIP_SIGMAS": "embed_k",
        "HESSIAN_CLIP_LAMBDA": "hessian_lambda",
    }
    unseen = ("hessian_lambda",)  # it needs the Hessians of gptq
    smoke = {"attn_k": 5.0, "mlp_k": 5.0, "embed_k": 5.0}

    @dataclass(frozen=True)
    class Config:
        attn_k: float = setting(12.85, "standard deviations at qmax, attention", low=0.5, high=200.0)
        mlp_k: float = setting(12.85, "standard deviations at qmax, MLP", low=0.5, high=200.0)
        embed_k: float = setting(20.0, "the same, embedding and head", low=0.5, high=200.0)
        matrix_k: float = setting(12.85, "the same, matrices that techniques add", low=0.5, high=200.0)
        hessian_lambda: float = setting(0.0, "how far rows with large inputs widen", low=0.0, high=1.0)

    def row_scale(self, role: str) -> Any:
        c: Any = self.config
        k = {"attn": c.attn_k, "mlp": c.mlp_k, "embed": c.embed_k, "head": c.embed_k}.get(role, c.matrix_k)

        def rule(weight: Tensor, bits: int, hessian: Tensor | None) -> Tensor:
            if hessian is None and c.hessian_lambda and role in ("attn", "mlp"):
                raise Unavailable(
                    "`sdclip.hessian_lambda` needs the inputs' Hessians, but nothing collects them. Turn "
                    "gptq on, or set hessian_lambda to 0."
                )
            return sd_scales(weight, bits, k, hessian, c.hessian_lambda)

        return rule
