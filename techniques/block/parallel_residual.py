"""From layer `start` on, attention and MLP write to the stream side by side, or to two lanes of it.

x: the stream, then lane 0; l: lane 1, which begins as a copy of x; A = attention of mix(x, x0), M = MLP, both
with their scales. Four published variants (one technique):
- `single`  x ← mix(x, x0) + A + M(mix(x, x0)): GPT-J. #1412, #1493 (start 7).
- `lanes`   x ← mix(x, x0) + A; l ← l + M(l); at the end λ·x + (1−λ)·l, λ = 0.5. #1477 (start 7).
- `routed`  (x, l) ← ρ_a·(x, l) + p_a·A; then (x, l) ← ρ_m·(x, l) + p_m·M(mix(l, x0)). #1204 (start 7).
  p = 1, ρ = √1.1.
- `crossed` x ← ρ_a·x + p_a0·A + p_m0·M(l); l ← ρ_m·l + p_a1·A + p_m1·M(l): both read before either writes.
  #1529, #1855 (start 8). p = 1, ρ = 1.1.
Where a U-Net skip joins: `crossed` takes its copy before the first layer's skip, and skips join x alone;
`lanes` takes it behind that skip, and later ones join x alone; in `routed` a skip joins both lanes, each what
it left itself.
`routed` and `crossed` end in their lanes' mean, or in one of them (`final`). A looped layer before `start`
keeps to lane 0. In #1855 the lanes begin in the second half of the order at the earliest, and a start of 0 is
off; here they begin where `start` says. `rows` = all also keeps the published code's weights of the layers
before `start`, which nothing reads (#1855's 66 parameters).
Cost: 0, 1, or 6 a layer. Identity at init: no.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from techniques.base import Choice, Cost, Shape, Technique, TensorSpec, setting
from trainer.parameters import parameter

PARALLEL_MODES = ("single", "lanes", "routed", "crossed")
PARALLEL_FINALS = ("mean", "attn", "mlp")
PARALLEL_LANE = "lane"  # ctx's name of lane 1


def parallel_single(block: Any, x: torch.Tensor, x0: torch.Tensor, ctx: dict[str, Any]) -> torch.Tensor:
    x = block.mix(x, x0)
    return x + block.attention(x, ctx) + block.feed_forward(x, ctx)


def parallel_lanes(block: Any, x: torch.Tensor, x0: torch.Tensor, ctx: dict[str, Any]) -> torch.Tensor:
    lane = ctx.get(PARALLEL_LANE, x)
    ctx[PARALLEL_LANE] = lane + block.feed_forward(lane, ctx)
    x = block.mix(x, x0)
    return x + block.attention(x, ctx)


class ParallelRoutes(nn.Module):
    """`routed` or `crossed`: post [branch, lane] weighs what is written, keep [branch] what is kept."""

    def __init__(self, *, crossed: bool):
        super().__init__()
        self.crossed = crossed
        self.post = parameter(torch.ones(2, 2), "scalar")
        self.keep = parameter(torch.full((2,), 1.1 if crossed else math.sqrt(1.1)), "scalar")

    def forward(self, block: Any, x: torch.Tensor, x0: torch.Tensor, ctx: dict[str, Any]) -> torch.Tensor:
        post, keep = self.post.to(x.dtype), self.keep.to(x.dtype)
        lane = self.lane_of(x, ctx)
        a = block.attention(block.mix(x, x0), ctx)
        if self.crossed:
            m = block.feed_forward(lane, ctx)
            x = keep[0] * x + post[0, 0] * a + post[1, 0] * m
            ctx[PARALLEL_LANE] = keep[1] * lane + post[0, 1] * a + post[1, 1] * m
            return x
        x = keep[0] * x + post[0, 0] * a
        lane = keep[0] * lane + post[0, 1] * a
        m = block.feed_forward(block.mix(lane, x0), ctx)
        ctx[PARALLEL_LANE] = keep[1] * lane + post[1, 1] * m
        return keep[1] * x + post[1, 0] * m

    def lane_of(self, x: torch.Tensor, ctx: dict[str, Any]) -> torch.Tensor:
        """Lane 1 as this layer finds it; x has its skip already."""
        lane = ctx.get(PARALLEL_LANE)
        join_lane = ctx["join"]
        if lane is None:
            return ctx["before_skip"] if self.crossed else x
        return lane if self.crossed or join_lane is None else join_lane(lane)


class ParallelMerge(nn.Module):
    """The lanes' end: a learned blend (`lanes`), else their mean or one of them."""

    def __init__(self, final: str, *, learned: bool, unused: int):
        super().__init__()
        self.share = parameter(torch.tensor(0.5), "scalar") if learned else None
        self.unused = parameter(torch.ones(unused, 6), "scalar") if unused else None
        self.fixed = {"mean": 0.5, "attn": 1.0, "mlp": 0.0}[final]  # lane 0's share

    def forward(self, x: torch.Tensor, ctx: dict[str, Any]) -> torch.Tensor:
        share = self.fixed if self.share is None else self.share.to(x.dtype)
        return share * x + (1 - share) * ctx[PARALLEL_LANE]


class ParallelResidual(Technique):
    """Attention and MLP side by side in the last layers."""

    name = "parallel_residual"
    reference = "PR #1204 (routed), #1412 (single), #1477 (lanes), #1529 and #1855 (crossed)"
    space = {"mode": Choice(PARALLEL_MODES)}
    env = {"PARALLEL_START_LAYER": "start", "PARALLEL_FINAL_LANE": "final"}
    smoke = {"mode": "crossed", "start": 0}

    @dataclass(frozen=True)
    class Config:
        mode: str = setting("crossed", "which variant", choices=PARALLEL_MODES)
        start: int = setting(
            -1, "first layer that it enters, 0-based; -1: 8/11 of the depth", low=-1, high=63
        )
        final: str = setting("mean", "what routed and crossed end in", choices=PARALLEL_FINALS)
        rows: str = setting(
            "used",
            "weights of routed and crossed: of the used layers, or also of those before (never read)",
            choices=("used", "all"),
        )

    def first(self, shape: Shape) -> int:
        return 8 * shape.num_layers // 11 if self.config.start < 0 else self.config.start

    def check(self, shape: Shape) -> None:
        if self.first(shape) >= shape.num_layers:
            raise ValueError(
                f"`parallel_residual.start` must be a layer, 0 … {shape.num_layers - 1}, but got "
                f"{self.first(shape)}."
            )

    def has_routes(self) -> bool:
        return self.config.mode in ("routed", "crossed")

    def unused(self, shape: Shape) -> int:
        return self.first(shape) if self.has_routes() and self.config.rows == "all" else 0

    def cost(self, shape: Shape) -> Cost:
        layers, unused = shape.num_layers - self.first(shape), self.unused(shape)
        tensors = (TensorSpec("scalar", (2, 2)), TensorSpec("scalar", (2,))) * (layers * self.has_routes())
        if unused:
            tensors += (TensorSpec("scalar", (unused, 6)),)
        if self.config.mode == "lanes":
            tensors += (TensorSpec("scalar", ()),)
        return Cost(tensors, flops_per_token=0.0 if self.config.mode == "single" else 8.0 * layers)

    def residual(self, shape: Shape, layer: int):
        if layer < self.first(shape):
            return None
        if self.has_routes():
            return ParallelRoutes(crossed=self.config.mode == "crossed")
        return parallel_single if self.config.mode == "single" else parallel_lanes

    def block_out(self, shape: Shape, layer: int):
        if layer < shape.num_layers or self.config.mode == "single":
            return None
        final = self.config.final if self.has_routes() else "mean"
        return ParallelMerge(final, learned=self.config.mode == "lanes", unused=self.unused(shape))
