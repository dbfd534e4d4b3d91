"""q = clip(round(w/s), ±qmax), s = clip/qmax, clip = a quantile of the row's |w|, qmax = 2^(bits-1) - 1.

Shared by the quantisers that search the clip (gptq_lite, gptq). Weights [r,c]; scales float16 [P,r], P
percentiles.

GPTQ's solve, its objective, and calibration sequences that a model writes itself: H [c,c] is the mean of XᵀX
over the inputs of a matrix W.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CLIP_PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
TINY_SCALE = 1e-7  # above float16's smallest subnormal (6e-8): an all-zero row keeps a scale that divides


SELF_BATCH = 8  # sequences that are written side by side (#1019)


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


def hessian_error(weight: Tensor, q: Tensor, scale: Tensor, hessian: Tensor) -> Tensor:
    """tr((W − Ŵ)H(W − Ŵ)ᵀ) in float64: W [r,c], q [..,r,c], scale [..,r], H [c,c] -> [..]."""
    e = weight.double() - q.double() * scale.double()[..., None]
    return ((e @ hessian.double()) * e).sum((-2, -1))


def inverse_factor(hessian: Tensor, *, reverse: bool = False) -> Tensor | None:
    """U upper triangular with UᵀU = H⁻¹, or None where H is not positive definite. `reverse`: by one
    factorisation, H = VVᵀ with V upper (H's rows and columns turned round), and one solve, U = V⁻¹."""
    if reverse:
        lower, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1))
        if int(failed) or not bool(lower.isfinite().all()):
            return None
        unit = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
        return torch.linalg.solve_triangular(lower.flip(0, 1), unit, upper=True)
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if int(failed) or not bool(lower.isfinite().all()):
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if int(failed) or not bool(upper.isfinite().all()) else upper


def gptq_solve(weight: Tensor, hessian: Tensor, scales: Tensor, bits: int, config: Any) -> Tensor | None:
    """q int8 [P,r,c] of W [r,c] under each row of scales [P,r]; None if the Cholesky factorisation fails."""
    qmax = 2 ** (bits - 1) - 1
    columns = weight.size(1)
    h = hessian.double().clone()
    w = weight.double().clone()
    diagonal = h.diagonal().clone()
    dead = diagonal == 0
    w[:, dead] = 0
    mean = diagonal[~dead].mean() if bool((~dead).any()) else torch.ones_like(diagonal[0])
    h.diagonal()[dead] = 1
    h.diagonal().add_(config.damp * mean)
    order = torch.arange(columns, device=h.device)
    if config.act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    u = inverse_factor(h[order][:, order], reverse=config.factor == "reverse")
    if u is None:
        return None
    w = w[:, order].expand(scales.size(0), -1, -1).clone()  # [P,r,c]
    s = scales.double()[..., None]
    q = torch.empty_like(w)
    for a in range(0, columns, config.block_size):
        b = min(a + config.block_size, columns)
        errors = torch.empty_like(w[:, :, a:b])
        for j in range(a, b):
            column = w[:, :, j : j + 1]
            rounded = torch.round(column / s).clamp(-qmax, qmax)
            error = (column - s * rounded) / u[j, j]
            w[:, :, j:b] -= error * u[j, j:b]
            q[:, :, j : j + 1] = rounded
            errors[:, :, j - a : j - a + 1] = error
        w[:, :, b:] -= errors @ u[a:b, b:]
    return q[:, :, torch.argsort(order)].to(torch.int8)


def self_generated(model: Any, config: Any, *, rank: int, ranks: int) -> Iterator[Tensor]:
    """ids [B,T]: `self_sequences` sequences of `self_tokens` tokens in batches of SELF_BATCH, dealt out to
    the ranks in turn. The first token is drawn uniformly, each other one from softmax(logits / temperature).
    Batch i draws from a generator of its own: it is the same on one rank and on many. One forward of the
    whole prefix a token: no cache of keys and values; a GPU, which waits for its launches there, runs it for
    all batches at once."""
    device = model.tok_emb.device
    vocab_size = model.tok_emb.size(0)
    starts = range(0, config.self_sequences, SELF_BATCH)
    mine = range(rank, len(starts), ranks)
    for group in [mine] if device.type == "cuda" and mine else [[i] for i in mine]:
        generators = [torch.Generator().manual_seed(1019 + i) for i in group]
        rows = [min(SELF_BATCH, config.self_sequences - starts[i]) for i in group]
        first = [
            torch.randint(vocab_size, (n, 1), generator=g) for n, g in zip(rows, generators, strict=True)
        ]
        ids = torch.cat(first).to(device)
        while ids.size(1) < config.self_tokens:
            h = model.hidden(ids)[:, -1]
            shares = torch.softmax(model.logits(h).float().cpu() / config.temperature, dim=-1)
            drawn = [
                torch.multinomial(part, 1, generator=g)
                for part, g in zip(shares.split(rows), generators, strict=True)
            ]
            ids = torch.cat((ids, torch.cat(drawn).to(device)), dim=1)
        yield from ids.split(rows)
