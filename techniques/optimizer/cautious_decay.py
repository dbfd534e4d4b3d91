"""p_ij ← p_ij·(1 − lr·wd·[u_ij·p_ij > 0]): Muon's decay only where the update goes the decay's way, too.

u is the orthogonalised update, which is subtracted: where u and p agree in sign, both steps take p towards 0.
Source: PR #1514's script (CAUTIOUS_WD, sign(u) == sign(p); off in its logs, and nobody has published what it
does there); cautious weight decay, arXiv:2510.12402. Two zeros agree there too, to no effect. Adam's
parameters decay as ever. It needs a weight decay: without one (`muon_details.weight_decay`) it changes
nothing, and the activity audit says so. Cost: a comparison an element and step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from techniques.base import Technique


class CautiousDecay(Technique):
    """Weight decay of the matrices only where it agrees with the update."""

    name = "cautious_decay"
    reference = "PR #1514 (CAUTIOUS_WD); arXiv:2510.12402"
    requires = ("muon_details",)
    env = {"CAUTIOUS_WD": "on"}

    def hyper(self, hyper: Any) -> Any:
        return dataclasses.replace(hyper, cautious_decay=True)
