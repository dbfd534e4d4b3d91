"""loss = (1 − ε)·NLL(y) + ε·mean_t NLL(t): targets smoothed by ε over the whole vocabulary, in training only.

NLL(t) = lse(z) − z_t of the capped logits z; evaluation scores the target alone. `train_loss` is the smoothed
one. Source: Szegedy et al., arXiv:1512.00567; PR #2101 (LABEL_SMOOTH, off in its own best run; +0.00008 BPB
alone at 0.05, one seed, in #2117's reproduction: nothing); negative in #375. With FUSED_CE_ENABLED=1, as it
runs, #2101's code adds ε·ln V to (1 − ε) times the loss instead: a factor on the gradient, and no smoothing.
Cost: a second reduction over the logits. Conflicts: softcap (another formula than the cap c·tanh(z/c)).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from techniques.base import Cost, Float, Shape, Technique, setting


class SmoothedLoss(nn.Module):
    """z [N,V] before the cap, targets [N] -> mean nats."""

    def __init__(self, c: float, share: float):
        super().__init__()
        self.c = c
        self.share = share

    def forward(self, z: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.c * torch.tanh(z.float() / self.c)
        return F.cross_entropy(logits, targets, label_smoothing=self.share)


class LabelSmoothing(Technique):
    """Training targets that leave a share to every token."""

    name = "label_smoothing"
    reference = "arXiv:1512.00567; PR #375, #2101, #2117"
    conflicts = {"softcap": "it computes the cap c·tanh(z/c) itself"}
    space = {"share": Float(0.005, 0.2, log=True)}
    env = {"LABEL_SMOOTH": "share"}

    @dataclass(frozen=True)
    class Config:
        share: float = setting(0.05, "ε, of the target's weight", low=1e-6, high=0.9)

    def cost(self, shape: Shape) -> Cost:
        return Cost(flops_per_token=float(shape.vocab_size))

    def cross_entropy(self, shape: Shape):
        return SmoothedLoss(shape.logit_softcap, self.config.share)
