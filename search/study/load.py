"""load_study(path, known) -> Study: one TOML file that says what a search may vary, under which limits.

    [study]       name, question, preset, track, num_reports, allow_duplicates, timeout_seconds,
                  gpus_per_trial
    [limits]      artifact_bytes, train_seconds | train_baselines, eval_seconds | eval_baselines;
                  memory_bytes (no limit where it is left out)
    [fixed]       flat settings over the preset
    [techniques]  name = "free" | "on" | "off"; others = "free" | "off" | "preset"
    [space]       name = {low, high, log, step} | {choices} | a value that fixes it
    [pruning]     from, margin, min_trials, quantile, confidence, agreement, spare
    [sampler]     kind, startup_trials, max_resamples, candidates, reuse
    [trainer]     somebody else's script (search/study/foreign.py)

Whatever is wrong is one ValueError: the law, the facts, the way out, with the nearest known name for a
typo.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.common.paths import DEFAULT_STUDY, ROOT
from search.study.build import build
from search.study.model import Study
from techniques import catalog
from techniques.base import Technique, nearest

NAME = re.compile(r"\w[\w.+-]*")
TABLES = ("study", "limits", "fixed", "techniques", "space", "pruning", "sampler", "trainer")


def load_study(path: Path, known: Mapping[str, type[Technique]]) -> Study:
    """The study in the TOML file `path`, over the catalogue `known`. ValueError for anything wrong in it."""
    try:
        return build(_read(path), path, known)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        others = sorted(str(p) for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        way_out = nearest(str(path), others) if others else "Give the path of a study's TOML file."
        raise ValueError(f"No such study file. {way_out}") from None
    except IsADirectoryError:
        raise ValueError("A study is one TOML file, but this is a folder. Name a file in it.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"Not valid TOML: {error}.") from None
    for name, table in tables.items():
        if name not in TABLES:
            raise ValueError(f"Unknown table [{name}]. {nearest(name, TABLES)}")
        if not isinstance(table, dict):
            raise ValueError(
                f"`{name}` must be a table, but got {table!r}. Write [{name}] and its keys below."
            )
    return {name: tables.get(name, {}) for name in TABLES}


def find_study(path: Path | None) -> Study:
    """The study of a file; a relative path starts here or at the project. Raises ValueError."""
    path = DEFAULT_STUDY if path is None else path
    if not path.exists() and (ROOT / path).exists():
        path = ROOT / path
    study = load_study(path, catalog.metadata())
    if not NAME.fullmatch(study.name):
        raise ValueError(
            f"{path}: the study's name is also a folder's: letters, digits and . _ + - only, but got "
            f"{study.name!r}. Rename it."
        )
    return study
