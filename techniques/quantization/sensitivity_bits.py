"""bits of each matrix: the least total Σ_t cost_t(b_t) with Σ_t bytes_t(b_t) within a budget, b from `low` to
`high`.

`measure = "error"`: cost_t(b) = n_t·tr(E·H·Eᵀ)/tr(W·H·Wᵀ), the share of a matrix' output that rounding it at
b bits loses on the calibration inputs, times its n_t weights (without them the largest matrices pay for all
others); one bit after the other goes where it saves the most a byte. "trace": the matrices of largest tr(H)
get `high` bits while they fit, the others `low` (PR #1204: rank by trace, n at int6, the rest int5).
bytes_t(b) is the entropy of the integers that plain rounding gives. The budget is `budget_share` of the
bytes that these matrices take at their role's bits, so that 1 moves bits and adds none.

Source: PR #1204 (32 of 66 matrices at int6), #1285 (66 of 66). Needs gptq, whose Hessians it measures with.
The embedding, and what has no Hessian, keeps its role's bits (mixed_bits says them, or 8). Cost:
a rounding a matrix for each number of bits. Conflicts: late_qat trains for the role's bits. What we saw:
studies/LOG.md, "quantisers on one trained model".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from techniques._quant import entropy_bytes, hessian_error, round_rows
from techniques.base import Choice, Float, Shape, Technique, TensorSpec, setting

BITS = (3, 4, 5, 6, 7, 8)


def rounded(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(q, scale) of plain rounding under the rows' maxima."""
    scale = (weight.abs().amax(1) / (2 ** (bits - 1) - 1)).clamp_min(1e-7).to(torch.float16)
    return round_rows(weight, scale, bits), scale


def spend(costs: list[dict[int, float]], sizes: list[dict[int, float]], budget: float) -> list[int]:
    """Bits of each matrix: from the lowest on, the step that saves the most cost a byte, while it fits."""
    chosen = [min(c) for c in costs]
    left = budget - sum(s[b] for s, b in zip(sizes, chosen, strict=True))
    open_steps = set(range(len(costs)))
    while open_steps:

        def gain(i: int) -> float:
            now = chosen[i]
            return (costs[i][now] - costs[i][now + 1]) / max(1e-9, sizes[i][now + 1] - sizes[i][now])

        able = [i for i in sorted(open_steps) if chosen[i] + 1 in costs[i]]
        able = [i for i in able if sizes[i][chosen[i] + 1] - sizes[i][chosen[i]] <= left]
        if not able:
            break
        best = max(able, key=lambda i: (gain(i), -i))
        left -= sizes[best][chosen[best] + 1] - sizes[best][chosen[best]]
        chosen[best] += 1
        open_steps = set(able)
    return chosen


def by_trace(traces: list[float], sizes: list[dict[int, float]], budget: float) -> list[int]:
    """Bits of each matrix: the highest for those of largest trace, while they fit."""
    chosen = [min(s) for s in sizes]
    left = budget - sum(s[b] for s, b in zip(sizes, chosen, strict=True))
    for i in sorted(range(len(traces)), key=lambda i: (-traces[i], i)):
        more = sizes[i][max(sizes[i])] - sizes[i][chosen[i]]
        if more > left:
            break
        chosen[i], left = max(sizes[i]), left - more
    return chosen


class SensitivityBits(Technique):
    """Bits by matrix, where they save the most."""

    name = "sensitivity_bits"
    reference = "PR #1204, #1285 (ranked by the Hessian's trace)"
    stage = "quantize"
    requires = ("gptq",)
    conflicts = {"late_qat": "it trains for the bits of a role, and this changes them afterwards"}
    space = {"budget_share": Float(0.7, 1.1), "measure": Choice(("error", "trace"))}
    smoke = {"budget_share": 0.75}

    @dataclass(frozen=True)
    class Config:
        measure: str = setting("error", "how a matrix' need is measured", choices=("error", "trace"))
        low: int = setting(4, "bits at least", choices=BITS)
        high: int = setting(8, "bits at most", choices=BITS)
        budget_share: float = setting(
            1.0, "bytes of these matrices, over those at their role's bits", low=0.1, high=4.0
        )

    def check(self, shape: Shape) -> None:
        if self.config.low >= self.config.high:
            raise ValueError(
                f"`sensitivity_bits.low` must be below high, but got {self.config.low} and "
                f"{self.config.high}. There is nothing to choose."
            )

    def planned_bits(self, tensor: TensorSpec, bits: float, shape: Shape, entropy: Any) -> float:
        """One bit fewer takes one off an integer's entropy."""
        c = self.config
        if tensor.role not in ("attn", "mlp"):
            return bits
        return min(float(c.high), max(float(c.low), bits - (1.0 - c.budget_share) * entropy(bits)))

    def tensor_bits(self, bits: dict[str, int], export: Any) -> dict[str, int]:
        c = self.config
        names = [n for n in bits if n in export.hessians and export.roles[n] in ("attn", "mlp")]
        options = range(c.low, c.high + 1)
        costs: list[dict[int, float]] = []
        sizes: list[dict[int, float]] = []
        budget = 0.0
        for name in names:
            h = export.hessians[name].cpu()
            w = export.weights[name].cpu()
            energy = float(hessian_error(w, torch.zeros_like(w), torch.ones(len(w)), h)) or 1.0
            stored = {b: rounded(w, b) for b in {*options, bits[name]}}
            weight = w.numel() / energy
            costs.append({b: weight * float(hessian_error(w, *stored[b], h)) for b in options})
            sizes.append({b: entropy_bytes(stored[b][0]) for b in options})
            budget += c.budget_share * entropy_bytes(stored[bits[name]][0])
        if c.measure == "error":
            chosen = spend(costs, sizes, budget)
        else:
            chosen = by_trace([float(export.hessians[n].trace()) for n in names], sizes, budget)
        taken = sum(s[b] for s, b in zip(sizes, chosen, strict=True))
        count = {b: chosen.count(b) for b in sorted(set(chosen))}
        export.note(matrices_by_bits=count, entropy_bytes=taken, budget_bytes=budget)
        return bits | dict(zip(names, chosen, strict=True))
