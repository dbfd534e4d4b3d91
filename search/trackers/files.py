"""What a trial's folder holds for trackers: the facts of its worker, metrics over steps, and its files.
Without Optuna: a tracker's process starts the sooner."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

FACTS = "tracked.json"
FILES = ("result.json", "config.json", "train.log")


def is_number(value: object) -> bool:
    """A finite one; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def points_of(folder: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, metrics) of metrics.jsonl, steps never going back; what is no number is left out."""
    path = folder / "metrics.jsonl"
    step = 0
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record: Any = json.loads(line)
        except ValueError:  # cut off
            continue
        if not isinstance(record, dict):
            continue
        found = cast("dict[str, Any]", record)
        step = max(step, int(found.get("step") or 0))
        values = {name: float(v) for name, v in found.items() if name != "step" and is_number(v)}
        if values:
            yield step, values


def is_told(name: str, folder: Path) -> bool:
    return mark_of(name, folder).exists()


def mark_of(name: str, folder: Path) -> Path:
    """The empty file that says a tracker has the trial."""
    return folder / f"tracked.{name}"


def files_of(folder: Path) -> list[Path]:
    """What is kept of a trial as artefacts."""
    return [path for name in FILES if (path := folder / name).is_file()]
