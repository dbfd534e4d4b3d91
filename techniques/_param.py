"""A parameter with its role: `parameter(data, "scalar")`. The role routes it to optimiser and quantiser.

And parameters by name: `load_weights` copies them into a model, `swapped` for a while.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from techniques.base import ROLES


def parameter(data: Tensor, role: str) -> nn.Parameter:
    """nn.Parameter (fp32) that carries its role. ValueError for a role that no table routes."""
    if role not in ROLES:
        raise ValueError(f"A parameter's role must be one of {', '.join(ROLES)}, but got {role!r}.")
    p = nn.Parameter(data)
    p.role = role  # type: ignore[attr-defined]
    return p


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
