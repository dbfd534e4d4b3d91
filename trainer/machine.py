"""What of a machine, and which code, the last bits of a result depend on, told without torch."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from techniques import catalog
from techniques.config import Resolved

PROC = Path("/proc")


def cpu_model(proc: Path = PROC) -> str:
    """The processor's model, as the system names it."""
    return _model_of(_cpu_facts(proc))


def cpu_name(proc: Path = PROC) -> str:
    """The processor's model and its vector width class: a matrix library picks its kernels by them."""
    facts = _cpu_facts(proc)
    flags = {f for f in facts.get("flags", "").split() if f.startswith(("avx", "amx", "fma"))}
    return " ".join([_model_of(facts), *sorted(flags)])


def _cpu_facts(proc: Path) -> dict[str, str]:
    """The first processor's lines; {} where the system has none."""
    try:
        lines = (proc / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in reversed(lines))}


def _model_of(facts: Mapping[str, str]) -> str:
    return facts.get("model name") or platform.processor() or platform.machine() or "CPU"


def source_files(resolved: Resolved) -> list[Path]:
    """The files whose code this run executes: every loaded module of the trainer, less the techniques that
    are off."""
    rooms = ("trainer", "techniques", "corpus")
    modules = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] in rooms]
    loaded = {Path(m.__file__).resolve() for m in modules if getattr(m, "__file__", None)}  # type: ignore[arg-type]
    root = catalog.TECHNIQUES_FOLDER.parent
    ours = {p for p in loaded if p.is_relative_to(root)}
    off = {p for name, p in catalog.technique_files().items() if name not in resolved.techniques}
    return sorted((ours - off) | {root / "train_gpt.py"})


def end_process(code: int) -> None:
    """Ends with this exit status; a rank at once: threads of torch.distributed may abort it at its end."""
    if "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)
