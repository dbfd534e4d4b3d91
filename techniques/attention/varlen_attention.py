"""A token attends to its own document only: causal softmax over positions of one document, cut at BOS.

Source: PR #1530 (about 2 % faster, −0.001 nats), #1855. Documents also end with the sequence. Rotary
positions run on over the sequence: only differences count. `flash` passes the documents' bounds to
FlashAttention's varlen kernel (GPU); `flex` gives FlexAttention the blocks of 128 × 128 that a document
reaches, in compiled graphs, and is `mask` outside of them; `mask` gives SDPA a mask [B,1,T,T] (any machine).
`auto` takes flash where it is installed, else flex on a GPU. The bounds have a fixed length, `max_documents`
a micro-batch, so that one graph serves all; more documents than that stop the run.
With smear_gate choose `input_gate`: its other modes carry a document's last token into the next one.
Cost: none. Identity at init: no.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from techniques.base import Shape, Technique, Unavailable, setting
from trainer.attention import varlen_flash

VARLEN_BOS_ID = 1  # <s> in every tokenizer of the challenge
VARLEN_TOKENS_PER_DOCUMENT = 64  # `max_documents` 0: one document for so many tokens
VARLEN_BLOCK = 128  # FlexAttention's own


def varlen_kernel(requested: str, flash: Any, x: torch.Tensor) -> str:
    """flash, flex or mask, for activations x [B,T,..]. `flash` where it cannot run is Unavailable."""
    runs = flash is not None and x.is_cuda and x.dtype is torch.bfloat16
    if requested == "flash" and not runs:
        raise Unavailable(
            "varlen_attention.kernel = flash needs FlashAttention, a GPU and bfloat16. Use mask, or auto."
        )
    if runs and requested in ("auto", "flash"):
        return "flash"
    wanted = requested == "flex" or (requested == "auto" and x.is_cuda)
    fits = x.size(1) % VARLEN_BLOCK == 0 and torch.compiler.is_compiling()  # outside a graph it is not fused
    return "flex" if wanted and fits else "mask"


def varlen_blocks(document: torch.Tensor) -> BlockMask:
    """FlexAttention's mask of documents numbered in rising order, int [B,T]; T a multiple of VARLEN_BLOCK."""
    first, last = document[:, ::VARLEN_BLOCK], document[:, VARLEN_BLOCK - 1 :: VARLEN_BLOCK]  # [B,n]
    i = torch.arange(first.size(1), device=document.device)
    some = (i[:, None] >= i) & (last[:, None, :] >= first[:, :, None])  # [B,n,n]: query block, key block
    whole = (i[:, None] > i) & (first[:, None, :] == last[:, :, None])  # one document, all of it past

    def listed(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = blocks.to(torch.int32)[:, None]
        order = torch.argsort(blocks, dim=-1, descending=True, stable=True)
        return blocks.sum(-1, dtype=torch.int32), order.to(torch.int32)

    def inside(b: torch.Tensor, _h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (q >= k) & (document[b, q] == document[b, k])

    lists = (*listed(some & ~whole), *listed(whole))
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=VARLEN_BLOCK, mask_mod=inside)


class VarlenDocuments(nn.Module):
    """x0 [B,T,D], ids [B,T] -> what the kernel needs: mask [B,1,T,T], its blocks, or bounds int32
    [max_documents + 1]."""

    def __init__(self, kernel: str, max_documents: int):
        super().__init__()
        self.kernel, self.max_documents, self.flash = kernel, max_documents, varlen_flash()

    def forward(self, x0: torch.Tensor, ids: torch.Tensor) -> Any:
        kernel = varlen_kernel(self.kernel, self.flash, x0)
        if kernel != "flash":
            document = (ids == VARLEN_BOS_ID).cumsum(1)
            if kernel == "flex":
                return varlen_blocks(document)
            return (document[:, None, :, None] == document[:, None, None, :]).tril()
        begins = ids == VARLEN_BOS_ID
        begins = torch.cat((torch.ones_like(begins[:, :1]), begins[:, 1:]), 1).flatten()
        count = begins.numel()
        most = self.max_documents or count // VARLEN_TOKENS_PER_DOCUMENT + ids.size(0)
        torch._assert_async(begins.sum() <= most)  # pyright: ignore[reportPrivateImportUsage]
        at = torch.where(begins, torch.arange(count, device=ids.device), count)
        return F.pad(torch.sort(at).values[:most], (0, 1), value=count).to(torch.int32)


class VarlenAttend(nn.Module):
    """q [B,T,H,Dh], k and v [B,T,K,Dh], ctx -> y [B,T,H,Dh]."""

    def __init__(self, kernel: str):
        super().__init__()
        self.kernel, self.flash = kernel, varlen_flash()

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ctx: dict[str, Any]) -> torch.Tensor:
        documents, kernel = ctx["varlen_attention"], varlen_kernel(self.kernel, self.flash, q)
        if kernel == "flash":
            assert self.flash is not None
            rows, longest = (x.flatten(0, 1) for x in (q, k, v)), q.size(1)
            return self.flash(*rows, documents, documents, longest, longest, causal=True).view_as(q)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        group = q.size(1) // k.size(1)
        if kernel == "flex":
            y = flex_attention(q, k, v, block_mask=documents, enable_gqa=group > 1)
            assert isinstance(y, torch.Tensor)
            return y.transpose(1, 2)
        if q.is_cuda and group > 1:  # of its fused kernels none takes a mask and groups of heads
            k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=documents, enable_gqa=q.size(1) != k.size(1))
        return y.transpose(1, 2)


class VarlenAttention(Technique):
    """Attention that never crosses a document's start."""

    name = "varlen_attention"
    reference = "PR #1530, #1855"
    env = {"VARLEN_ATTENTION": "on"}
    smoke = {"kernel": "mask"}

    @dataclass(frozen=True)
    class Config:
        kernel: str = setting("auto", "auto, flash, flex or mask", choices=("auto", "flash", "flex", "mask"))
        max_documents: int = setting(
            0, "documents a micro-batch at most, for flash; 0: tokens / 64 + rows", low=0, high=1 << 24
        )

    @property
    def isolates_documents(self) -> bool:
        return True

    def shared(self, shape: Shape):
        return VarlenDocuments(self.config.kernel, self.config.max_documents)

    def attend(self, shape: Shape):
        return VarlenAttend(self.config.kernel)
