"""lr of the matrices of the first `split` layers is times `early`, of the others times `late`.

Attention and MLP matrices, whatever drives them; other parameters keep their rates. Source: PR #1204
(MATRIX_LR_EARLY 0.025 up to BANK_SPLIT 5, MATRIX_LR_LATE 0.03, with MATRIX_LR 0.03). Its code puts the
factors on the gradients of the banks' slices, where Muon's normalisation takes a constant factor out again:
there they do nothing, and its gain is none of theirs. Here they are factors on the rate. The variables give
rates, the settings factors of matrix_lr; so they are not answered to. Cost: none; more groups.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from techniques.base import Float, Int, Shape, Technique, setting


class LayerRates(Technique):
    """Other learning rates for the matrices of early and late layers."""

    name = "layer_rates"
    reference = "PR #1204 (MATRIX_LR_EARLY, MATRIX_LR_LATE, BANK_SPLIT)"
    space = {
        "early": Float(0.5, 2.0, log=True),
        "late": Float(0.5, 2.0, log=True),
        "split": Int(1, "num_layers"),
    }
    smoke = {"early": 0.5, "late": 1.5, "split": 1}

    @dataclass(frozen=True)
    class Config:
        early: float = setting(1.0, "factor on the rate of the first layers' matrices", low=0.0, high=100.0)
        late: float = setting(1.0, "factor on the rate of the other layers' matrices", low=0.0, high=100.0)
        split: int = setting(5, "layers that are early", low=1, high=64)

    def check(self, shape: Shape) -> None:
        if self.config.split > shape.num_layers:
            raise ValueError(
                f"`layer_rates.split` must be at most num_layers, but got {self.config.split} and "
                f"{shape.num_layers}."
            )

    def hyper(self, hyper: Any) -> Any:
        c = self.config
        return dataclasses.replace(hyper, layer_mults=(c.split, c.early, c.late))
