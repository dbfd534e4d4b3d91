"""min over p of ‖W − s_p·clip(round(W/s_p), ±qmax)‖², s_p = p-quantile of each row's |w| / qmax: GPTQ-lite.

Source: PR #414 (about -0.0006 BPB against the row's maximum), also #518, #549. One p per matrix, although
READMEs say "per row". p = 1 is among the five, so the error never exceeds that of plain rounding under the
row's maximum. `scale_floor = "published"` is the records' floor of 1/qmax: rows that clip below 1.0 all get
that step, so the search changes nothing there. Cost: five roundings a matrix, no data. What we saw:
studies/LOG.md, "quantisers on one trained model" and "laptop, 200 trials on the embedded corpus".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from techniques._quant import quantize_lite, rows_at_floor
from techniques.base import Choice, Technique, setting


class GptqLiteQuantizer:
    """Rounding with a searched clip; needs no data. `facts` says what was done."""

    def __init__(self, scale_floor: str):
        self.scale_floor, self.facts = scale_floor, {"rows_at_floor": 0}
        self.hessians: dict[str, Tensor] = {}

    def calibrate(self, model: Any, batches: Iterable[Any]) -> None:
        """Nothing: no batch is read."""

    def quantize(self, name: str, weight: Tensor, bits: int, rule: Any = None) -> tuple[Tensor, Tensor]:
        q, scale = quantize_lite(weight, bits, self.scale_floor)
        self.facts["rows_at_floor"] += rows_at_floor(scale, bits, self.scale_floor)
        return q, scale


class GptqLite(Technique):
    """Round to nearest under the best of five clip percentiles, by squared error of the weights."""

    name = "gptq_lite"
    reference = "PR #414"
    stage = "quantize"
    space = {"scale_floor": Choice(("tiny", "published"))}

    @dataclass(frozen=True)
    class Config:
        scale_floor: str = setting(
            "tiny", "least scale: 1e-7, or the records' 1/qmax", choices=("tiny", "published")
        )

    def quantizer(self) -> GptqLiteQuantizer:
        return GptqLiteQuantizer(self.config.scale_floor)
