"""CPU seconds of a training step: `python -m benchmarks.trainer.step_time [--code CHECKOUT] [--public FILE]`.

At 6 layers of 256 (8,192 tokens, T = 512) and at the laptop preset, forms in turns (A B C A B C …), each in a
process of its own on one thread: ours, ours with PyTorch's attention, another checkout of this project, the
public script (its model and optimisers, on a CPU in the dtypes that it has on a GPU), and the bound: the
matrix products of our step alone. Medians, and the median ratios of neighbours.

`--allocator`: whole short runs instead, with glibc's defaults and with the settings that
search/trainers/process.py gives its trainers.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import train_gpt
from conformance.lab import QuietLog
from corpus.shards import write_shard
from search.common.paths import ROOT
from search.trainers.process import ALLOCATOR
from search.trainers.trainer import TRAINER
from techniques import catalog
from techniques.config import Config, read_preset, resolve
from trainer.seams import Seams

SIX = {"num_layers": 6, "model_dim": 256, "num_heads": 4, "num_kv_heads": 2, "train_seq_len": 512}
CASES: dict[str, dict[str, Any]] = {
    "6 x 256, T = 512": SIX | {"train_batch_tokens": 8192, "micro_batches": 1, "max_wallclock_seconds": 0},
    "laptop": read_preset("laptop"),
}
LARGE = 2048  # rows and columns of the product that tells the machine's rate
Step = Callable[[], object]


def ours(case: str, attention: str, folder: Path) -> Step:
    """The trainer's own step, on random tokens."""
    place = {"device": "cpu", "num_threads": 1, "attention": attention, "data_path": str(folder)}
    resolved = resolve({"preset": CASES[case] | place}, catalog.runtime())
    write_shard(folder / "fineweb_train_000000.bin", np.random.default_rng(0).integers(2, 1024, 1 << 20))
    data: Any = type("Data", (), {"train_paths": [folder / "fineweb_train_000000.bin"]})
    log: Any = QuietLog()
    trainer = train_gpt.Trainer(Seams(resolved), train_gpt.World(resolved.config), data, log)
    return lambda: trainer.train_step(train_gpt.Moment(20, 0.5, resolved.config))


def load_script(path: Path) -> Any:
    """A public script as a module; what it imports for a GPU alone is left empty."""
    for absent in ("flash_attn_interface",):
        with suppress(ValueError):
            if importlib.util.find_spec(absent) is None:
                sys.modules[absent] = types.SimpleNamespace(flash_attn_func=None)  # type: ignore[assignment]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def public_model(script: Any, c: Config) -> Any:
    """The script's model in the dtypes that it has on a GPU."""
    shape = {n: getattr(c, n) for n in ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads")}
    told = {n: getattr(c, n) for n in ("tie_embeddings", "tied_embed_init_std", "logit_softcap", "rope_base")}
    model = script.GPT(**shape, mlp_mult=int(c.mlp_mult), qk_gain_init=1.5, **told).bfloat16()
    for module in model.modules():
        if isinstance(module, script.CastedLinear):
            module.float()
    script.restore_low_dim_params_to_fp32(model)
    return model


def public(case: str, path: Path) -> Step:
    """The public script's forward, backward and optimisers."""
    script = load_script(path)
    c = resolve({"preset": CASES[case]}, catalog.metadata()).config
    model = public_model(script, c)
    matrices = [p for n, p in model.blocks.named_parameters() if p.ndim == 2 and "resid_mix" not in n]
    mine = {id(p) for p in [*matrices, model.tok_emb.weight]}
    others = [p for p in model.parameters() if id(p) not in mine]
    optimizers = [torch.optim.Adam([p], lr=0.04, betas=(0.9, 0.95)) for p in [model.tok_emb.weight]]
    optimizers += [torch.optim.Adam(others, lr=0.04, betas=(0.9, 0.95))]
    optimizers += [script.Muon(matrices, lr=0.04, momentum=0.95, backend_steps=5)]
    rows = c.train_batch_tokens // c.train_seq_len
    ids = torch.from_numpy(np.random.default_rng(0).integers(2, c.vocab_size, (rows, c.train_seq_len + 1)))

    def step() -> None:
        model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


class Products(TorchDispatchMode):
    """Keeps the matrix products of what runs under it: (operation, arguments of the same sizes, FLOPs)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Any, list[Any], float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.partition("::")[2] in ("mm", "bmm", "addmm", "baddbmm"):
            alike = [torch.randn_like(x) if isinstance(x, Tensor) else x for x in args]
            *rows, inner = [x for x in args if isinstance(x, Tensor)][-2].shape
            flops = 2.0 * inner * args[-1].size(-1) * torch.Size(rows).numel()
            self.found.append((func, alike, flops))
        return func(*args, **(kwargs or {}))


def products(case: str, folder: Path) -> Step:
    """The products of one of our steps, one after the other."""
    step = ours(case, "auto", folder)
    step()
    with Products() as kept:
        step()
    a, b = (torch.randn(LARGE, LARGE, dtype=kept.found[0][1][0].dtype) for _ in range(2))
    torch.mm(a, b)
    start = time.process_time()
    torch.mm(a, b)
    rate = 2 * LARGE**3 / (time.process_time() - start)
    flops = sum(flops for *_, flops in kept.found)
    told = (
        f"{len(kept.found)} products, {flops / 1e9:.1f} GFLOP: {1000 * flops / rate:.1f} CPU ms at the rate"
    )
    print(f"{told} of one of {LARGE} x {LARGE}, {rate / 1e9:.0f} GFLOP/s", file=sys.stderr)
    return lambda: [func(*alike) for func, alike, _ in kept.found]


def serve(case: str, form: str, path: str) -> None:
    """Makes a step for every line of standard input and says its CPU seconds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if form == "public":
            step = public(case, Path(path))
        elif form == "products":
            step = products(case, Path(folder))
        else:
            step = ours(case, form, Path(folder))
        for _ in sys.stdin:
            start = time.process_time()
            step()
            print(time.process_time() - start, flush=True)


@contextmanager
def server(root: Path, *words: str) -> Iterator[Callable[[], float]]:
    """A form's process in a checkout: each call is one step's CPU seconds."""
    environ = {**os.environ, "PYTHONPATH": str(root), **ALLOCATOR}
    command = [sys.executable, "-P", __file__, "--serve", *words]
    with subprocess.Popen(
        command, cwd=root, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        stdin = process.stdin
        stdout = process.stdout
        assert stdin is not None and stdout is not None

        def seconds() -> float:
            stdin.write("\n")
            return float(stdout.readline())

        try:
            yield seconds
        finally:
            stdin.close()


def compare(case: str, code: Path | None, script: Path | None, rounds: int) -> None:
    """Medians of the forms, and ratios to the public script's and to the products' of the same round."""
    forms = {"ours": (ROOT, "auto", ""), "ours, sdpa": (ROOT, "sdpa", "")}
    forms |= {"another checkout": (code, "auto", "")} if code else {}
    forms |= {"public": (ROOT, "public", str(script))} if script else {}
    forms |= {"products": (ROOT, "products", "")}
    with ExitStack() as stack:
        made = {n: stack.enter_context(server(root, case, *words)) for n, (root, *words) in forms.items()}
        [seconds() for seconds in made.values()]
        found = [{name: seconds() for name, seconds in made.items()} for _ in range(rounds)]
    print(f"{case}: median CPU ms of {rounds} steps; over {', over '.join(made)}")
    for name in made:
        ms = 1000 * statistics.median(turn[name] for turn in found)
        over = [statistics.median(turn[name] / turn[base] for turn in found) for base in made]
        print(f"  {name:17} {ms:8.1f}  {'  '.join(f'{ratio:5.2f}' for ratio in over)}", flush=True)


def cpu_seconds(preset: str, steps: int, environ: dict[str, str]) -> float:
    """User and system seconds of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        command = [*TRAINER, "--preset", preset, f"--iterations={steps}", "--num_threads=1"]
        command += ["--val_tokens=1024", f"--out_dir={folder}"]
        subprocess.run(command, cwd=ROOT, env=environ, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def allocator(preset: str, rounds: int) -> None:
    """The difference of two lengths is the steps alone, without start-up."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    kinds = {"defaults": plain, "settings": plain | ALLOCATOR}
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, environ in kinds.items():
            long, short = (cpu_seconds(preset, steps, environ) for steps in (60, 10))
            found[name].append((long - short) / 50)
    for name, values in found.items():
        print(f"{name:9} {1000 * statistics.median(values):7.1f} CPU ms per step (median of {len(values)})")
    ratios = [b / a for a, b in zip(found["defaults"], found["settings"], strict=True)]
    print(f"settings / defaults {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--code", type=Path, help="another checkout of this project")
    parser.add_argument("--public", type=Path, help="the challenge's own train_gpt.py")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--allocator", metavar="PRESET", help="of whole runs of this preset")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(*options.serve)
    if options.allocator:
        return allocator(options.allocator, options.rounds)
    for case in CASES:
        compare(case, options.code, options.public, options.rounds)


if __name__ == "__main__":
    sys.exit(main())
