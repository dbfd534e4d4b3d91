"""The trainer of a study: ours, or somebody else's script; its command, its code, its variables."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path

from search.common.paths import ROOT
from search.study.model import Study
from techniques import catalog
from techniques.unanswered import environment_names

TRAINER = (sys.executable, str(ROOT / "train_gpt.py"))


def trainer_command(num_ranks: int) -> tuple[str, ...]:
    """The trainer as one process, or as `num_ranks` of them under torchrun."""
    if num_ranks == 1:
        return TRAINER
    run = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}")
    return (TRAINER[0], *run, *TRAINER[1:])


ADAPTER = (sys.executable, "-m", "search.trainers.foreign.adapter")


def command_for(study: Study, trainer: Path | None = None) -> tuple[str, ...]:
    """The process that a worker starts; config.json and --out_dir come behind it."""
    if study.foreign is not None:
        return ADAPTER
    if trainer is not None:
        return (TRAINER[0], str(trainer.resolve()))
    return trainer_command(study.gpus_per_trial)


def strip_for(study: Study) -> set[str]:
    """The variables of the shell that no run of the study may see: those that its trainer reads."""
    if study.foreign is None:
        return environment_names(catalog.metadata(), os.environ)
    from search.trainers.foreign.scan import names_read

    foreign = study.foreign
    read = names_read(Path(foreign.script)) if foreign.script else set[str]()
    return (read | {*foreign.fixed, *foreign.variables}) - {*foreign.passed, "PATH", "HOME", "USER", "TMPDIR"}


def with_trainer(study: Study, trainer: Path | None) -> Study:
    """The study with its script found. ValueError when there is none, or its command cannot be started."""
    foreign = study.foreign
    if foreign is None:
        return study
    script = trainer.resolve() if trainer is not None else Path(foreign.script) if foreign.script else None
    if script is None:
        raise ValueError(
            f"{study.path} drives a script, but names none. Add `script` to [trainer], or give --trainer."
        )
    if not script.is_file():
        raise ValueError(f"{study.path} drives {script}, but there is no such file. Correct the path.")
    first = foreign.command[0]
    if "{" not in first and shutil.which(first) is None:
        raise ValueError(
            f"`trainer.command` starts {first!r}, but there is no such program here. Install it, or write "
            f"{{python}} for the interpreter that runs the search ({sys.executable})."
        )
    folder = foreign.folder or str(script.parent)
    if not Path(folder).is_dir():
        raise ValueError(f"`trainer.folder` must be a folder, but {folder} is none. Correct the path.")
    return dataclasses.replace(study, foreign=dataclasses.replace(foreign, script=str(script), folder=folder))


def refuse_native_table(study: Study, trainer: Path | None) -> None:
    """ValueError when --trainer names a script that cannot keep the native contract."""
    if study.foreign is not None or trainer is None or not trainer.is_file():
        return
    if "result.json" not in trainer.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(
            f"A trainer under {study.path} takes config.json and writes result.json (docs/contracts.md), but "
            f"{trainer} never mentions it. If it takes environment variables, draft a study for it: python "
            f"search.py scan {trainer} --out theirs.toml, and give that as --study."
        )
