"""For the tests of scorers and of gptq: a tiny perturbed model, tokens, and worlds of any size in threads."""

import threading
from collections.abc import Callable
from typing import Any

import torch

from techniques.config import resolve
from train_gpt import Evaluation, build_model
from trainer.ledger import Ledger

TINY = {
    "vocab_size": 64,
    "num_layers": 2,
    "model_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "train_seq_len": 32,
    "train_batch_tokens": 64,
    "micro_batches": 2,
    "compute_dtype": "float32",
    "device": "cpu",
}


BUILDING = threading.Lock()  # initialisation draws from torch's one global generator


class StubWorld:
    """One of `size` ranks; sum() adds over the threads that share `meet` and `board`, into a new tensor."""

    device = torch.device("cpu")

    def __init__(self, rank: int = 0, size: int = 1, meet: Any = None, board: Any = None):
        self.rank, self.size, self.meet, self.board = rank, size, meet, board
        self.ledger = Ledger()
        self.not_compiled: list[str] = []

    def my_range(self, n: int) -> range:
        return range(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.size > 1:
            self.board[self.rank] = tensor.clone()
            self.meet.wait()
            total = torch.stack([self.board[r] for r in range(self.size)]).sum(0)
            self.meet.wait()
            return total
        return tensor


def single() -> Any:
    """A world of one rank."""
    return StubWorld()


def tiny_model(known: Any = None, **settings: Any) -> Any:
    """Every parameter moved off its initial value: zero-initialised projections would hide a leak."""
    with BUILDING:
        model = build_model(resolve({"file": TINY | settings}, known or {}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.eval()


def tiny_tokens(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 64, (n + 1,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def run_scorer(scorer: Any, tokens: torch.Tensor, batch_seqs: int = 4, world: Any = None) -> Evaluation:
    """One evaluation on a fresh model with sequences of 32."""
    run = Evaluation(tiny_model(), tokens, 32, batch_seqs, world or single())
    scorer.score(run)
    assert world is not None or bool(run.written.all())
    return run


def on_ranks(size: int, work: Callable[[StubWorld], Any]) -> list[Any]:
    """work(world) on `size` threads, as ranks of one world."""
    meet, board, out = threading.Barrier(size, timeout=60), {}, [None] * size

    def one(rank: int) -> None:
        out[rank] = work(StubWorld(rank, size, meet, board))

    threads = [threading.Thread(target=one, args=(r,)) for r in range(size)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return out
