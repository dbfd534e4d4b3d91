"""u_i ← u_i / max(‖u_i‖₂, 1e-7) for each row i of Muon's update, before it is orthogonalised: MuonEq-R.

Source: arXiv:2603.28254; PR #1285 (about -0.001 BPB), #1855. A positive factor on a row of the gradient
leaves the update as it was (at momentum 0). Works around whatever orthogonalisation is on. Cost: one pass
over the update.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from techniques.base import Technique


class MuonEqR(Technique):
    """Rows of equal norm before Muon's orthogonalisation."""

    name = "muoneq_r"
    reference = "arXiv:2603.28254; PR #1285, #1855"
    after = ("polar_express",)
    env = {"MUON_ROW_NORMALIZE": "on"}

    def orthogonalize(self, inner: Any) -> Any:
        def with_equal_rows(g: Tensor, steps: int) -> Tensor:
            return inner(g / g.norm(dim=-1, keepdim=True).clamp_min(1e-7), steps)

        return with_equal_rows
