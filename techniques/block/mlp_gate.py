"""MLP(n) ← 2σ(w·n[:window])·MLP(n), one gate a token and layer, from the normed input n; w = 0: exactly 1.

Source: PR #1667 (GATE_MLP_OUT, the attention gate's form on the MLP; off in the record, and nobody has
published what it does). The weight has role `gate`: Adam at scalar_lr, stored as float16 unless quant_gate
takes it. Cost: `window` weights a layer. With it the fused MLP kernel of that script is off; here it costs no
speed but its own. Identity at init: yes. Conflicts: untie_mlp, which stands in the same place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from techniques.base import Cost, Int, Shape, Technique, TensorSpec, setting
from trainer.parameters import parameter


class GatedMlp(nn.Module):
    """mlp, n [B,T,D], ctx -> [B,T,D]."""

    def __init__(self, window: int):
        super().__init__()
        self.weight = parameter(torch.zeros(1, window), "gate")

    def forward(self, mlp: Any, n: torch.Tensor, _ctx: dict[str, Any]) -> torch.Tensor:
        z = F.linear(n[..., : self.weight.size(1)], self.weight.to(n.dtype))  # [B,T,1]
        return 2.0 * torch.sigmoid(z) * mlp(n)


class MlpGate(Technique):
    """A gate on every MLP's output, read from its input."""

    name = "mlp_gate"
    reference = "PR #1667 (GATE_MLP_OUT)"
    identity_at_init = True
    space = {"window": Int(4, 64, log=True)}
    env = {"GATE_MLP_OUT": "on"}

    @dataclass(frozen=True)
    class Config:
        window: int = setting(12, "first dims of n that it reads", low=1, high=8192)

    def check(self, shape: Shape) -> None:
        if self.config.window > shape.model_dim:
            raise ValueError(
                f"`mlp_gate.window` must be at most model_dim, but got {self.config.window} and "
                f"{shape.model_dim}. Use {min(12, shape.model_dim)}."
            )

    def cost(self, shape: Shape) -> Cost:
        gate = TensorSpec("gate", (1, self.config.window))
        flops = 2.0 * self.config.window + shape.model_dim
        return Cost((gate,) * shape.num_layers, flops_per_token=flops * shape.num_layers)

    def mlp(self, shape: Shape, layer: int):
        return GatedMlp(self.config.window)
