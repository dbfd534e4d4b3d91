"""x ← x + MLP(n(x)) in the first `first_n` layers: no attention there, and none of its weights.

Source: PR #1204 (DISABLE_LAYER0_ATTN, off in the record; its banks keep the weights while training and leave
them out of the artifact). Nobody has published what it does. Bytes and time of an attention a layer are
saved. Conflicts: value_residual, which mixes the first layer's values into the others.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from techniques.base import Int, Shape, Technique, setting


class BareLayers(Technique):
    """First layers without attention."""

    name = "bare_layers"
    reference = "PR #1204 (DISABLE_LAYER0_ATTN)"
    conflicts = {"value_residual": "it mixes the first layer's values into the others"}
    space = {"first_n": Int(1, 2)}
    unseen = ("first_n",)  # of two layers only one can be bare
    env = {"DISABLE_LAYER0_ATTN": "on"}

    @dataclass(frozen=True)
    class Config:
        first_n: int = setting(1, "layers, counted from the first", low=1, high=63)

    def check(self, shape: Shape) -> None:
        if self.config.first_n >= shape.num_layers:
            raise ValueError(
                f"`bare_layers.first_n` must leave a layer its attention, but got {self.config.first_n} of "
                f"{shape.num_layers} layers."
            )

    def sizes(self, shape: Shape) -> Shape:
        return dataclasses.replace(shape, bare_layers=self.config.first_n)
