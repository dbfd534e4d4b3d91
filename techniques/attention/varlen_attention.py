"""A token attends to its own document only: causal softmax over positions of one document, cut at BOS.

Source: PR #1530 (about 2 % faster, −0.001 nats), #1855. Documents also end with the sequence. Rotary
positions run on over the sequence: only differences count. `flash` passes the documents' bounds to
FlashAttention's varlen kernel (GPU); `mask` gives SDPA a block mask [B,1,T,T] (any machine). `auto` takes
flash where it is installed. The bounds have a fixed length, `max_documents` a micro-batch, so that one graph
serves all; more documents than that stop the run.
With smear_gate choose `input_gate`: its other modes carry a document's last token into the next one.
Cost: none. Identity at init: no. What we saw: studies/LOG.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from techniques._attention import pick_varlen
from techniques.base import Shape, Technique, setting

VARLEN_BOS_ID = 1  # <s> in every tokenizer of the challenge
VARLEN_TOKENS_PER_DOCUMENT = 64  # `max_documents` 0: one document for so many tokens


class VarlenDocuments(nn.Module):
    """x0 [B,T,D], ids [B,T] -> what the kernel needs: mask [B,1,T,T], or bounds int32 [max_documents + 1]."""

    def __init__(self, kernel: str, max_documents: int):
        super().__init__()
        self.kernel, self.max_documents = kernel, max_documents

    def forward(self, x0: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        if pick_varlen(self.kernel, x0) is None:
            document = (ids == VARLEN_BOS_ID).cumsum(1)
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
        self.kernel = kernel

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ctx: dict[str, Any]) -> torch.Tensor:
        documents, flash = ctx["varlen_attention"], pick_varlen(self.kernel, q)
        if flash is not None:
            y = flash(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), documents, q.size(1))
            return y.view_as(q)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
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
        kernel: str = setting("auto", "auto, flash or mask", choices=("auto", "flash", "mask"))
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
