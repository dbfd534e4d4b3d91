"""Reads what a trainer writes in its folder: metrics.jsonl while it grows, result.json, its last words.
code_hash(files): which text runs, equal for equal code wherever it lies.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from search.common.paths import ROOT

MAX_LINE_BYTES = 1 << 20
LAST_BYTES = 1 << 14  # of the console
NUMBERS = ("val_bpb", "artifact_bytes", "train_seconds", "eval_seconds")  # without these no result counts
Record = dict[str, Any]  # one JSON object


class Tail:
    """New whole lines of a file that grows, as JSON objects; anything else in it is skipped."""

    def __init__(self, path: Path):
        self.path, self.offset, self.rest = path, 0, b""

    def records(self) -> list[Record]:
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self.offset:  # begun anew
                    self.offset, self.rest = 0, b""
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self.offset += len(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > MAX_LINE_BYTES:
            self.rest = b""
        return [record for line in lines if (record := as_object(line)) is not None]


def as_object(line: bytes) -> Record | None:
    """The JSON object of a line, or None."""
    try:
        value: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return cast("Record", value) if isinstance(value, dict) else None


def read_result(path: Path) -> Record | None:
    """result.json, or None when it is missing or not an object."""
    try:
        return as_object(path.read_bytes())
    except FileNotFoundError:
        return None


def check_result(result: Record) -> str | None:
    """Why a finished result cannot count, or None."""
    for name in NUMBERS:
        value = result.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"no number: the result's {name} is {value!r}"
    return None


def last_words(path: Path) -> str:
    """The last line that the trainer printed and that says something; an `error:` line before any other."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_BYTES))
            text = file.read().decode("utf-8", "replace")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
    except FileNotFoundError:
        lines = []
    told = [line for line in lines if line.startswith("error: ")]
    return (told or lines or ["it printed nothing"])[-1][:500]


def code_hash(files: Sequence[Path]) -> str:
    """Equal for equal code, wherever it lies. Raises OSError when a file is gone."""
    sums = hashlib.sha256()
    for path in files:
        sums.update(f"{path.parent.name}/{path.name}\0".encode() if path.parent != ROOT else b"\0")
        sums.update(hashlib.sha256(path.read_bytes()).digest())
    return sums.hexdigest()[:16]


def changed(files: Sequence[Path], code: str) -> str:
    """Why the trainer's files are no longer those of `code`; "" while they are."""
    try:
        now = code_hash(files)
    except OSError as error:
        return f"The trainer's files must stay, but {error.filename} says: {error.strerror}. Restore it."
    if now == code:
        return ""
    return (
        f"All trials of a study run the same code, but the trainer's files changed under it ({code} to "
        f"{now}). Restore them and run the same command to go on, or give the study another `name`."
    )
