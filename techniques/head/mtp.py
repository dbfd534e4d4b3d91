"""loss ← loss + w·mean_k CE(cap(U_k h_t), y_{t+k}), k = 1 … n: the hidden state also predicts further tokens.

Source: multi-token prediction, arXiv:2404.19737; a flag of #375 (+0.028 bpb: the throughput it costs), #414
and #549, off in all records; in #549 the heads are in no optimiser group, so turning it on trains nothing.
Here U_k [V,D] = 0 has role `aux`: Adam at head_lr while training, never stored, absent from the model that
scores. A target may lie in the next document, as published; the last k positions of a sequence have none.
Cost: n·V·D parameters in training, none in the artifact; n more heads a step. Identity at init: the hidden
states and the scores are, and the loss grows by w·ln V.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from techniques.base import Cost, Float, Int, Shape, Technique, TensorSpec, setting
from trainer.parameters import parameter


class MtpHeads(nn.Module):
    """loss, h [B,T,D], targets [B,T], nats(z [N,V], targets [N]) -> loss with the further tokens' share."""

    def __init__(self, shape: Shape, num_tokens: int, weight: float):
        super().__init__()
        self.weight = weight
        self.heads = nn.ParameterList(
            parameter(torch.zeros(shape.vocab_size, shape.model_dim), "aux") for _ in range(num_tokens)
        )

    def forward(
        self,
        loss: torch.Tensor,
        h: torch.Tensor,
        targets: torch.Tensor,
        nats: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        further = torch.zeros_like(loss)
        for k, head in enumerate(self.heads, start=1):
            z = F.linear(h[:, :-k], head.to(h.dtype)).flatten(0, 1)
            further = further + nats(z, targets[:, k:].reshape(-1))
        return loss + self.weight / len(self.heads) * further


class Mtp(Technique):
    """Multi-token prediction: extra heads that serve training only."""

    name = "mtp"
    reference = "arXiv:2404.19737; PR #375, #414, #549"
    identity_at_init = True
    space = {"num_tokens": Int(1, 3), "weight": Float(0.02, 0.5, log=True)}
    env = {"MTP_NUM_HEADS": "num_tokens", "MTP_LOSS_WEIGHT": "weight"}
    smoke = {"num_tokens": 2}

    @dataclass(frozen=True)
    class Config:
        num_tokens: int = setting(1, "n, further tokens that are predicted", low=1, high=16)
        weight: float = setting(0.2, "w, share of their mean loss", low=1e-6, high=10.0)

    def check(self, shape: Shape) -> None:
        if self.config.num_tokens >= shape.seq_len:
            raise ValueError(
                f"`mtp.num_tokens` must be less than the training sequence, but got {self.config.num_tokens} "
                f"and {shape.seq_len}."
            )

    def cost(self, shape: Shape) -> Cost:
        head = TensorSpec("aux", (shape.vocab_size, shape.model_dim))
        n = self.config.num_tokens
        return Cost((head,) * n, flops_per_token=2.0 * n * head.numel)

    def loss_terms(self, shape: Shape):
        return MtpHeads(shape, self.config.num_tokens, self.config.weight)
