"""make(work, trainer): a folder of its own for one run of a foreign script: fixed file names do not collide.

Of the trainer's folder, files at the top are copied when they are at most COPY_BYTES large, folders and
larger files are linked; outputs of earlier runs and hidden files stay away. A script that writes *into* a
linked folder still shares it: name that folder in `private`, and each run gets an empty one.
"""

import fnmatch
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAME = "work"  # of the folder, below the trial's
COPY_BYTES = 4_000_000
PRIVATE = ("logs", "__pycache__", "wandb", "runs", "checkpoints")  # folders that runs write to
OUTPUTS = ("final_model*", "*.ptz", "*.pt", "*.pth", "*.log")  # files that runs write


def make(work: Path, trainer: Mapping[str, Any]) -> None:
    """The folder `work`, filled from trainer["folder"]; trainer["private"] are empty folders in it."""
    source, private = Path(trainer["folder"]), {*PRIVATE, *trainer["private"]}
    work.mkdir(parents=True)
    for entry in source.iterdir():
        if entry.name.startswith(".") or entry.name in private or work.is_relative_to(entry):
            continue
        target = work / entry.name
        if entry.is_file() and any(fnmatch.fnmatch(entry.name, glob) for glob in OUTPUTS):
            continue
        if entry.is_file() and entry.stat().st_size <= COPY_BYTES:
            shutil.copy2(entry, target)
        elif entry.is_file() or entry.is_dir():
            target.symlink_to(entry.resolve())
    for name in trainer["private"]:
        (work / name).mkdir(parents=True, exist_ok=True)


def weigh(work: Path, globs: Sequence[str]) -> int | str:
    """Bytes of the files that the globs name, each file once; a glob that matches nothing, by its text."""
    found: dict[Path, int] = {}
    for glob in globs:
        paths = [path for path in work.glob(glob) if path.is_file()]
        if not paths:
            return glob
        found |= {path: path.stat().st_size for path in paths}
    return sum(found.values())


def clear(work: Path, out: Path, globs: Sequence[str]) -> None:
    """Moves what is to be kept to `out / "kept"` and takes the rest away: disks are small, models are not."""
    for glob in globs:
        for path in list(work.glob(glob)) if work.exists() else []:
            if path.is_file() and not path.is_symlink():
                target = out / "kept" / path.relative_to(work)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, target)
    shutil.rmtree(work, ignore_errors=True)
