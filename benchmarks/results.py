"""What benchmarks do alike: results kept as JSON, medians with intervals, tables and sections of a page."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(content), encoding="utf-8")
    part.replace(path)


def once(path: Path, make: Callable[[], Mapping[str, Any]]) -> Any:
    """What the file holds, made first where there is none: a stopped command goes on."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))


def median(values: Sequence[float], *, draws: int = 2000) -> tuple[float, float, float]:
    """(median, bootstrap 95 % interval)."""
    array = np.array(values, dtype=float)
    picks = np.random.default_rng(0).integers(0, len(array), (draws, len(array)))
    low, high = np.quantile(np.median(array[picks], axis=1), [0.025, 0.975])
    return float(np.median(array)), float(low), float(high)


def shown(values: Sequence[float], form: str = ".1f") -> str:
    """Median and interval, or a dash."""
    if not len(values):
        return "–"
    return "{0:{f}} [{1:{f}}, {2:{f}}]".format(*median(values), f=form)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_section(title: str, text: str, document: Path) -> None:
    """Puts `text` under `## title`, in the place of what stands there."""
    old = document.read_text(encoding="utf-8")
    head = f"## {title}\n"
    before, found, rest = old.partition(head)
    assert found, f"{document} has no section {title!r}"
    _, next_head, after = rest.partition("\n## ")
    lines = [wrapped(line) for line in text.strip().splitlines()]
    document.write_text("\n".join([before + head, *lines, next_head + after]), encoding="utf-8")


def wrapped(line: str) -> str:
    """As lines that fit a page; a row of a table is one."""
    if line.startswith("|"):
        return line
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, 120, subsequent_indent=indent, break_on_hyphens=False)
