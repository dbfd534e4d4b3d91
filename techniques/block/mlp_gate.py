"""MLP(n) ← 2σ(w·n[:window])·MLP(n), one gate a token and layer, from the normed input n; w = 0: exactly 1.

Source: PR #1667 (GATE_MLP_OUT, the attention gate's form on the MLP; off in the record, and nobody has
published what it does). The weight has role `gate`: Adam at scalar_lr, stored as float16 unless quant_gate
takes it. It stands before the MLP, as √(2σ) on n: the activations here (relu², leaky_relu2) are homogeneous
of degree 2, so that is the same; adapters of the MLP read the scaled n. Cost: `window` weights a layer.
Identity at init: yes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from techniques.base import Cost, Int, Shape, Technique, TensorSpec, setting
from trainer.parameters import parameter


class GateOfMlp(nn.Module):
    """n [B,T,D], ctx, branch -> n, in the MLP's branch times the root of the gate."""

    def __init__(self, window: int):
        super().__init__()
        self.weight = parameter(torch.zeros(1, window), "gate")

    def forward(self, n: torch.Tensor, _ctx: dict[str, Any], branch: str) -> torch.Tensor:
        if branch != "mlp":
            return n
        z = F.linear(n[..., : self.weight.size(1)], self.weight.to(n.dtype))  # [B,T,1]
        return n * (2.0 * torch.sigmoid(z)).sqrt()


class MlpGate(Technique):
    """A gate on every MLP's output, read from its input."""

    name = "mlp_gate"
    reference = "PR #1667 (GATE_MLP_OUT)"
    positionwise = True
    identity_at_init = True
    after = ("canon", "ln_scale")
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

    def norm(self, shape: Shape, layer: int):
        return GateOfMlp(self.config.window)
