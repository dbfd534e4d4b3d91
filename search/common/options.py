"""What the command line was asked for: StudyOptions of every command, RunOptions of the default one, and
WorkerSpec, the part of it that travels on to every worker.

An option of a worker is a parameter in search/cli.py, a field of WorkerSpec, and the place where it acts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from search.common.paths import ROOT

SAMPLERS = ("structured", "tpe", "gp", "random")  # kinds, for --sampler and `[sampler] kind`
ENVIRONMENT = "CADDIE_STORAGE"


def folder_of(text: str) -> Path:
    """A folder's path as it was given; a variable that is not set must not mean the current folder."""
    if text.strip():
        return Path(text)
    raise typer.BadParameter("it is empty. Name a folder (`.` is this one), or leave the option out.")


@dataclass(frozen=True)
class StudyOptions:
    """Options that every command takes, before or behind its name; None: not given."""

    study: Path | None = None
    storage: str | None = None
    home: Path | None = None

    def over(self, before: StudyOptions) -> StudyOptions:
        """These, and where they were not given, those from before the command's name."""
        storage = before.storage if self.storage is None else self.storage
        return StudyOptions(self.study or before.study, storage, self.home or before.home)

    @property
    def home_folder(self) -> Path:
        return (self.home or ROOT).absolute()


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is told, as JSON; without the database's URL: process lists show command lines."""

    study: Path
    home: Path
    target: int  # finished trials in the whole study
    index: int = 0  # which of the session's workers
    threads: int = 1  # of a trainer whose study does not say
    prepare: bool = False  # corpus and baseline first: on a machine that nobody looked at before
    trainer: Path | None = None  # another trainer of the same contract, or a foreign study's script
    sampler: str = ""  # one of SAMPLERS; empty: as the study says
    mixed: bool = False  # other code and other hardware may join
    cache: Path | None = None  # folder of the stage cache; None: there is none
    cache_size: str = "10GB"  # of it at most
    cache_shared: str = ""  # where machines share stages: a folder or s3://bucket/prefix
    fork: bool = True  # trials on a CPU from a process that has imported the trainer; False: fresh ones
    niceness: int = 0  # by which the priority of trainers is lowered; the worker keeps its own


@dataclass(frozen=True)
class RunOptions:
    """Options of the default command."""

    worker: WorkerSpec  # as the user gives it; run_study completes it
    storage: str | None = None
    workers: int | None = None  # None: one for each trial's GPUs, else for each core
    earlier: tuple[str, ...] = ()  # --from: studies whose BPB this one learns from
    engine: str = "local"
    engine_options: tuple[str, ...] = ()  # KEY=VALUE


def names_in(text: str) -> tuple[str, ...]:
    """NAME,NAME of an option, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
