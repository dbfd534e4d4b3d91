"""A parameter with its role: `parameter(data, "scalar")`. The role routes it to optimiser and quantiser.

The trainer's Linear; and parameters by name: `load_weights` copies them into a model, `swapped` for a while.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from techniques.base import ROLES


def parameter(data: Tensor, role: str) -> nn.Parameter:
    """nn.Parameter (fp32) that carries its role. ValueError for a role that no table routes."""
    if role not in ROLES:
        raise ValueError(f"A parameter's role must be one of {', '.join(ROLES)}, but got {role!r}.")
    p = nn.Parameter(data)
    p.role = role  # type: ignore[attr-defined]
    return p


class Linear(nn.Module):
    """y = x Wᵀ, no bias; W [out, in] is float32 and computes in x's dtype."""

    def __init__(self, fan_in: int, fan_out: int, role: str, *, zero: bool = False):
        super().__init__()
        weight = torch.zeros(fan_out, fan_in)
        if not zero:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # torch's default for nn.Linear
        self.weight, self.zero_init = parameter(weight, role), zero
        self.stored_as: Callable[[Tensor], Tensor] | None = None  # the seam `weight`, where one enters it

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight if self.stored_as is None else self.stored_as(self.weight)
        return F.linear(x, w.to(x.dtype))


@contextlib.contextmanager
def swapped(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with other weights, for a while."""
    saved = {n: p.detach().clone() for n, p in model.named_parameters()}
    try:
        load_weights(model, weights)
        yield
    finally:
        load_weights(model, saved)


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy every parameter by name. ValueError names what is missing or too much."""
    params = dict(model.named_parameters())
    if params.keys() != weights.keys():
        odd = sorted(params.keys() ^ weights.keys())
        raise ValueError(f"The weights are not those of this model: {', '.join(odd[:5])} on one side only.")
    for name, p in params.items():
        p.copy_(weights[name])
