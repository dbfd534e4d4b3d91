"""GPTQ's solve, its objective, and calibration sequences that a model writes itself.

H [c,c] is the mean of XᵀX over the inputs of a matrix W [r,c]; scales float16 [P,r], one row per candidate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def hessian_error(weight: Tensor, q: Tensor, scale: Tensor, hessian: Tensor) -> Tensor:
    """tr((W − Ŵ)H(W − Ŵ)ᵀ) in float64: W [r,c], q [..,r,c], scale [..,r], H [c,c] -> [..]."""
    e = weight.double() - q.double() * scale.double()[..., None]
    return ((e @ hessian.double()) * e).sum((-2, -1))


def inverse_factor(hessian: Tensor) -> Tensor | None:
    """U upper triangular with UᵀU = H⁻¹, or None where H is not positive definite."""
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if int(failed) or not bool(lower.isfinite().all()):
        return None
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    return None if int(failed) or not bool(upper.isfinite().all()) else upper


def gptq_solve(weight: Tensor, hessian: Tensor, scales: Tensor, bits: int, config: Any) -> Tensor | None:
    """q int8 [P,r,c] of W [r,c] under each row of scales [P,r]; None if the Cholesky factorisation fails."""
    qmax, columns = 2 ** (bits - 1) - 1, weight.size(1)
    h, w = hessian.double().clone(), weight.double().clone()
    diagonal = h.diagonal().clone()
    dead = diagonal == 0
    w[:, dead] = 0
    mean = diagonal[~dead].mean() if bool((~dead).any()) else torch.ones_like(diagonal[0])
    h.diagonal()[dead] = 1
    h.diagonal().add_(config.damp * mean)
    order = torch.arange(columns, device=h.device)
    if config.act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    u = inverse_factor(h[order][:, order])
    if u is None:
        return None
    w = w[:, order].expand(scales.size(0), -1, -1).clone()  # [P,r,c]
    s, q = scales.double()[..., None], torch.empty_like(w)
    for a in range(0, columns, config.block_size):
        b = min(a + config.block_size, columns)
        errors = torch.empty_like(w[:, :, a:b])
        for j in range(a, b):
            column = w[:, :, j : j + 1]
            rounded = torch.round(column / s).clamp(-qmax, qmax)
            error = (column - s * rounded) / u[j, j]
            w[:, :, j:b] -= error * u[j, j:b]
            q[:, :, j : j + 1], errors[:, :, j - a : j - a + 1] = rounded, error
        w[:, :, b:] -= errors @ u[a:b, b:]
    return q[:, :, torch.argsort(order)].to(torch.int8)


SELF_BATCH = 8  # sequences that are written side by side (#1019)


def self_generated(model: Any, config: Any, *, rank: int, ranks: int) -> Iterator[Tensor]:
    """ids [B,T]: `self_sequences` sequences of `self_tokens` tokens in batches of SELF_BATCH, dealt out to
    the ranks in turn. The first token is drawn uniformly, each other one from softmax(logits / temperature).
    Batch i draws from a generator of its own: it is the same on one rank and on many. One forward of the
    whole prefix a token: no cache of keys and values; a GPU, which waits for its launches there, runs it for
    all batches at once."""
    device, vocab_size = model.tok_emb.device, model.tok_emb.size(0)
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
