"""What of a machine the last bits of a result depend on, told without torch."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_name() -> str:
    """The processor's model and its vector width class: a matrix library picks its kernels by them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    facts = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in reversed(lines))}
    model = facts.get("model name") or platform.processor() or platform.machine()
    flags = {f for f in facts.get("flags", "").split() if f.startswith(("avx", "amx", "fma"))}
    return " ".join([model, *sorted(flags)])
