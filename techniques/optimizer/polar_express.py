"""X ← a_k·X + (b_k·XXᵀ + c_k·(XXᵀ)²)·X with its own (a_k, b_k, c_k) in each iteration: Polar Express.

Source: arXiv:2505.16932 (N. Amsel et al.); the five triples of PR #1344, #1787, #1855. Where Muon's one
triple leaves the singular values of a random update in [0.68, 1.13], these leave them in [0.86, 1.14]. More
iterations than five repeat the last triple; `muon_details.ns_steps` says how many. Cost: none. Its gain was
never isolated.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from techniques.base import Technique

POLAR_TRIPLES = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def polar_express(g: Tensor, steps: int) -> Tensor:
    """Towards the nearest semi-orthogonal matrices of g [N,r,c]."""
    x = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    for k in range(steps):
        a, b, c = POLAR_TRIPLES[min(k, len(POLAR_TRIPLES) - 1)]
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.mT if tall else x


class PolarExpress(Technique):
    """Muon's orthogonalisation with a triple of coefficients for each iteration."""

    name = "polar_express"
    reference = "arXiv:2505.16932; PR #1344, #1787, #1855"

    def orthogonalize(self, inner: Any) -> Any:
        return polar_express
