"""Engines: where a study's workers run. `local` starts processes here (search/engines/local.py), `ray` and
`slurm` hand the same worker to a cluster's scheduler. Any other machine joins by hand: the same command
there, with the same --storage.

A task of an engine is one worker, not one trial: trials are short beside a scheduler's start, and leases,
retries and the exact count live in the database for every kind of engine alike. A task that its machine took
with it is run again elsewhere; its trial is queued again once its heartbeat is missed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import sqlalchemy

from search.engines.base import (
    POLL_S,
    STOP_S,
    Engine,
    Task,
    WorkerFailed,
    finished,
    stop_requested,
)
from search.report.progress import Progress
from search.session.session import Session
from search.study.model import Study

ENGINES = ("local", "ray", "slurm")


def check_reachable(url: str, engine: str) -> None:
    """ValueError when other machines cannot reach the database: the private one has no network address."""
    parsed = sqlalchemy.make_url(url) if url else None
    host = str(parsed.query.get("host") or parsed.host or "") if parsed else ""
    if not host or host.startswith("/"):
        raise ValueError(
            f"Workers of --engine {engine} run on other machines, but the private database listens on a "
            "socket of this one only. Give a PostgreSQL that all of them reach: CADDIE_STORAGE=postgresql://..."
        )


@dataclass(frozen=True)
class Cluster:
    """An engine that was asked for, and what it is told."""

    engine: str
    options: Mapping[str, Any]
    gpus: int  # that every worker reserves


def cluster_for(study: Study, engine: str, words: Sequence[str], *, url: str) -> Cluster | None:
    """The cluster that is to run the workers; None: this machine. `url`: the database's, "" for the private
    one. Raises ValueError before anything is begun."""
    if engine not in ENGINES:
        raise ValueError(f"An engine is one of {', '.join(ENGINES)}, but got {engine!r}.")
    options = parse_options(words)
    if engine == "local":
        if options:
            raise ValueError(
                f"--engine-option is for a cluster's scheduler, but the engine is local and got "
                f"{words[0]!r}. Leave it out, or add --engine ray or --engine slurm."
            )
        return None
    check_reachable(url, engine)
    cuda = study.settled("device") == "cuda"
    gpus = int(options.pop("gpus", study.gpus_per_trial if cuda else 0))
    return Cluster(engine, options, gpus)


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` words; whole numbers become int. Raises ValueError."""
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(
                f"An engine's option reads KEY=VALUE, but got {word!r}. Write, for example, "
                "--engine-option address=auto."
            )
        options[key] = int(value) if value.lstrip("-").isdigit() else value
    return options


def run_tasks(engine: Engine, tasks: Sequence[Task], session: Session, progress: Progress) -> None:
    """Submits the tasks and watches until all have ended. Raises WorkerFailed, and KeyboardInterrupt."""
    target = tasks[0].spec.target
    with stop_requested() as stopping:
        engine.submit(tasks)
        try:
            while not stopping.is_set() and engine.alive():
                over = engine.ended()
                if over and finished(session) >= target:
                    break  # a task that still waits for a machine has nothing left to do
                for task in over:
                    if task.status != 0:
                        said = task.said.removeprefix("error: ")
                        raise WorkerFailed(f"{said} (a worker on {task.host}, exit status {task.status})")
                progress.look()
                stopping.wait(POLL_S)
        finally:
            engine.cancel()
            until = time.monotonic() + STOP_S
            while engine.alive() and time.monotonic() < until:
                engine.ended()
                time.sleep(POLL_S)
        progress.look(now=True)
    if stopping.is_set():
        raise KeyboardInterrupt


def make_engine(name: str, options: Mapping[str, Any], *, folder: Path) -> Engine:
    """The engine of a name. Raises ValueError when its library is not installed or refuses an option."""
    module = {"ray": "search.engines.ray", "slurm": "search.engines.slurm"}.get(name)
    if module is None:
        raise ValueError(f"An engine is one of {', '.join(ENGINES)}, but got {name!r}.")
    try:
        made: Engine = import_module(module).make(dict(options), folder)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--engine {name} needs the package {error.name!r}, but it is not installed. Run: "
            f"pip install -e '.[{name}]'"
        ) from None
    return made
