"""softmax(q kᵀ/√Dh) v over the past, through the best kernel of this machine."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from techniques.base import Unavailable

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # causal: q [B,T,H,Dh], k and v [B,T,K,Dh] -> [B,T,H,Dh]
BLOCK = 64  # queries that are taken together
# Tokens up to which `blocked` beats SDPA in bfloat16 on a CPU, forward and backward and forward alone; in
# float32 it nowhere does both (`python -m benchmarks.trainer.attention`, benchmarks/NOTES.md)
BLOCKED_TO = 2048


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=q.size(1) != k.size(1)
    ).transpose(1, 2)


class BlockedAttention(torch.autograd.Function):
    """Matrix products and a softmax for BLOCK queries at a time, over the keys up to the last of them. The
    weights, about T/2 a query and head, are kept for a backward pass only: no second softmax. Fewer queries
    than keys are those of the last positions."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        t = q.size(1)
        before = k.size(1) - t
        kv_heads = k.size(2)
        scale = q.size(3) ** -0.5
        q = by_group(q * scale, kv_heads)
        k = by_group(k, kv_heads)
        v = by_group(v, kv_heads)
        group = q.size(1) // t
        future = torch.full((BLOCK, BLOCK), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)
        y = torch.empty_like(q)
        weights = []
        for i in range(0, t, BLOCK):
            size = min(BLOCK, t - i)
            seen = before + i + size
            rows = slice(i * group, (i + size) * group)
            scores = torch.bmm(q[:, rows], k[:, :seen].mT)
            own = scores.view(-1, size, group, seen)[..., -size:]
            own += future[:size, None, :size]
            p = torch.softmax(scores, -1)
            y[:, rows] = torch.bmm(p, v[:, :seen])
            if any(ctx.needs_input_grad):
                weights.append(p)
        ctx.save_for_backward(q, k, v, *weights)
        ctx.sizes = t, kv_heads, scale
        return by_position(y, t, kv_heads)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        q, k, v, *weights = ctx.saved_tensors
        t, kv_heads, scale = ctx.sizes
        grad = by_group(grad, kv_heads)
        group = q.size(1) // t
        dq = torch.empty_like(q)
        dk = torch.zeros_like(k)
        dv = torch.zeros_like(v)
        for i, p in zip(range(0, t, BLOCK), weights, strict=True):
            seen = p.size(2)
            rows = slice(i * group, min(i + BLOCK, t) * group)
            dv[:, :seen] += torch.bmm(p.mT, grad[:, rows])
            dp = torch.bmm(grad[:, rows], v[:, :seen].mT)
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
            dq[:, rows] = torch.bmm(ds, k[:, :seen])
            dk[:, :seen] += torch.bmm(ds.mT, q[:, rows])
        dq = by_position(dq * scale, t, kv_heads)
        return dq, by_position(dk, dk.size(1), kv_heads), by_position(dv, dv.size(1), kv_heads)


def by_group(x: Tensor, kv_heads: int) -> Tensor:
    """[B,T,H,Dh] -> [B·K, T·H/K, Dh]: the query heads of one key head lie side by side."""
    b, t, h, dh = x.shape
    x = x.view(b, t, kv_heads, h // kv_heads, dh).transpose(1, 2)
    return x.reshape(b * kv_heads, t * h // kv_heads, dh)


def by_position(x: Tensor, t: int, kv_heads: int) -> Tensor:
    """by_group's inverse."""
    x = x.view(-1, kv_heads, t, x.size(1) // t, x.size(2)).transpose(1, 2)
    return x.reshape(x.size(0), t, -1, x.size(4))


def blocked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return BlockedAttention.apply(q, k, v)  # type: ignore[return-value]


def has_blocked(device: torch.device) -> bool:
    """A script whose settings rule `blocked` out holds neither it nor this question (bundle/lean.py)."""
    return device.type == "cpu"


def by_length(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return blocked(q, k, v) if q.size(1) <= BLOCKED_TO else sdpa(q, k, v)


def pick_attention(attention: str, device: torch.device, dtype: torch.dtype) -> tuple[str, Attend]:
    """(name, function). `auto` takes the best kernel that is here, on a CPU by length and dtype; a named one
    that is not here is Unavailable."""
    half_on_gpu = device.type == "cuda" and dtype is torch.bfloat16
    hopper = half_on_gpu and torch.cuda.get_device_capability(device) >= (9, 0)
    found: dict[str, Attend] = {}
    if hopper:
        with contextlib.suppress(ImportError):
            from flash_attn_interface import flash_attn_func as fa3  # type: ignore[import-not-found]

            found["fa3"] = lambda q, k, v: fa3(q, k, v, causal=True)
    # always there, and as fast as cudnn or faster (benchmarks/trainer/gpu.py, docs/gpu.md)
    found["sdpa"] = sdpa
    if has_blocked(device):
        if attention == "auto" and dtype is torch.bfloat16:
            return f"blocked_to_{BLOCKED_TO}_else_sdpa", by_length
        found["blocked"] = blocked
    if attention != "auto" and hopper and torch.backends.cuda.cudnn_sdp_enabled():

        def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
                return sdpa(q, k, v)

        found["cudnn"] = cudnn
    if attention != "auto" and half_on_gpu:
        with contextlib.suppress(ImportError):
            from flash_attn import flash_attn_func as fa2  # type: ignore[import-not-found]

            found["fa2"] = lambda q, k, v: fa2(q, k, v, causal=True)
    if half_on_gpu:
        found = {name: attend for name, attend in found.items() if runs(attend, device)}
    name = next(iter(found)) if attention == "auto" else attention
    if name not in found:
        raise Unavailable(
            f"Attention kernel {name!r} was demanded, but this machine offers: {', '.join(found)}."
        )
    return name, found[name]


def runs(attend: Attend, device: torch.device) -> bool:
    """Whether the kernel really does one small step, grouped heads included; installed is not enough."""
    q, k, v = (
        torch.zeros(1, 128, heads, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
        for heads in (2, 1, 1)
    )
    try:
        attend(q, k, v).sum().backward()
    except RuntimeError:
        return False
    return True


@functools.cache
def varlen_flash() -> Callable[..., Tensor] | None:
    """FlashAttention's varlen kernel, 3 before 2, where one is installed."""
    with contextlib.suppress(ImportError):
        from flash_attn_interface import flash_attn_varlen_func as varlen  # type: ignore[import-not-found]

        return varlen
    with contextlib.suppress(ImportError):
        from flash_attn import flash_attn_varlen_func as varlen  # type: ignore[import-not-found]

        return varlen
    return None
