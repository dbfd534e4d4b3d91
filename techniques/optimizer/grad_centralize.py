"""u ← u − mean(u) of each of Muon's updates before it is orthogonalised: gradient centralisation.

`axis` says over what the mean is taken, a number for each of the others:
- `input`   the columns of a row, as in the paper: what a neuron gets from a constant input is taken off.
- `matrix`  the whole matrix: what #2101's code does, whose banks [N,r,c] take the mean over r and c.
The mean is linear in the gradient and so is momentum: taking it off the update is taking it off every
gradient. Source: arXiv:2004.01461; PR #2101 (GRAD_CENTRALIZE, off in its own best run; +0.00004 BPB alone,
one seed, in #2117's reproduction: nothing). It stands where #2101 has it, behind muoneq_r's equal rows. Cost:
one pass over the update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from techniques.base import Choice, Technique, setting

CENTRAL_AXES = {"input": (-1,), "matrix": (-2, -1)}


class GradCentralize(Technique):
    """Muon's updates without their mean."""

    name = "grad_centralize"
    reference = "arXiv:2004.01461; PR #2101, #2117"
    after = ("polar_express",)
    space = {"axis": Choice(tuple(CENTRAL_AXES))}
    env = {"GRAD_CENTRALIZE": "on"}

    @dataclass(frozen=True)
    class Config:
        axis: str = setting("input", "what the mean is taken over", choices=tuple(CENTRAL_AXES))

    def orthogonalize(self, inner: Any) -> Any:
        dims = CENTRAL_AXES[self.config.axis]

        def without_mean(g: Tensor, steps: int) -> Tensor:
            return inner(g - g.mean(dim=dims, keepdim=True), steps)

        return without_mean
