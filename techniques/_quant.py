"""q = clip(round(w/s), ±qmax), s = clip/qmax, clip = a quantile of the row's |w|, qmax = 2^(bits-1) - 1.

Shared by the quantisers that search the clip (gptq_lite, gptq). Weights [r,c]; scales float16 [P,r], P
percentiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

CLIP_PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
TINY_SCALE = 1e-7  # above float16's smallest subnormal (6e-8): an all-zero row keeps a scale that divides


def clip_scales(weight: Tensor, bits: int, scale_floor: str) -> Tensor:
    """Scales float16 [P,r], one row per percentile. `scale_floor` "tiny" is 1e-7; "published" is 1/qmax,
    under which all rows that clip below 1.0 get one and the same step, whatever the percentile."""
    qmax = 2 ** (bits - 1) - 1
    magnitudes = weight.abs().float()
    percentiles = torch.tensor(CLIP_PERCENTILES, device=weight.device)
    rows = max(1, 2**23 // weight.size(1))  # torch.quantile refuses more than 2^24 elements
    clips = torch.cat([torch.quantile(m, percentiles, dim=1) for m in magnitudes.split(rows)], dim=1)
    return (clips / qmax).clamp_min(TINY_SCALE if scale_floor == "tiny" else 1.0 / qmax).to(torch.float16)


def rows_at_floor(scale: Tensor, bits: int, scale_floor: str) -> int:
    """How many of the scales [r] are the floor itself."""
    floor = TINY_SCALE if scale_floor == "tiny" else 1.0 / (2 ** (bits - 1) - 1)
    return int((scale == torch.tensor(floor, dtype=torch.float16, device=scale.device)).sum())


def round_rows(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """q int8 [..,r,c] of weight [r,c] under scales [..,r]."""
    qmax = 2 ** (bits - 1) - 1
    return torch.round(weight / scale.to(weight.dtype)[..., None]).clamp(-qmax, qmax).to(torch.int8)


def quantize_lite(weight: Tensor, bits: int, scale_floor: str) -> tuple[Tensor, Tensor]:
    """(q int8 [r,c], scale float16 [r]) at the percentile, one per matrix, of the least squared error."""
    best: tuple[float, Tensor, Tensor] | None = None
    for scale in clip_scales(weight, bits, scale_floor):
        q = round_rows(weight, scale, bits)
        error = float(
            (weight - q.to(weight.dtype) * scale.to(weight.dtype)[:, None]).square().sum(dtype=torch.float64)
        )
        if best is None or error < best[0]:
            best = (error, q, scale)
    assert best is not None
    return best[1], best[2]
