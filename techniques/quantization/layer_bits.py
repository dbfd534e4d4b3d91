"""bits of the attention and MLP matrices of some layers: `bits` there, the role's elsewhere.

The layers are those that `layers` names ("3,4,5,6"), or else the middle `middle` of the model. In the record
integers of 8 bits are rounded to multiples of a step (INT4_STEP 4: 6 bits, 16: 4 bits) in layers 3 to 6; here
the scale is chosen for the fewer bits, with the same number of levels and less error at the rows' ends.
Source: rec:2026-03-19_10L_MixedPrecision (INT4_LAYERS=3,4,5,6 INT4_STEP=4 pays the tenth layer of an int8
model; 1.2147). Cost: none at run time. It has the last
word behind sensitivity_bits; late_qat goes on to train for the role's bits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from techniques.base import Choice, Int, Shape, Technique, TensorSpec, setting

LAYER_BITS = (3, 4, 5, 6, 7, 8)


class LayerBits(Technique):
    """Fewer bits in some layers."""

    name = "layer_bits"
    reference = "rec:2026-03-19_10L_MixedPrecision (INT4_LAYERS)"
    stage = "quantize"
    after = ("sensitivity_bits",)
    space = {"bits": Choice(LAYER_BITS), "middle": Int(1, "num_layers")}
    env = {"INT4_LAYERS": "layers"}
    smoke = {"bits": 4, "middle": 1}

    @dataclass(frozen=True)
    class Config:
        bits: int = setting(6, "bits of the matrices in these layers", choices=LAYER_BITS)
        middle: int = setting(4, "layers in the middle of the model", low=1, high=64)
        layers: str = setting("", 'layers by number ("3,4,5,6"); empty: the middle ones')

    def chosen(self, num_layers: int) -> list[int]:
        """The layers. ValueError for what is no layer of the model."""
        c = self.config
        if not c.layers:
            first = (num_layers - c.middle) // 2
            found = [*range(first, first + c.middle)]
        else:
            words = [w.strip() for w in c.layers.split(",") if w.strip()]
            found = [int(w) if w.isdecimal() else num_layers for w in words]
        if not found or not all(0 <= i < num_layers for i in found):
            raise ValueError(
                f"`layer_bits` takes layers 0 to {num_layers - 1}, but got middle = {c.middle} and layers = "
                f"{c.layers!r}."
            )
        return found

    def check(self, shape: Shape) -> None:
        self.chosen(shape.num_layers)

    def planned_bits(self, tensor: TensorSpec, bits: float, shape: Shape, entropy: Any) -> float:
        own = tensor.role in ("attn", "mlp") and tensor.layer in self.chosen(shape.num_layers)
        return self.config.bits if own else bits

    def tensor_bits(self, bits: dict[str, int], export: Any) -> dict[str, int]:
        layer_of = {n: int(m[1]) for n in export.roles if (m := re.match(r"blocks\.(\d+)\.", n))}
        wanted = set(self.chosen(1 + max(layer_of.values())))
        roles = ("attn", "mlp")
        own = {n for n in bits if layer_of.get(n) in wanted and export.roles[n] in roles}
        export.note(matrices=len(own))
        return {n: self.config.bits if n in own else b for n, b in bits.items()}
