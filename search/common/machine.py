"""This machine, read once and without torch: cores, visible GPUs, models; and the lines that are kept of it.

`machine_kind()` stands with a study and says who may join it (search/session/passport.py). `describe(...)`
stands in each trial's `passport`, because seconds learnt on one machine say nothing about another:
`Intel(R) Xeon(R) …, 2 cores, 1 thread`, `8 x NVIDIA H100 80GB HBM3`. What a result's last bits depend on:
search/stage_cache/addresses.py.
"""

import functools
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from trainer.machine import PROC, cpu_model

DEV = Path("/dev")
ASK_S = 20.0  # for nvidia-smi


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_numbers(dev: Path = DEV) -> tuple[str, ...]:
    """NVIDIA GPUs by their device files, in their order."""
    found = [m[1] for p in dev.glob("nvidia*") if (m := re.fullmatch(r"nvidia(\d+)", p.name))]
    return tuple(sorted(found, key=int))


def visible_gpus(environ: Mapping[str, str], dev: Path = DEV) -> tuple[str, ...]:
    """NVIDIA GPUs that a process may use, as CUDA_VISIBLE_DEVICES names them: what it lists, up to the first
    word that names none, as CUDA reads it (an index counts the cards that are here), each once; all where it
    is not set."""
    cards = len(gpu_numbers(dev))
    given = environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return tuple(map(str, range(cards)))
    found: list[str] = []
    for word in map(str.strip, given.split(",")):
        index = int(word) if re.fullmatch("[0-9]{1,4}", word) else -1
        if not (0 <= index < (cards or 10_000) or re.fullmatch(r"(GPU|MIG)-[\w/-]+", word)):
            break
        found.append(word)
    return tuple(dict.fromkeys(found))


@functools.cache
def gpu_models(proc: Path = PROC, dev: Path = DEV) -> tuple[str, ...]:
    """The GPU models in this machine, each once: as the driver lists them, else as nvidia-smi does; () where
    neither tells."""
    found: set[str] = set()
    for path in (proc / "driver" / "nvidia" / "gpus").glob("*/information"):
        model = re.search(r"^Model:\s*(.+)$", path.read_text(encoding="utf-8", errors="replace"), re.M)
        found |= {model[1].strip()} if model else set()
    if not found and gpu_numbers(dev):
        ask = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        try:
            said = subprocess.run(ask, capture_output=True, text=True, timeout=ASK_S, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            said = ""
        found = {name.strip() for name in said.splitlines() if name.strip()}
    return tuple(sorted(found))


def machine_kind(proc: Path = PROC, dev: Path = DEV) -> str:
    """The GPU models of this machine, else its processor."""
    if gpu_numbers(dev):
        return ", ".join(gpu_models(proc, dev)) or "NVIDIA GPU"
    return " ".join(cpu_model(proc).split())


def describe(*, gpus: int, threads: int, proc: Path = PROC) -> str:
    """GPUs by name, or the CPU with its cores and a trainer's threads."""
    if gpus:
        models = gpu_models(proc)
        return f"{gpus} x {models[0] if models else 'GPU'}"
    return f"{cpu_model(proc)}, {num_cores()} cores, {threads} thread{'s' if threads != 1 else ''}"
