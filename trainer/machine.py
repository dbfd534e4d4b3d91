"""What of a machine the last bits of a result depend on, and how a process ends on it; no torch here."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

PROC = Path("/proc")
WIDTHS = ("avx", "amx", "fma")  # how a processor's flags of vectors begin


def cpu_model(proc: Path = PROC) -> str:
    """The processor's model, as the system names it."""
    return _model_of(_cpu_facts(proc))


def cpu_name(proc: Path = PROC) -> str:
    """The processor's model and its vector width class: a matrix library picks its kernels by them."""
    facts = _cpu_facts(proc)
    flags = {f for f in facts.get("flags", "").split() if f.startswith(WIDTHS)}
    return " ".join([_model_of(facts), *sorted(flags)])


def model_in(name: str) -> str:
    """The model alone, of what cpu_name gave."""
    return " ".join(word for word in name.split() if not word.startswith(WIDTHS))


def _cpu_facts(proc: Path) -> dict[str, str]:
    """The first processor's lines; {} where the system has none."""
    try:
        lines = (proc / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in reversed(lines))}


def _model_of(facts: Mapping[str, str]) -> str:
    return facts.get("model name") or platform.processor() or platform.machine() or "CPU"


def resident_peak(proc: Path = PROC) -> tuple[int, bool]:
    """(the most bytes of memory that this process held at once, whether that is since the last call). Where
    the system cannot start the count anew (only Linux can), it is since the process began."""
    here = proc / "self"
    try:
        lines = (here / "status").read_text().splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
        (here / "clear_refs").write_text("5")
        return peak, True
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, False


def end_process(code: int) -> None:
    """Ends at once with this exit status and all that was said: to take torch apart costs 0.6 s of CPU, and
    threads of torch.distributed may abort a rank meanwhile."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
