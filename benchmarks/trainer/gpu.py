"""The trainer on a GPU: `python -m benchmarks.trainer.gpu --data data/datasets/NAME_sp1024 [PRESETS...]`.

First the kernels alone: causal attention by each kernel, forward and backward, at the records' sizes; an
optimiser step. Then the presets at full size, as processes: `--jobs` of them at a time fill the compiler's
cache with runs of a few steps, and then each runs alone for `--steps` steps and a full evaluation. Published
times are of 8 H100; here `8 x published` is what one GPU would need at the same efficiency. Utilisation
counts 6 · parameters · tokens operations a step and those of the attention, over 989 TFLOP/s (H100 and H200,
dense bfloat16). A preset whose vocabulary is not that of `--data` takes `--data-8192`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import train_gpt
from benchmarks.trainer.one_card import tokenizer_of
from techniques import catalog
from techniques.config import read_preset, resolve
from trainer.attention import pick_attention
from trainer.muon import Muon
from trainer.parameters import parameter

ROOT = Path(__file__).resolve().parents[2]
PEAK = 989e12  # operations a second
PUBLISHED_MS = {  # a step on 8 H100, from the records' logs (#1855 mixes its two phases)
    "naive": 43.54,
    "pr414": 84.6,
    "pr549": 83.4,
    "pr569": 91.4,
    "pr1019": 86.7,
    "pr1263": 114.0,
    "pr518": 101.1,
    "pr1855": 121.7,
}


def milliseconds(work: Callable[[], Any], repeats: int = 20) -> float:
    """Median of `repeats` runs after three, by the device's own clock."""
    times: list[float] = []
    for i in range(repeats + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times += [begin.elapsed_time(end)] if i >= 3 else []
    return statistics.median(times)


def attention_row(name: str, length: int, tokens: int) -> str:
    """One kernel at 8 query and 4 key heads of 64; or why it does not run here."""
    device, dtype = torch.device("cuda"), torch.bfloat16
    try:
        _, attend = pick_attention(name, device, dtype)
        q, k, v = (
            torch.randn(tokens // length, length, heads, 64, device=device, dtype=dtype, requires_grad=True)
            for heads in (8, 4, 4)
        )
        forward = milliseconds(lambda: attend(q, k, v))
        both = milliseconds(lambda: attend(q, k, v).sum().backward())
    except (ValueError, RuntimeError) as error:
        return f"attention {name:5} T={length}: {str(error).splitlines()[0][:150]}"
    return f"attention {name:5} T={length} forward {forward:6.2f} ms, with backward {both:6.2f} ms"


def attention_rows() -> list[str]:
    """Each kernel at the records' micro-batches on one GPU."""
    names, sizes = ("fa3", "fa2", "cudnn", "sdpa"), ((1024, 65_536), (2048, 98_304))
    return [attention_row(name, *size) for name in names for size in sizes]


def optimizer_rows() -> list[str]:
    """Muon's step over the matrices of 11 layers of width 512, as it is and with its iteration compiled."""
    shapes = [(512, 512), (256, 512), (256, 512), (512, 512), (1536, 512), (512, 1536)] * 11
    params = [parameter(torch.randn(s, device="cuda"), "matrix") for s in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    rows = []
    for compiled in (False, True):
        hyper, world = train_gpt.Hyper(), argparse.Namespace(size=1, rank=0)
        muon = Muon([{"params": params}], 0.02, hyper, world, torch.bfloat16)
        if compiled:
            muon.orthogonalize = torch.compile(muon.orthogonalize, dynamic=False)
        start = time.perf_counter()
        muon.step()
        torch.cuda.synchronize()
        first = time.perf_counter() - start
        told = f"muon step{', compiled' if compiled else '':10} {milliseconds(muon.step):6.2f} ms"
        rows.append(f"{told} (the first {first:.1f} s)")
    return rows


def flops_of(preset: str, overrides: dict[str, Any]) -> float:
    """Operations of a step: 6·N·tokens, and 12·T·D·layers·tokens / 2 of causal attention."""
    resolved = resolve({"preset": read_preset(preset), "command line": overrides}, catalog.runtime())
    shape, tokens = resolved.shape(), resolved.config.train_batch_tokens
    params = sum(p.numel() for p in train_gpt.build_model(resolved, "meta").parameters())
    return 6.0 * params * tokens + 6.0 * shape.seq_len * shape.model_dim * shape.num_layers * tokens


def overrides_of(preset: str, options: argparse.Namespace) -> dict[str, Any]:
    vocab = read_preset(preset).get("vocab_size", 1024)
    data = Path(options.data_8192 if vocab == 8192 else options.data)
    told = {"data_path": str(data), "tokenizer_path": str(tokenizer_of(data)), "max_wallclock_seconds": 0}
    return {**told, "reserve_seconds": 0, "val_loss_every": 0, "device": "cuda", "resume": False}


def run(preset: str, options: argparse.Namespace, *, label: str, **changes: Any) -> dict[str, Any]:
    """One process: its result.json and how it ended."""
    folder = Path(options.out) / f"{preset}-{label}"
    settings = {**overrides_of(preset, options), **changes, "out_dir": str(folder)}
    command = [sys.executable, "train_gpt.py", f"--preset={preset}"]
    command += [f"--{k}={v}" for k, v in settings.items()]
    folder.mkdir(parents=True, exist_ok=True)
    start, last = time.perf_counter(), "nothing said"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    stop = threading.Timer(options.timeout, process.kill)
    stop.start()
    assert process.stdout is not None
    with (folder / "console.log").open("w") as console:
        for last in process.stdout:
            print(f"{time.perf_counter() - start:7.1f} {last}", end="", file=console, flush=True)
    status = process.wait()
    stop.cancel()
    path = folder / "result.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    return {**result, "exit": status, "wall": time.perf_counter() - start, "last": last.strip()[:300]}


def told(preset: str, result: dict[str, Any], options: argparse.Namespace, *, label: str) -> str:
    """One line of what a run gave."""
    if result["exit"] or "val_bpb" not in result:
        return f"{label:5} {preset:8} exit {result['exit']} after {result['wall']:.0f} s: {result['last']}"
    step = result["train_seconds"] and result["stage_seconds"]["train"]["timed"] / result["steps"]
    mfu = flops_of(preset, overrides_of(preset, options)) / step / PEAK
    published = 8 * PUBLISHED_MS.get(preset, float("nan"))
    idle = [n for n, a in result["activity"].items() if a["verdict"] != "active"]
    untimed = {k: round(s["true"] - s["timed"]) for k, s in result["stage_seconds"].items()}
    score, seconds, memory = result["val_bpb"], result["eval_seconds"], result["peak_memory_bytes"] / 2**30
    return (
        f"{label:5} {preset:8} {1000 * step:7.1f} ms a step (8 x published {published:5.0f}), utilisation "
        f"{100 * mfu:4.1f} %, val_bpb {score:.4f}, {result['protocol']} {seconds:.1f} s for "
        f"{result['val_tokens']:,} tokens, {result['artifact_bytes']:,} bytes, {memory:.1f} GiB, "
        f"{result['wall']:.0f} s in all (not timed: {untimed}), {result['attention']}; "
        f"inactive: {idle or 'none'}; findings: {result['findings'] or 'none'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("presets", nargs="*", default=list(PUBLISHED_MS))
    parser.add_argument("--data", required=True, help="dataset of 1,024 tokens of vocabulary")
    parser.add_argument("--data-8192", default="", help="CaseOps dataset of 8,192, for pr1855")
    parser.add_argument("--out", default="runs/gpu")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--val-tokens", type=int, default=0, help="of the runs alone; 0: all")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds of a process at most")
    parser.add_argument("--no-kernels", action="store_true")
    parser.add_argument("--no-alone", action="store_true", help="only the runs side by side")
    options = parser.parse_args()
    os.chdir(ROOT)
    if not options.no_kernels:
        print(torch.cuda.get_device_name(), torch.__version__, flush=True)
        for row in (*attention_rows(), *optimizer_rows()):
            print(row, flush=True)

    def smoke(preset: str) -> str:
        few = run(preset, options, label="smoke", iterations=6, warmup_steps=1, val_tokens=131_072)
        return told(preset, few, options, label="smoke")

    with ThreadPoolExecutor(options.jobs) as pool:
        for row in pool.map(smoke, options.presets):
            print(row, flush=True)
    for preset in [] if options.no_alone else options.presets:
        length = {"iterations": options.steps, "val_tokens": options.val_tokens}
        alone = run(preset, options, label="alone", warmup_steps=2, **length)
        print(told(preset, alone, options, label="alone"), flush=True)


if __name__ == "__main__":
    main()
