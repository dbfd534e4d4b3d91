"""Scores of one model and their CPU seconds: `python -m benchmarks.trainer.scorers [--scorers NAME …]`.

Each scorer beside its straightforward form, which runs the whole model and the whole head on every window
with PyTorch's attention; `plain` and `banded` stand for themselves. Their nats must agree, within rounding
that SLOT's and TTT's steps carry on. Without --data the model and the tokens are random. With it (a dataset
folder and its tokenizer, as `python -m corpus build` makes them) the model is trained first, `--steps` steps,
and bits per byte stand beside the seconds. One thread; in turns, `--rounds` of them: medians.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import train_gpt
from corpus.dataset import open_dataset
from techniques import catalog
from techniques._windows import window_batches, window_tensors, windows, write_window_nats
from techniques.config import resolve
from techniques.evaluation.banded import Banded
from techniques.evaluation.score_first_ttt import ScoreFirstTtt
from techniques.evaluation.sliding_window import SlidingWindow
from techniques.evaluation.slot import SlotTuning
from train_gpt import Evaluation, PlainScorer, World, build_model
from trainer.artifact import ZlibCodec, unpack
from trainer.parameters import load_weights

STRIDE = 64


def settings(options: argparse.Namespace) -> dict[str, Any]:
    sizes = {"num_layers": options.layers, "model_dim": options.width, "num_heads": 4, "num_kv_heads": 2}
    length = {"train_seq_len": options.seq_len, "train_batch_tokens": 16 * options.seq_len}
    run = {"iterations": options.steps, "warmup_steps": 0, "warmdown_iters": options.steps // 3}
    run |= {"max_wallclock_seconds": 0.0, "val_loss_every": 0, "matrix_lr": 0.04, "micro_batches": 1}
    here = {"device": "cpu", "num_threads": 1, "vocab_size": 1024, "val_tokens": options.tokens}
    if options.data:
        here |= {"data_path": options.data, "tokenizer_path": options.tokenizer}
    return sizes | length | run | here


def models_and_bytes(options: argparse.Namespace) -> tuple[list[Any], Any, torch.Tensor, Any]:
    """([model, the same with PyTorch's attention], world, tokens [N + 1], dataset or None), the model trained
    where there is data."""
    with tempfile.TemporaryDirectory() as folder:
        told = settings(options) | {"out_dir": folder}
        resolved = resolve({"file": told}, catalog.runtime())
        c = resolved.config
        world = World(c)
        model = build_model(resolved).eval()
        beside = build_model(resolve({"file": told | {"attention": "sdpa"}}, catalog.runtime())).eval()
        generator = torch.Generator().manual_seed(0)
        if not options.data:
            with torch.no_grad():  # projections begin at zero
                for p in model.parameters():
                    p.add_(0.02 * torch.randn(p.shape, generator=generator))
            load_weights(beside, dict(model.named_parameters()))
            tokens = torch.randint(c.vocab_size, (options.tokens + 1,), generator=generator)
            return [model, beside], world, tokens.to(torch.int32), None
        if train_gpt.Run(resolved).go():
            raise SystemExit(3)
        _, weights = unpack((Path(folder) / "artifact.bin").read_bytes(), {"zlib": ZlibCodec()})
        for each in (model, beside):
            load_weights(each, weights)
        data = open_dataset(
            c.data_path, tokenizer_path=c.tokenizer_path, vocab_size=c.vocab_size, seq_len=c.train_seq_len
        )
        return [model, beside], world, train_gpt.validation_tokens(data, c), data


def slide(run: Any, found: Any = None) -> None:
    """Sliding windows: all logits of each, the scored ones' nats."""
    with torch.no_grad():
        for batch in window_batches(
            windows(run.num_positions, run.seq_len, STRIDE) if found is None else found, run.batch_seqs
        ):
            ids, targets, context = window_tensors(run, batch)
            logits = run.model.logits(run.model.hidden(ids))
            nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
            write_window_nats(run, batch, nats.view_as(targets)[:, context:])


def train_as_scored(run: Any, config: Any) -> None:
    """Score-first TTT: a chunk's windows, then SGD on its sequences."""
    chunks: dict[int, list[Any]] = {}
    for window in windows(run.num_positions, run.seq_len, STRIDE):
        chunks.setdefault(window[1] // config.chunk_tokens, []).append(window)
    trained = list(run.model.parameters())
    optimizer = torch.optim.SGD(trained, lr=config.lr, momentum=config.momentum)
    for i, found in chunks.items():
        slide(run, found)
        if i + 1 == len(chunks):
            break
        optimizer.param_groups[0]["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * i / (len(chunks) - 1)))
        first = i * config.chunk_tokens
        size = config.chunk_tokens // run.seq_len
        for at in [*range(0, size, config.batch_seqs)] * config.epochs:
            rows = range(at, min(at + config.batch_seqs, size))
            optimizer.zero_grad(set_to_none=True)
            run.model(*run.windows([first + k * run.seq_len for k in rows], run.seq_len)).backward()
            torch.nn.utils.clip_grad_norm_(trained, config.grad_clip)
            optimizer.step()


def shift_windows(run: Any, config: Any) -> None:
    """SLOT: the head of every position in every step, the loss over those that are scored."""
    model = run.model
    for batch in window_batches(windows(run.num_positions, run.seq_len, STRIDE), config.batch_seqs):
        ids, targets, context = window_tensors(run, batch)
        with torch.no_grad():
            h = model.hidden(ids).float()
        delta = torch.zeros_like(h[:, :1], requires_grad=True)
        bias = torch.zeros(len(batch), 1, model.tok_emb.size(0), requires_grad=True)

        def nats(
            h: torch.Tensor = h, targets: torch.Tensor = targets, delta: Any = delta, bias: Any = bias
        ) -> torch.Tensor:
            z = model.cap(model.project(h + delta) + bias)
            return F.cross_entropy(z.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)

        optimizer = torch.optim.AdamW([delta, bias], lr=config.lr)
        for t in range(config.steps):
            cosine = 0.5 * (1.0 + math.cos(math.pi * t / config.steps))
            optimizer.param_groups[0]["lr"] = config.lr_min + (config.lr - config.lr_min) * cosine
            optimizer.zero_grad()
            nats()[:, context:].mean(1).sum().backward(inputs=[delta, bias])
            optimizer.step()
        with torch.no_grad():
            write_window_nats(run, batch, nats()[:, context:])


@dataclass(frozen=True)
class Pair:
    """A scorer, and its straightforward form where it has one."""

    ours: Callable[[Any], object]
    straight: Callable[[Any], object] | None = None


def pairs(options: argparse.Namespace) -> dict[str, Pair]:
    ttt = ScoreFirstTtt.Config(chunk_tokens=options.tokens // 4, stride=STRIDE)
    slot = SlotTuning.Config(stride=STRIDE)
    return {
        "plain": Pair(PlainScorer().score),
        "banded": Pair(Banded().scorer().score),
        "sliding": Pair(SlidingWindow(SlidingWindow.Config(stride=STRIDE)).scorer().score, slide),
        "ttt": Pair(ScoreFirstTtt(ttt).scorer().score, lambda run: train_as_scored(run, ttt)),
        "slot": Pair(SlotTuning(slot).scorer().score, lambda run: shift_windows(run, slot)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="")
    parser.add_argument("--tokenizer", default="")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--scorers", nargs="*", default=["plain", "banded", "sliding", "ttt", "slot"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    models, world, tokens, data = models_and_bytes(options)
    found = {name: pair for name, pair in pairs(options).items() if name in options.scorers}
    spent: dict[tuple[str, int], list[float]] = {}
    runs: dict[tuple[str, int], Any] = {}
    for _ in range(options.rounds):
        for name, pair in found.items():
            for which, score in enumerate((pair.ours, pair.straight)):
                if score is None:
                    continue
                batch = max(1, 8192 // options.seq_len)
                run = Evaluation(copy.deepcopy(models[which]), tokens, options.seq_len, batch, world)
                start = time.process_time()
                score(run)
                spent.setdefault((name, which), []).append(time.process_time() - start)
                runs[name, which] = run
    for name in found:
        print(line_of(name, spent, runs, data))
    if {"banded", "sliding"} <= found.keys():
        share = statistics.median(spent["banded", 0]) / statistics.median(spent["sliding", 0])
        print(f"banded / sliding {share:.3f}, S = {options.seq_len}")
    return 0


def line_of(name: str, spent: Any, runs: Any, data: Any) -> str:
    """A scorer's seconds and score, and how it stands to its straightforward form."""
    run = runs[name, 0]
    told = f"{run.result(data).val_bpb:.4f} BPB" if data else f"{float(run.nll.mean()):.4f} nats a token"
    line = f"{name:8} {statistics.median(spent[name, 0]):8.2f} CPU s  {told}"
    if (name, 1) not in runs:
        return line
    share = statistics.median(a / b for a, b in zip(spent[name, 0], spent[name, 1], strict=True))
    apart = (run.nll.double() - runs[name, 1].nll.double()).abs()
    told = (
        f"{share:.3f} of the straightforward form; nats apart: {apart.mean():.1e}, at most {apart.max():.1e}"
    )
    return f"{line}  {told}"


if __name__ == "__main__":
    sys.exit(main())
