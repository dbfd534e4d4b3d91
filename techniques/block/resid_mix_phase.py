"""resid_mix of block l starts at a_l = σ(s·(l/(L−1) − ½)), b_l = 1 − a_l: early blocks read x0, late ones x.

A block first forms a⊙x + b⊙x0; the baseline starts at a = 1, b = 0. With s = 3 it is 0.18/0.82 in layer 0 and
0.82/0.18 in the last.
Source: rec:2026-03-19_…OvertoneInit; the code of #569, whose README does not mention it. Cost: none.
Identity at init: no.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from techniques.base import Float, Shape, Technique, setting


class ResidMixPhase(Technique):
    """A phase transition over depth in what each block reads at first."""

    name = "resid_mix_phase"
    reference = "PR #569; rec:2026-03-19_OvertoneInit"
    space = {"steepness": Float(0.5, 8.0, log=True)}

    @dataclass(frozen=True)
    class Config:
        steepness: float = setting(3.0, "s of σ(s·(l/(L−1) − ½))", low=0.01, high=50.0)

    def check(self, shape: Shape) -> None:
        if shape.num_layers < 2:
            raise ValueError(
                f"`resid_mix_phase` runs over depth, but `num_layers` is {shape.num_layers}. Use two layers "
                f"or more, or turn resid_mix_phase off."
            )

    def init(self, model: Any) -> None:
        last = len(model.blocks) - 1
        for layer, block in enumerate(model.blocks):
            own = 1.0 / (1.0 + math.exp(-self.config.steepness * (layer / last - 0.5)))
            block.resid_mix.copy_(torch.tensor([[own], [1.0 - own]]).expand_as(block.resid_mix))
