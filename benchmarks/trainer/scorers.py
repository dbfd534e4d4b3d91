"""Scores of one model and their CPU seconds: `python -m benchmarks.trainer.scorers [--scorers NAME …]`.

Each scorer beside its straightforward form, which runs the whole model and the whole head on every window
with PyTorch's attention; `plain` and `banded` stand for themselves. Their nats must agree, within rounding
that SLOT's and TTT's steps carry on. Without --data the model and the tokens are random. With it (a dataset
folder and its tokenizer, as `python -m corpus build` makes them) the model is trained first, `--steps` steps,
and bits per byte stand beside the seconds, of ours alone. One thread; in turns, `--rounds` of them: medians.

`--public FILE`, a public script of the baseline's model with an `eval_val_sliding`, scores with our weights
in the dtypes that it has on a GPU; `--public-ttt FILE`, a script with `eval_val_sliding_ttt`, adapts that
model. Both score the windows that a split's end cuts, which ours and the straightforward form do not have.
"""

from __future__ import annotations

import argparse
import copy
import io
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

import train_gpt
from benchmarks.trainer.step_time import load_script, public_model
from corpus.dataset import open_dataset
from search.trainers.process import ALLOCATOR
from techniques import catalog
from techniques._windows import window_batches, window_tensors, windows, write_window_nats
from techniques.config import Config, resolve
from techniques.evaluation.banded import Banded
from techniques.evaluation.score_first_ttt import ScoreFirstTtt
from techniques.evaluation.sliding_window import SlidingWindow
from techniques.evaluation.slot import SlotTuning
from train_gpt import Evaluation, PlainScorer, World, build_model
from trainer.artifact import ZlibCodec, unpack
from trainer.parameters import load_weights

STRIDE = 64
OURS = "ours"
STRAIGHT = "straight"


def settings(options: argparse.Namespace) -> dict[str, Any]:
    sizes = {"num_layers": options.layers, "model_dim": options.width, "num_heads": 4, "num_kv_heads": 2}
    length = {"train_seq_len": options.seq_len, "train_batch_tokens": max(4096, options.seq_len)}
    run = {"iterations": options.steps, "warmup_steps": 0, "warmdown_iters": options.steps // 3}
    run |= {"max_wallclock_seconds": 0.0, "val_loss_every": 0, "matrix_lr": 0.04, "micro_batches": 1}
    run |= {"seed": options.seed}
    here = {"device": "cpu", "num_threads": 1, "vocab_size": 1024, "val_tokens": options.tokens}
    if options.data:
        here |= {"data_path": options.data, "tokenizer_path": options.tokenizer}
    return sizes | length | run | here


@dataclass(frozen=True)
class Case:
    """A model, the same with PyTorch's attention, the tokens [N + 1] and, where there is data, its bytes."""

    model: Any
    beside: Any
    world: World
    tokens: torch.Tensor
    config: Config
    data: Any = None


def make_case(options: argparse.Namespace) -> Case:
    """The model trained where there is data."""
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
            return Case(model, beside, world, tokens.to(torch.int32), c)
        if train_gpt.Run(resolved).go():
            raise SystemExit(3)
        _, weights = unpack((Path(folder) / "artifact.bin").read_bytes(), {"zlib": ZlibCodec()})
        for each in (model, beside):
            load_weights(each, weights)
        data = open_dataset(
            c.data_path, tokenizer_path=c.tokenizer_path, vocab_size=c.vocab_size, seq_len=c.train_seq_len
        )
        return Case(model, beside, world, train_gpt.validation_tokens(data, c), c, data)


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


class Public:
    """Public scripts' scorers of one model, bfloat16 as on a GPU: mean nats a token."""

    def __init__(self, options: argparse.Namespace, case: Case):
        self.options = options
        self.script = load_script(options.public)
        self.model = public_model(self.script, case.config)
        with torch.no_grad():
            theirs = dict(self.model.named_parameters())
            for name, p in case.model.named_parameters():
                theirs["tok_emb.weight" if name == "tok_emb" else name].copy_(p)
            self.model.forward_logits(case.tokens[None, : options.seq_len].long())  # fills its rotary tables
        bytes_of = torch.ones(case.config.vocab_size, dtype=torch.int16)
        no = torch.zeros(case.config.vocab_size, dtype=torch.bool)
        self.told = (0, 1, torch.device("cpu"), case.tokens, bytes_of, no, no, STRIDE)

    def sliding(self, batch_seqs: int) -> float:
        args = SimpleNamespace(train_seq_len=self.options.seq_len)
        return self.quietly(self.script.eval_val_sliding, args, batch_seqs)

    def ttt(self, batch_seqs: int) -> float:
        c = ScoreFirstTtt.Config(chunk_tokens=self.options.tokens // 4, stride=STRIDE)
        args = SimpleNamespace(train_seq_len=self.options.seq_len)
        for name in ScoreFirstTtt.Config.__dataclass_fields__:
            setattr(args, f"ttt_{name}", getattr(c, name))
        script = load_script(self.options.public_ttt)
        return self.quietly(script.eval_val_sliding_ttt, args, batch_seqs)

    def quietly(self, score: Callable[..., tuple[float, float]], args: Any, batch_seqs: int) -> float:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no CUDA to autocast on
            return score(args, copy.deepcopy(self.model), *self.told, batch_seqs=batch_seqs)[0]


def forms_of(options: argparse.Namespace) -> dict[str, dict[str, Callable[[Any], object]]]:
    """scorer -> form -> what scores a run."""
    ttt = ScoreFirstTtt.Config(chunk_tokens=options.tokens // 4, stride=STRIDE)
    slot = SlotTuning.Config(stride=STRIDE)
    sliding = SlidingWindow(SlidingWindow.Config(stride=STRIDE))
    return {
        "plain": {OURS: PlainScorer().score},
        "banded": {OURS: Banded().scorer().score},
        "sliding": {OURS: sliding.scorer().score, STRAIGHT: slide},
        "ttt": {OURS: ScoreFirstTtt(ttt).scorer().score, STRAIGHT: lambda run: train_as_scored(run, ttt)},
        "slot": {OURS: SlotTuning(slot).scorer().score, STRAIGHT: lambda run: shift_windows(run, slot)},
    }


@dataclass
class Measured:
    """A form of a scorer over the rounds."""

    seconds: list[float] = field(default_factory=list)
    nats: float = math.nan  # a token
    told: str = ""
    nll: torch.Tensor | None = None


def measure(options: argparse.Namespace, case: Case) -> dict[tuple[str, str], Measured]:
    """(scorer, form) -> its CPU seconds and scores; forms in turns."""
    public = Public(options, case) if options.public else None
    batch = max(1, 8192 // options.seq_len)
    found: dict[tuple[str, str], Measured] = {}
    chosen = {name: forms for name, forms in forms_of(options).items() if name in options.scorers}
    for _ in range(options.rounds):
        for name, forms in chosen.items():
            for form, score in forms.items():
                if case.data and form != OURS:
                    continue
                at = found.setdefault((name, form), Measured())
                model = copy.deepcopy(case.model if form == OURS else case.beside)
                run = Evaluation(model, case.tokens, options.seq_len, batch, case.world)
                start = time.process_time()
                score(run)
                at.seconds.append(time.process_time() - start)
                at.nll = run.nll.double()
                at.nats = float(at.nll.mean())
                at.told = f"{run.result(case.data).val_bpb:.4f} BPB" if case.data else ""
            if public is not None and {"sliding": options.public, "ttt": options.public_ttt}.get(name):
                at = found.setdefault((name, "public"), Measured())
                start = time.process_time()
                at.nats = getattr(public, name)(batch)
                at.seconds.append(time.process_time() - start)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="")
    parser.add_argument("--tokenizer", default="")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--scorers", nargs="*", default=["plain", "banded", "sliding", "ttt", "slot"])
    parser.add_argument("--public", type=Path)
    parser.add_argument("--public-ttt", type=Path)
    options = parser.parse_args()
    if not ALLOCATOR.items() <= os.environ.items():  # as the search's own trainers have it
        command = [sys.executable, "-m", "benchmarks.trainer.scorers", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **ALLOCATOR})
    torch.set_num_threads(1)
    found = measure(options, make_case(options))
    for (name, form), at in found.items():
        print(line_of(name, form, found[name, OURS], at))
    return 0


def line_of(name: str, form: str, ours: Measured, at: Measured) -> str:
    """A form's seconds and score, and how ours stands to it."""
    line = (
        f"{name:8} {form:8} {statistics.median(at.seconds):8.2f} CPU s  {at.nats:.5f} nats a token {at.told}"
    )
    if at is ours:
        return line
    share = statistics.median(a / b for a, b in zip(ours.seconds, at.seconds, strict=True))
    line += f"  ours is {share:.3f} of it"
    if at.nll is None or ours.nll is None:
        return line
    apart = (ours.nll - at.nll).abs()
    return f"{line}; nats apart: {apart.mean():.1e}, at most {apart.max():.1e}"


if __name__ == "__main__":
    sys.exit(main())
