"""describe(...) -> the machine that a trial's seconds belong to, in one line, without torch.

Seconds learnt on one machine say nothing about another: `Intel(R) Xeon(R) …, 2 cores, 1 thread`,
`8 x NVIDIA H100 80GB HBM3`. It stands in a trial's `passport`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from optuna.trial import FrozenTrial

from search.study import Study

HARDWARE = "hardware"  # key in the user attribute `passport`


def describe(*, gpus: int, threads: int, proc: Path = Path("/proc")) -> str:
    """GPUs by name, or the CPU with its cores and a trainer's threads."""
    if gpus:
        names = sorted(
            line.partition(":")[2].strip()
            for path in (proc / "driver" / "nvidia" / "gpus").glob("*/information")
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.startswith("Model:")
        )
        return f"{gpus} x {names[0] if names else 'GPU'}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{_cpu_name(proc)}, {cores} cores, {threads} thread{'s' if threads != 1 else ''}"


def hardware_here(study: Study, *, num_threads: int, environ: Mapping[str, str]) -> str:
    """Where this worker's trials run: `num_threads` for a study that does not set its own."""
    gpus = study.gpus_per_trial if environ.get("CUDA_VISIBLE_DEVICES", "-1") not in ("", "-1") else 0
    settled = study.fixed.get("num_threads") or study.base.get("num_threads") or num_threads
    return describe(gpus=gpus, threads=int(settled))


def _cpu_name(proc: Path) -> str:
    try:
        lines = (proc / "cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return found or platform.processor() or platform.machine() or "CPU"


def hardware_of(trial: FrozenTrial) -> str:
    """Where a finished trial ran; "" when it does not tell (then it counts for whoever asks)."""
    passport = cast("Mapping[str, Any]", trial.user_attrs.get("passport") or {})
    return str(passport.get(HARDWARE) or "")
