"""Banks of matrices take Muon's very steps, on one rank bit for bit, on two to rounding."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import train_gpt
from techniques.config import Config
from techniques.optimizer.parallel_muon import ParallelMuon, bank_of, matrices_of

SHAPES = [(8, 8), (4, 8), (8, 8), (16, 8), (8, 8), (4, 8)]


class OneRank:
    rank, size = 0, 1

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def parameters(seed: int = 0) -> list[Any]:
    """Six matrices and a vector."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [*SHAPES, (8,)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def take_steps(kind: Any, world: Any, *, clip: float, share: float = 1.0, idle: int = -1) -> list[Any]:
    """Three steps of two groups; a rank holds `share` of each gradient, parameter `idle` none at first."""
    params = parameters()
    groups = [{"params": params[:4]}, {"params": params[4:6], "lr": 0.05}]
    optimizer = kind(groups, 0.1, train_gpt.Hyper(muon_weight_decay=0.3), world, torch.float32)
    for step in range(3):
        for i, (p, g) in enumerate(zip(params, parameters(step + 1), strict=True)):
            p.grad = None if i == idle and step == 0 else share * g.detach().clone()
        optimizer.settle_gradients(params, clip)
        optimizer.step()
        with torch.no_grad():
            params[6].sub_(0.1 * params[6].grad)  # as the other optimiser would
    return [p.detach() for p in params]


@pytest.mark.parametrize("idle", [-1, 2])
def test_one_rank_takes_muons_steps_bit_for_bit(idle: int):
    ours, plain = (
        take_steps(kind, OneRank(), clip=0.0, idle=idle) for kind in (ParallelMuon, train_gpt.Muon)
    )
    for a, b, first in zip(ours, plain, parameters(), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, first)


def test_clipping_is_that_of_the_global_norm():
    ours, plain = (take_steps(kind, OneRank(), clip=0.7) for kind in (ParallelMuon, train_gpt.Muon))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_bank_gives_its_matrices_back(ranks: int, count: int):
    matrices = list(torch.randn(count, 3, 5, generator=torch.Generator().manual_seed(0)))
    bank = bank_of(matrices, ranks=ranks, dtype=torch.float32)
    assert len(bank) % ranks == 0 and len(bank) - count < ranks and not bool(bank[count:].any())
    for a, b in zip(matrices_of(bank, count), matrices, strict=True):
        assert torch.equal(a, b)


def test_its_state_is_the_optimisers_and_can_be_put_back():
    """Trap 21: what the warm-up leaves in the momentum must not survive it."""
    params = parameters()[:6]
    optimizer: Any = ParallelMuon(params, 0.1, train_gpt.Hyper(), OneRank(), torch.float32)
    before = optimizer.state_dict()
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.settle_gradients(params, 0.0)
    optimizer.step()
    assert optimizer.state
    optimizer.load_state_dict(before)
    assert not optimizer.state


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_ranks_take_the_steps_of_one(tmp_path: Path):
    script = Path(__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    root = train_gpt.ROOT
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [*command, str(script), str(tmp_path)],
        cwd=root,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    plain = take_steps(train_gpt.Muon, OneRank(), clip=0.7)
    for rank in (0, 1):
        for a, b in zip(torch.load(tmp_path / f"{rank}.pt"), plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    world = train_gpt.World(Config(device="cpu"))
    # the two ranks' gradients sum to those of one process
    steps = take_steps(ParallelMuon, world, clip=0.7, share=(0.25, 0.75)[world.rank])
    torch.save(steps, Path(sys.argv[1]) / f"{world.rank}.pt")
    world.close()
