"""Order of the forward: 0 … s−1, then s … e run 1 + n times, then e+1 … L−1; the looped layers share weights.

Source: PR #1204, #1285, #1394 (4–5, n = 2), #1493 and #1855 (3–5, n = 2), #1412 (progressive). The order is
cut in half into an encoder and a decoder, and skips are matched by place in it: 15 virtual layers leave 7, 17
leave 8. Skip weights for the whole looped order exist from the start. Until progress `enable_at` each layer
runs once; then all passes switch on together (`stagger` 0), or one more every `stagger` of progress (#1412:
0.5, then 0.65). Each switch is a phase: another graph, run in the warm-up. Calibration, evaluation and the
model that an artifact is read into run the last phase's order.
#1204's repeated passes with MLPs of their own: untie_mlp.
Cost: one skip weight [D] for each skip more; n·(e−s+1) layers' time once on (#1855: 96 -> 141 ms a step).
Identity at init: no.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from techniques.base import Cost, Float, Int, Shape, Technique, TensorSpec, setting


class DepthRecurrence(Technique):
    """Runs some layers several times."""

    name = "depth_recurrence"
    reference = "PR #1204, #1285, #1394, #1412, #1493, #1855"
    space = {"num_loops": Int(1, 3), "enable_at": Float(0.0, 0.8)}
    env = {
        "NUM_LOOPS": "num_loops",
        "LOOP_START": "start",
        "LOOP_END": "end",
        "ENABLE_LOOPING_AT": "enable_at",
    }
    smoke = {"start": 0, "end": 1, "num_loops": 1, "enable_at": 0.5}

    @dataclass(frozen=True)
    class Config:
        start: int = setting(-1, "s, first looped layer; -1: 3/11 of the depth", low=-1, high=63)
        end: int = setting(-1, "e, last looped layer; -1: 5/11 of the depth", low=-1, high=63)
        num_loops: int = setting(2, "n, passes more than one", low=1, high=8)
        enable_at: float = setting(0.35, "progress at which looping begins; 0: always", low=0.0, high=0.95)
        stagger: float = setting(
            0.0, "progress between two passes' beginnings; 0: together", low=0.0, high=0.9
        )

    def looped(self, shape: Shape) -> tuple[int, int]:
        """(s, e)."""
        c, layers = self.config, shape.num_layers
        start = 3 * layers // 11 if c.start < 0 else c.start
        return start, max(start, 5 * layers // 11) if c.end < 0 else c.end

    def starts(self) -> list[float]:
        """Progress at which each further pass begins."""
        c = self.config
        return [round(c.enable_at + i * c.stagger, 9) for i in range(c.num_loops)]

    def phases(self) -> tuple[float, ...]:
        return tuple(sorted({at for at in self.starts() if at > 0}))

    def check(self, shape: Shape) -> None:
        start, end = self.looped(shape)
        if not start <= end < shape.num_layers:
            raise ValueError(
                f"`depth_recurrence` loops start … end within the {shape.num_layers} layers, but got {start} "
                f"… {end}. Use 0 <= start <= end <= {shape.num_layers - 1}."
            )
        if self.starts()[-1] > 0.95:
            raise ValueError(
                f"`depth_recurrence` must begin its last pass by 0.95 of the budget, but got "
                f"{self.starts()[-1]}. Lower enable_at or stagger."
            )

    def plan(self, shape: Shape) -> Callable[[float], tuple[int, ...]]:
        (start, end), starts, layers = self.looped(shape), self.starts(), tuple(range(shape.num_layers))

        def order(progress: float) -> tuple[int, ...]:
            passes = 1 + sum(at <= progress for at in starts)
            return layers[:start] + layers[start : end + 1] * passes + layers[end + 1 :]

        return order

    def cost(self, shape: Shape) -> Cost:
        plain, looped = replace(shape, plan=()), replace(shape, plan=self.plan(shape)(1.0))
        more = looped.num_skips - plain.num_skips
        skips = (TensorSpec("scalar", (more, shape.model_dim)),) if more else ()
        head = 2.0 * shape.vocab_size * shape.model_dim
        a_layer = (plain.flops_per_token() - head) / shape.num_layers
        return Cost(skips, flops_per_token=a_layer * (len(looped.order) - shape.num_layers))
