"""P_v·φ(F_v·h) in place of the layer's MLP in the v-th repeated pass of a looped layer, v = 1 … n.

F_v [mlp_dim, D], P_v [D, mlp_dim]; norm, activation φ, mlp_scale, attention and all else stay shared. Until
pass v begins, F_v and P_v are copies of the layer's own MLP; from its first step on they learn by themselves
("untied, copied from base at activation"). A loop that is always on (enable_at = 0) has no such moment: they
begin with first values of their own, P_v at zero.
Source: PR #1204 (layers 4 and 5 repeated once, from step 3000), whose -0.002..-0.003 is the recurrence's and
theirs together. Unknown: their effect alone; with n > 1 (here each pass has its own); how an average of the
weights takes them in (here it follows the copies).
Cost: n·(e-s+1) MLPs, in parameters and bytes; no time beside depth_recurrence's. Identity at init: no, but at
the switch it is depth_recurrence. Needs depth_recurrence. The adapters of lora_ttt and phased_ttt that stand
beside the MLP stand beside the shared one only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from techniques.base import Cost, Shape, Technique, TensorSpec
from trainer.parameters import Linear


class UntiedMlps(nn.Module):
    """mlp, n [B,T,D], ctx -> [B,T,D]: the shared MLP at the first visit, later ones have their own."""

    def __init__(self, shape: Shape, passes: int):
        super().__init__()
        d, hidden = shape.model_dim, shape.mlp_dim
        self.fc = nn.ModuleList(Linear(d, hidden, "mlp") for _ in range(passes))
        self.proj = nn.ModuleList(Linear(hidden, d, "mlp", zero=True) for _ in range(passes))

    def forward(self, mlp: Any, n: torch.Tensor, ctx: dict[str, Any]) -> torch.Tensor:
        visit: int = ctx["visit"]
        return self.proj[visit - 1](mlp.activation(self.fc[visit - 1](n))) if visit else mlp(n)

    @torch.no_grad()
    def copy_from(self, mlp: Any, first: int) -> None:
        """Passes from number `first` on take the shared MLP's weights over."""
        for mine, base in ((self.fc, mlp.fc), (self.proj, mlp.proj)):
            for linear in mine[max(0, first - 1) :]:
                linear.get_parameter("weight").copy_(base.weight)


class UntieMlp(Technique):
    """Repeated passes of looped layers have MLPs of their own."""

    name = "untie_mlp"
    reference = "PR #1204"
    requires = ("depth_recurrence",)
    env = {"RECUR_UNTIE_MLP": "on"}

    def passes(self, shape: Shape, layer: int) -> int:
        """Repeated visits of a layer."""
        return shape.order.count(layer) - 1

    def cost(self, shape: Shape) -> Cost:
        count = sum(self.passes(shape, layer) for layer in range(shape.num_layers))
        d, hidden = shape.model_dim, shape.mlp_dim
        return Cost((TensorSpec("mlp", (hidden, d)), TensorSpec("mlp", (d, hidden))) * count)

    def mlp(self, shape: Shape, layer: int):
        passes = self.passes(shape, layer)
        return UntiedMlps(shape, passes) if passes else None

    def stepper(self, model: Any) -> Callable[[float, float], None]:
        """Before each step: passes that were not in the last step's order are copies."""
        found = [(i, block) for i, block in enumerate(model.blocks) if self.name in block.feed.steps]
        before = {i: model.order.count(i) for i, _ in found}  # a fresh model runs the last phase's order

        def follow(_progress: float, _lr_scale: float) -> None:
            for i, block in found:
                block.feed.steps[self.name].copy_from(block.mlp, before[i])
                before[i] = model.order.count(i)

        return follow
