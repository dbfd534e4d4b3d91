"""Full GPTQ of a model of `--layers` layers (d = 512, 8 heads, 4 of keys and values, MLP 3×) against the form
that the records print: `python -m benchmarks.trainer.gptq_solve [--layers 11] [--threads 1] [--bits 6]`.

The plain form is the published loop in its own dtype, float32: one clip after the other, rows first, each
column's error subtracted from the rest of its block, the clip of least squared error kept. Ours takes the
quantiser's own way from weights to integers. Weights are Gaussian, inputs correlated with a few large
columns. Ratios are over the first row; with threads to share, that is the plain form on one of them (set
OMP_WAIT_POLICY=passive, as the trainer does). Hessian errors are those of the kept integers in float64,
summed over the matrices. The last line is the plain loop in float64 on one matrix: its integers must be ours.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from techniques._quant import clip_scales, gptq_solve, hessian_error
from techniques.quantization.gptq import Gptq, GptqQuantizer

SHAPES = {"c_q": (512, 512), "c_k": (256, 512), "c_v": (256, 512), "proj": (512, 512)}
MLP = {"fc": (1536, 512), "proj": (512, 1536)}

Found = dict[str, tuple[Tensor, Tensor]]  # (q, scale) by parameter's name


def published_loop(weight: Tensor, hessian: Tensor, scale: Tensor, bits: int, config: Any) -> Tensor:
    """q int8 [r,c] of weight [r,c] under one scale a row, in the dtype of the weight: the oracle."""
    qmax, columns = 2 ** (bits - 1) - 1, weight.size(1)
    h = hessian.to(weight.dtype).clone()
    dead = h.diagonal() == 0
    mean = h.diagonal()[~dead].mean() if bool((~dead).any()) else 1.0
    order = torch.arange(columns)
    if config.act_order:
        order = torch.argsort(h.diagonal(), descending=True, stable=True)
    h.diagonal()[dead] = 1
    h.diagonal().add_(config.damp * mean)
    h = h[order][:, order]
    w = torch.where(dead, 0, weight)[:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper = torch.linalg.cholesky(inverse, upper=True)
    s = scale.to(weight.dtype)
    q = torch.zeros_like(w)
    for a in range(0, columns, config.block_size):
        b = min(a + config.block_size, columns)
        inside, own = w[:, a:b].clone(), upper[a:b, a:b]
        errors = torch.zeros_like(inside)
        for j in range(b - a):
            column = inside[:, j]
            q[:, a + j] = (column / s).round().clamp(-qmax, qmax)
            error = (column - s * q[:, a + j]) / own[j, j]
            inside[:, j:] -= error[:, None] * own[j, j:][None]
            errors[:, j] = error
        w[:, b:] -= errors @ upper[a:b, b:]
    return q[:, torch.argsort(order)].to(torch.int8)


def published_quantize(weight: Tensor, hessian: Tensor, bits: int, config: Any) -> tuple[Tensor, Tensor]:
    """(q, scale) of the clip percentile whose squared error is least: a whole loop for each."""
    best: tuple[float, Tensor, Tensor] | None = None
    for scale in clip_scales(weight, bits, config.scale_floor):
        q = published_loop(weight, hessian, scale, bits, config)
        error = float((weight - q.float() * scale.float()[:, None]).square().mean())
        if best is None or error < best[0]:
            best = error, q, scale
    assert best is not None
    return best[1], best[2]


def model(layers: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and Hessians by parameter's name; matrices that read the same inputs have the same."""
    g = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}
    hessians: dict[str, Tensor] = {}
    for layer in range(layers):
        for part, shapes in (("attn", SHAPES), ("mlp", MLP)):
            for name, (rows, columns) in shapes.items():
                key = f"blocks.{layer}.{part}.{name}.weight"
                weights[key] = torch.randn(rows, columns, generator=g) * columns**-0.5
                x = torch.randn(2 * columns, columns, generator=g) * torch.rand(columns, generator=g).pow(
                    -0.3
                )
                x = x + 0.7 * x.roll(1, 1)
                same = key.replace("c_k", "c_q").replace("c_v", "c_q")
                hessians[key] = hessians[same] if same != key else x.T @ x / len(x)
    return weights, hessians


def on_one(work: Callable[[], Any], threads: int) -> Callable[[], Any]:
    """The same work on one thread."""

    def alone() -> Any:
        torch.set_num_threads(1)
        try:
            return work()
        finally:
            torch.set_num_threads(threads)

    return alone


def measured(work: Callable[[], Found]) -> tuple[Found, float, float]:
    """What it gave, CPU seconds, seconds on the wall."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = work()
    return found, time.process_time() - cpu, time.perf_counter() - wall


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bits", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = Gptq.Config(clip_rule="mse")  # as the records choose the clip
    weights, hessians = model(options.layers)
    jobs = [(name, w, options.bits, None) for name, w in weights.items()]

    def ours(factor: str) -> Found:
        quantizer = GptqQuantizer(dataclasses.replace(config, factor=factor))
        quantizer.hessians = hessians
        quantizer.solve_jobs(jobs)
        return {job[0]: quantizer.quantize(*job) for job in jobs}

    def plain() -> Found:
        return {n: published_quantize(w, hessians[n], options.bits, config) for n, w in weights.items()}

    ways = {"plain form": plain, "ours": lambda: ours("inverse"), "ours, reverse": lambda: ours("reverse")}
    if options.threads > 1:
        ways = {"plain form, one thread": on_one(plain, options.threads), **ways}
    table = Table(title=f"{len(weights)} matrices, five clips, {options.threads} threads")
    for column in ("way", "CPU s", "ratio", "wall s", "ratio", "Hessian error", "equal integers"):
        table.add_column(column, justify="left" if column == "way" else "right")
    base: tuple[Found, float, float] | None = None
    for label, way in ways.items():
        found, cpu, wall = measured(way)
        base = base or (found, cpu, wall)
        error = sum(float(hessian_error(weights[n], q, s, hessians[n])) for n, (q, s) in found.items())
        equal = sum(int((found[n][0] == base[0][n][0]).sum()) for n in weights)
        share = f"{equal / sum(w.numel() for w in weights.values()):.5f}"
        figures = [f"{cpu:.2f}", f"{cpu / base[1]:.3f}", f"{wall:.2f}", f"{wall / base[2]:.3f}"]
        table.add_row(label, *figures, f"{error:.6f}", share)
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    name = next(iter(weights))
    scales = clip_scales(weights[name], options.bits, config.scale_floor)
    solved = gptq_solve(weights[name], hessians[name], scales, options.bits, config)
    slow = published_loop(weights[name].double(), hessians[name], scales[0], options.bits, config)
    print("float64, one matrix: equal integers", solved is not None and torch.equal(solved[0], slow))
    return 0


if __name__ == "__main__":
    sys.exit(main())
