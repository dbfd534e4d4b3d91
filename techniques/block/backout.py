"""x ← x − λ·x_mid behind the last block, x_mid the stream behind block `layer`: the end forgets the middle.

Source: modded-nanogpt; the code of #569, whose record runs with it off. λ is one scalar, 0.2 at first. With
depth_recurrence x_mid is the last pass' stream; with parallel_residual it is what the attention lane holds
there, and the lanes are merged first.
Cost: 1 parameter. Identity at init: no (λ = 0 is).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from techniques.base import Cost, Float, Shape, Technique, TensorSpec, setting
from trainer.parameters import parameter


def keep_middle(x: torch.Tensor, ctx: dict[str, torch.Tensor]) -> torch.Tensor:
    ctx["backout"] = x
    return x


class BackoutSubtract(nn.Module):
    """x [B,T,D] -> x − λ·ctx["backout"]."""

    def __init__(self, strength: float):
        super().__init__()
        self.strength = parameter(torch.tensor(strength), "scalar")

    def forward(self, x: torch.Tensor, ctx: dict[str, torch.Tensor]) -> torch.Tensor:
        return x - self.strength.to(x.dtype) * ctx["backout"]


class Backout(Technique):
    """Takes a share of a middle layer's stream back before the final norm."""

    name = "backout"
    reference = "PR #569 (off in its record); modded-nanogpt"
    after = ("parallel_residual",)
    space = {"strength_init": Float(0.0, 0.5)}
    env = {
        "BACKOUT_ENABLED": "on",
        "BACKOUT_LAMBDA_INIT": "strength_init",
        "BACKOUT_INIT": "strength_init",
        "BACKOUT_LAYER": "layer",
    }
    smoke = {"layer": 0}

    @dataclass(frozen=True)
    class Config:
        strength_init: float = setting(0.2, "λ at first", low=-2.0, high=2.0)
        layer: int = setting(
            -1, "0-based block whose output is taken back; -1: num_layers / 2", low=-1, high=63
        )

    def middle(self, shape: Shape) -> int:
        return shape.num_layers // 2 if self.config.layer < 0 else self.config.layer

    def check(self, shape: Shape) -> None:
        if self.middle(shape) >= shape.num_layers - 1:
            raise ValueError(
                f"`backout` must take an earlier block than the last back (the final norm undoes a mere "
                f"scale), but got block {self.middle(shape)} of {shape.num_layers}. Set backout.layer lower, "
                f"or turn backout off."
            )

    def cost(self, shape: Shape) -> Cost:
        return Cost((TensorSpec("scalar", ()),), flops_per_token=2.0 * shape.model_dim)

    def block_out(self, shape: Shape, layer: int):
        if layer == shape.num_layers:
            return BackoutSubtract(self.config.strength_init)
        return keep_middle if layer == self.middle(shape) else None
