"""code_hash(files): which text runs, equal for equal code wherever it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from search.common.paths import ROOT


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
