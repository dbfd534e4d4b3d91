"""A parameter with its role: `parameter(data, "scalar")`. The role routes it to optimiser and quantiser."""

from torch import Tensor, nn

from techniques.base import ROLES


def parameter(data: Tensor, role: str) -> nn.Parameter:
    """nn.Parameter (fp32) that carries its role. ValueError for a role that no table routes."""
    if role not in ROLES:
        raise ValueError(f"A parameter's role must be one of {', '.join(ROLES)}, but got {role!r}.")
    p = nn.Parameter(data)
    p.role = role  # type: ignore[attr-defined]
    return p
