"""softmax(q kᵀ/√Dh) v over the past, through the best kernel of this machine."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from techniques.base import Unavailable

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # causal: q [B,T,H,Dh], k and v [B,T,K,Dh] -> [B,T,H,Dh]


def pick_attention(requested: str, device: torch.device, dtype: torch.dtype) -> tuple[str, Attend]:
    """(name, function). `auto` takes the best kernel that is here; a named one that is not here is
    Unavailable."""

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.size(1) != k.size(1)
        ).transpose(1, 2)

    half_on_gpu = device.type == "cuda" and dtype is torch.bfloat16
    hopper = half_on_gpu and torch.cuda.get_device_capability(device) >= (9, 0)
    found: dict[str, Attend] = {}
    if hopper:
        with contextlib.suppress(ImportError):
            from flash_attn_interface import flash_attn_func as fa3  # type: ignore[import-not-found]

            found["fa3"] = lambda q, k, v: fa3(q, k, v, causal=True)
    # PyTorch's own choice is as fast as cudnn or faster (benchmarks/trainer/gpu.py, docs/gpu.md)
    found["sdpa"] = sdpa
    if half_on_gpu and torch.backends.cuda.cudnn_sdp_enabled() and hopper:

        def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
                return sdpa(q, k, v)

        found["cudnn"] = cudnn
    if half_on_gpu:
        with contextlib.suppress(ImportError):
            from flash_attn import flash_attn_func as fa2  # type: ignore[import-not-found]

            found["fa2"] = lambda q, k, v: fa2(q, k, v, causal=True)
    if half_on_gpu:
        found = {name: attend for name, attend in found.items() if runs(attend, device)}
    name = next(iter(found)) if requested == "auto" else requested
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
