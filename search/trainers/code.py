"""code_hash(study): which text runs, equal for equal code wherever it lies."""

from __future__ import annotations

import hashlib
from pathlib import Path

from search.common.paths import ROOT
from search.study.model import Study
from techniques import catalog


def code_files(study: Study, trainer: Path | None = None) -> list[Path]:
    """The files whose text is the objective: a foreign script and its neighbours, or our trainer and its
    techniques."""
    if study.foreign is not None:
        script = Path(study.foreign.script)
        return [script, *sorted(p for p in script.parent.glob("*.py") if p.name != script.name)]
    if trainer is not None:
        return [trainer]
    return sorted({*catalog.shared_files(ROOT), *catalog.technique_files().values()})


def code_hash(study: Study, trainer: Path | None = None) -> str:
    """Equal for equal code, wherever it lies. Raises OSError when a file is gone."""
    sums = hashlib.sha256()
    for path in code_files(study, trainer):
        sums.update(f"{path.parent.name}/{path.name}\0".encode() if path.parent != ROOT else b"\0")
        sums.update(hashlib.sha256(path.read_bytes()).digest())
    return sums.hexdigest()[:16]


def changed(study: Study, trainer: Path | None, code: str) -> str:
    """Why the trainer's files are no longer those of `code`; "" while they are."""
    try:
        now = code_hash(study, trainer)
    except OSError as error:
        return f"The trainer's files must stay, but {error.filename} says: {error.strerror}. Restore it."
    if now == code:
        return ""
    return (
        f"All trials of a study run the same code, but the trainer's files changed under it ({code} to "
        f"{now}). Restore them and run the same command to go on, or give the study another `name`."
    )
