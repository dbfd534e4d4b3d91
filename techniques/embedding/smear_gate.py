"""x_t ← g·x_t + (1−g)·x_{t−1}, or x_t + λ·σ(w·x_t)·x_{t−1}: each position sees a share of the one before it.

`mode` names three published variants (one technique); x_{−1} = 0 in all of them:
- `previous`   before the norm: σ(γ)·x_t + (1−σ(γ))·x_{t−1}, γ [D] = 3 (0.95 own). PR #65 and rec:smeargate.
- `average`    after the norm: (1−σ(γ))·x_t + σ(γ)·x_{t−1}, γ [D] = 0: a 50/50 average at first. #414..#1019,
  #569.
- `input_gate` before the norm: x_t + λ·σ(w·x_t[:window])·x_{t−1}, not where t is BOS; λ = 0, w = 0.
  #1667/#1855.
Cost: D parameters, or window + 1. Identity at init: only `input_gate`, hence declared as no.
The other two have no BOS mask, as published: document N's last token reaches document N+1's BOS, within a
sequence.
What we saw: studies/LOG.md, "own_text, 200 trials on twelve public-domain books" and "laptop, 200 trials on
the embedded corpus".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from techniques.base import Choice, Cost, Shape, Technique, TensorSpec, setting
from trainer.parameters import parameter

SMEAR_MODES = ("previous", "average", "input_gate")
SMEAR_BOS_ID = 1  # <s> in every tokenizer of the challenge


def smear_previous(x: torch.Tensor) -> torch.Tensor:
    """x [B,T,D] one position later; position 0 gets 0."""
    return F.pad(x[:, :-1], (0, 0, 1, 0))


class SmearBlend(nn.Module):
    """σ(γ)·x_t + (1−σ(γ))·x_{t−1} (`own`), or with the two weights exchanged."""

    def __init__(self, model_dim: int, init: float, *, own: bool):
        super().__init__()
        self.gate, self.own = parameter(torch.full((model_dim,), init), "scalar"), own

    def forward(self, x: torch.Tensor, _ids: torch.Tensor) -> torch.Tensor:
        share = torch.sigmoid(-self.gate if self.own else self.gate).to(x.dtype)  # of the previous position
        return (1 - share) * x + share * smear_previous(x)


class SmearInputGate(nn.Module):
    """x_t + λ·σ(w·x_t[:window])·x_{t−1}; a position that holds BOS receives nothing."""

    def __init__(self, window: int):
        super().__init__()
        self.window = window
        self.weight = parameter(torch.zeros(window), "scalar")
        self.strength = parameter(torch.zeros(()), "scalar")

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid((x[..., : self.window] * self.weight.to(x.dtype)).sum(-1))  # [B,T]
        gate = self.strength.to(x.dtype) * gate * (ids != SMEAR_BOS_ID)
        return x + gate.unsqueeze(-1) * smear_previous(x)


class SmearGate(Technique):
    """A learned share of the previous position's embedding."""

    name = "smear_gate"
    reference = "PR #65, #414, #549, #1019; PR #1667, #1855 (input_gate)"
    after = ("bigram_hash",)
    space = {"mode": Choice(SMEAR_MODES)}  # not `window`: two modes of three never read it
    smoke = {"mode": "average"}

    @dataclass(frozen=True)
    class Config:
        mode: str = setting("average", "which variant", choices=SMEAR_MODES)
        window: int = setting(12, "first dims of x that input_gate reads", low=1, high=8192)

    @property
    def isolates_documents(self) -> bool:
        return self.config.mode == "input_gate"

    def check(self, shape: Shape) -> None:
        if self.config.mode == "input_gate" and self.config.window > shape.model_dim:
            raise ValueError(
                f"`smear_gate.window` must be at most model_dim, but got {self.config.window} and "
                f"{shape.model_dim}. Use {min(12, shape.model_dim)}."
            )

    def cost(self, shape: Shape) -> Cost:
        if self.config.mode == "input_gate":
            window = self.config.window
            return Cost(
                (TensorSpec("scalar", (window,)), TensorSpec("scalar", ())), 2.0 * (window + shape.model_dim)
            )
        return Cost((TensorSpec("scalar", (shape.model_dim,)),), 3.0 * shape.model_dim)

    def embed_in(self, shape: Shape):
        if self.config.mode == "previous":
            return SmearBlend(shape.model_dim, 3.0, own=True)
        return SmearInputGate(self.config.window) if self.config.mode == "input_gate" else None

    def embed_out(self, shape: Shape):
        return SmearBlend(shape.model_dim, 0.0, own=False) if self.config.mode == "average" else None
