"""φ(z) = (max(z,0) + a·min(z,0))²: the MLP's squared ReLU with a live negative side (a²z², positive as well).

Source: PR #493 (a = 0.5, −0.003 bpb), #518/#549/#569/#1019/#1855; a = 0 is the baseline's relu². #1970: 0.3 ≈
0.5.
Cost: no parameters. Identity at init: no. Changes the statistics that the down-projection is quantised with.
What we saw: studies/LOG.md, "laptop, 200 trials on the embedded corpus".
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from techniques.base import Float, Shape, Technique, setting


def leaky_relu_squared(z: torch.Tensor, slope: float) -> torch.Tensor:
    """φ(z), any shape."""
    return F.leaky_relu(z, slope).square()


class LeakyRelu2(Technique):
    """Squared leaky ReLU in every MLP."""

    name = "leaky_relu2"
    reference = "PR #493, #549, #1019, #1855"
    positionwise = True
    space = {"slope": Float(0.0, 1.0)}
    smoke = {"slope": 0.5}

    @dataclass(frozen=True)
    class Config:
        slope: float = setting(0.5, "a, slope of the negative side before squaring", low=0.0, high=1.0)

    def activation(self, shape: Shape, layer: int):
        return functools.partial(leaky_relu_squared, slope=self.config.slope)
