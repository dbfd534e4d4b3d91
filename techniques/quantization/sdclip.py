"""s_i = k·std(w_i)/qmax for each row i, times 1 + λ(r_i − 1) where a Hessian is there: SDClip.

r_i = mean_j |w_ij|·H_jj/mean(diag H), then over its mean over the rows. Both plain rounding and gptq round
under these scales; gptq then searches no percentile. Larger k: finer use of few symbols, a smaller file,
more error: σ_q = qmax/k, so a Gaussian row's entropy is about log2(4.13·qmax/k); at int6 and k = 12.85
nothing is clipped.

With `target_bytes` all k are multiplied by one number, the least of MULTIPLES under which the whole
submission, code and all, fits: above 1 where it would not fit, below 1 where bytes are left, but never below
the multiple at which plain rounding errs least (from there on more is clipped than resolved). The entropy of
some rows, rounded under each multiple, says how bytes fall, and the packings made so far, of tensors rounded
and corrected anew, correct it. Of a small file up to 24 are made, until the next smaller multiple would not
fit; of a large one six at most where one of them fits, and 0.05 % of the target is near enough. The file that
is submitted is one of them. Where none fits, the report says so and which bytes can be reached.
`fit_multiple` in the report is the number.

Source: PR #1394 (k 12.85 at int6, 20 for the int8 embedding), #1412 (λ 0.175; 0.30 was worse), #1626 and
#1855 (MLP 12.0 and 11.5, attention 13.0, embedding 14 or 15 at int7). Cost: none; with `target_bytes` a
rounding (of gptq: a solve) and a packing each time. λ > 0 needs gptq, which collects H; tensors that it has
none for (the embedding, unless `gptq.embedding`) keep λ = 0. Conflicts: gptq_lite searches the clip itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from techniques._quant import ByteSearch, entropy_bytes, round_rows
from techniques.base import Float, Technique, Unavailable, setting

MULTIPLES = (1 / 4, 16)  # multiples of all k that `target_bytes` may come to
STEPS_A_DOUBLING = 4096  # steps of a doubling
SAMPLE_ROWS = 32  # of each tensor, evenly spaced: the entropy of these stands for all
POINTS_A_DOUBLING = 8  # points of a doubling at which they are rounded
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


def multiple_of(step: int) -> float:
    return MULTIPLES[0] * 2 ** (step / STEPS_A_DOUBLING)


class EntropyOfMultiple:
    """Entropy, bytes, and squared error over the variance, of an export's integers under multiples of all k,
    by some rows of each tensor, rounded plainly. `rule` is the technique's row_scale."""

    def __init__(self, bits_of: Mapping[str, int], export: Any, rule: Callable[[str, float], Any]):
        self.steps = np.arange(
            0,
            round(STEPS_A_DOUBLING * np.log2(MULTIPLES[1] / MULTIPLES[0])) + 1,
            STEPS_A_DOUBLING // POINTS_A_DOUBLING,
        )
        sizes = np.zeros(len(self.steps))
        self.errors = np.zeros(len(self.steps))
        for name, bits in bits_of.items():
            weight = export.weights[name].float()
            rows = weight[:: -(-len(weight) // SAMPLE_ROWS)]
            hessian = export.hessians.get(name)
            hessian = None if hessian is None else hessian.cpu()
            unit = weight.numel() / max(float(rows.square().sum()), 1e-30)
            for i, step in enumerate(self.steps):
                scale = rule(export.roles[name], multiple_of(step))(rows, bits, hessian)
                q = round_rows(rows, scale, bits)
                sizes[i] += entropy_bytes(q) * weight.numel() / rows.numel()
                self.errors[i] += unit * float((rows - q * scale.float()[:, None]).square().sum())
        self.sizes = np.minimum.accumulate(sizes)

    def bytes(self, step: int) -> float:
        return float(np.interp(step, self.steps, self.sizes))


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
        target_bytes: int = setting(
            0, "bytes of the whole submission that all k are multiplied for; 0: k as they are", low=0
        )

    @property
    def aims_at_bytes(self) -> bool:
        return bool(self.config.target_bytes)

    multiple = 1.0  # of all k, while a fit tries others

    def row_scale(self, role: str) -> Any:
        return self.scaled(role, self.multiple)

    def scaled(self, role: str, multiple: float) -> Any:
        c: Any = self.config
        k = {"attn": c.attn_k, "mlp": c.mlp_k, "embed": c.embed_k, "head": c.embed_k}.get(role, c.matrix_k)
        k = k * multiple

        def rule(weight: Tensor, bits: int, hessian: Tensor | None) -> Tensor:
            if hessian is None and c.hessian_lambda and role in ("attn", "mlp"):
                raise Unavailable(
                    "`sdclip.hessian_lambda` needs the inputs' Hessians, but nothing collects them. Turn "
                    "gptq on, or set hessian_lambda to 0."
                )
            return sd_scales(weight, bits, k, hessian, c.hessian_lambda)

        return rule

    def fit(self, packed: Any, bits: dict[str, int], export: Any, again: Any) -> Any:
        if not self.config.target_bytes or not bits:
            return packed
        curve = EntropyOfMultiple(bits, export, self.scaled)
        own = round(STEPS_A_DOUBLING * np.log2(1 / MULTIPLES[0]))  # the step of multiple 1
        first = min(own, int(curve.steps[curve.errors.argmin()]))
        tried = {own - first: packed}
        export.seams.audit.keep(own - first)

        def measure(step: int) -> int:
            self.multiple = multiple_of(step + first)
            tried[step] = again()
            export.seams.audit.keep(step)
            return export.bytes(tried[step])

        search = ByteSearch(
            self.config.target_bytes,
            int(curve.steps[-1]) - first,
            lambda step: curve.bytes(step + first),
            measure,
            {own - first: export.bytes(packed)},
        )
        try:
            step = search.run()
        finally:
            self.multiple = 1.0
        export.seams.audit.back_to(step)
        facts = search.facts(step)
        facts |= {"fit_multiple": multiple_of(step + first), "bytes_before": search.sizes[own - first]}
        export.seams.filled("fit", step + first != own, **facts)
        return tried[step]
