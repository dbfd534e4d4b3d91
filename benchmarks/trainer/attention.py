"""Attention on a CPU, by length and dtype: `python -m benchmarks.trainer.attention`.

CPU milliseconds of forward and backward and of the forward, `blocked` over PyTorch's SDPA, and how far both
are from float64. All pairs in turns (A B A B …) on one thread: the ratios are of neighbours. Whole steps:
benchmarks/trainer/step_time.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from trainer.attention import Attend, blocked, sdpa

HEADS = ((4, 2, 32), (8, 4, 64))  # of query, of key, their width
LENGTHS = (64, 128, 256, 512, 1024, 2048)


def inputs(length: int, heads: tuple[int, int, int], dtype: torch.dtype, tokens: int) -> list[Tensor]:
    """q, k, v and the gradient of y, of `tokens` tokens in sequences of `length`."""
    generator = torch.Generator().manual_seed(0)
    num, kv, width = heads
    sizes = [(tokens // length, length, n, width) for n in (num, kv, kv, num)]
    made = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    return [*(x.requires_grad_() for x in made[:3]), made[3]]


def cpu_ms(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def forward(attend: Attend, x: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return attend(*x[:3])


def gradients(attend: Attend, x: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(attend(*x[:3]), x[:3], x[3])


def error(attend: Attend, x: list[Tensor]) -> float:
    """RMS of y and the gradients less those in float64, over the RMS of those."""
    exact = [t.detach().double().requires_grad_() for t in x]
    wanted = [forward(sdpa, exact), *gradients(sdpa, exact)]
    found = [forward(attend, x), *gradients(attend, x)]
    return max(
        float((a.double() - b).square().mean().sqrt() / b.square().mean().sqrt())
        for a, b in zip(found, wanted, strict=True)
    )


def ratio(first: Callable[[], object], second: Callable[[], object], pairs: int) -> tuple[float, float]:
    """(median CPU ms of the first, median of second / first of neighbours)."""
    first()
    second()
    found = [(cpu_ms(first), cpu_ms(second)) for _ in range(pairs)]
    return statistics.median(a for a, _ in found), statistics.median(b / a for a, b in found)


def kernels(pairs: int) -> None:
    """blocked / sdpa, forward and backward, then forward alone."""
    print("dtype     heads      T    sdpa ms  blocked/sdpa  forward  error sdpa  blocked")
    for dtype in (torch.bfloat16, torch.float32):
        for heads in HEADS:
            for length in LENGTHS:
                x = inputs(length, heads, dtype, 4096)
                ms, both = ratio(lambda x=x: gradients(sdpa, x), lambda x=x: gradients(blocked, x), pairs)
                _, once = ratio(lambda x=x: forward(sdpa, x), lambda x=x: forward(blocked, x), pairs)
                errors = error(sdpa, x), error(blocked, x)
                name = str(dtype).removeprefix("torch.")
                print(
                    f"{name:9} {'/'.join(map(str, heads)):7} {length:5} {ms:10.1f} {both:13.2f} {once:8.2f}"
                    f"  {errors[0]:.1e}    {errors[1]:.1e}",
                    flush=True,
                )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kernels(options.pairs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
