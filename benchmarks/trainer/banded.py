"""Banded, sliding and plain scores of one model: `python -m benchmarks.trainer.banded`.

Without --data: CPU seconds alone, of a model with random weights and tokens. With it (a dataset folder and
its tokenizer, as `python -m corpus build` makes them) the model is trained first, `--steps` steps, and bits
per byte stand beside the seconds. One thread; the seconds of one run, the scorers one after the other.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import train_gpt
from corpus.dataset import open_dataset
from techniques import catalog
from techniques.config import resolve
from techniques.evaluation.banded import Banded
from techniques.evaluation.sliding_window import SlidingWindow
from train_gpt import Evaluation, PlainScorer, World, build_model
from trainer.artifact import ZlibCodec, unpack
from trainer.parameters import load_weights


def settings(options: argparse.Namespace) -> dict[str, Any]:
    sizes = {"num_layers": options.layers, "model_dim": options.width, "num_heads": 4, "num_kv_heads": 2}
    length = {"train_seq_len": options.seq_len, "train_batch_tokens": 16 * options.seq_len}
    run = {"iterations": options.steps, "warmup_steps": 0, "warmdown_iters": options.steps // 3}
    run |= {"max_wallclock_seconds": 0.0, "val_loss_every": 0, "matrix_lr": 0.04, "micro_batches": 1}
    here = {"device": "cpu", "num_threads": 1, "vocab_size": 1024, "val_tokens": options.tokens}
    if options.data:
        here |= {"data_path": options.data, "tokenizer_path": options.tokenizer}
    return sizes | length | run | here


def model_and_bytes(options: argparse.Namespace) -> tuple[Any, Any, torch.Tensor, Any]:
    """(model, world, tokens [N + 1], dataset or None), the model trained where there is data."""
    with tempfile.TemporaryDirectory() as folder:
        resolved = resolve({"file": settings(options) | {"out_dir": folder}}, catalog.runtime())
        c = resolved.config
        world = World(c)
        model = build_model(resolved).eval()
        generator = torch.Generator().manual_seed(0)
        if not options.data:
            tokens = torch.randint(c.vocab_size, (options.tokens + 1,), generator=generator)
            return model, world, tokens.to(torch.int32), None
        if train_gpt.Run(resolved).go():
            raise SystemExit(3)
        _, weights = unpack((Path(folder) / "artifact.bin").read_bytes(), {"zlib": ZlibCodec()})
        load_weights(model, weights)
        data = open_dataset(
            c.data_path, tokenizer_path=c.tokenizer_path, vocab_size=c.vocab_size, seq_len=c.train_seq_len
        )
        return model, world, train_gpt.validation_tokens(data, c), data


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="")
    parser.add_argument("--tokenizer", default="")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=65_536)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, world, tokens, data = model_and_bytes(options)
    scorers = {"plain": PlainScorer(), "banded": Banded().scorer()}
    scorers["sliding, stride 64"] = SlidingWindow().scorer()
    spent: dict[str, float] = {}
    for name, scorer in scorers.items():
        run = Evaluation(model, tokens, options.seq_len, max(1, 8192 // options.seq_len), world)
        start = time.process_time()
        scorer.score(run)
        spent[name] = time.process_time() - start
        nats = float(run.nll.double().mean())
        told = f"{run.result(data).val_bpb:.4f} BPB" if data else f"{nats / math.log(2):.4f} bits a token"
        print(f"{name:20} {spent[name]:8.2f} CPU s  {told}", flush=True)
    print(f"banded / sliding {spent['banded'] / spent['sliding, stride 64']:.3f}, S = {options.seq_len}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
