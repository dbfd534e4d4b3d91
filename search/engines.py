"""Engines: where a study's workers run. `local` starts processes here (search/launch.py), `ray` and `slurm`
hand the same worker to a cluster's scheduler. Any other machine joins by hand: the same command there, with
the same --storage.

A task of an engine is one worker, not one trial: trials are short beside a scheduler's start, and leases,
retries and the exact count live in the database for every kind of engine alike. A task that its machine took
with it is run again elsewhere; its trial is queued again once its heartbeat is missed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy

from search import prepare
from search.cli import Common, home_of, make_console, say
from search.foreign import with_trainer
from search.launch import POLL_S, WorkerFailed, finished, last_error, stop_requested
from search.progress import Progress, snapshot
from search.report import print_leaderboard
from search.session import ROOT, Session, check_room, find_study, measured, open_session, quiet_log
from search.storage import ENVIRONMENT

ENGINES = ("local", "ray", "slurm")
STOP_S = 20.0  # for a worker to put its configuration back


@dataclass(frozen=True)
class Task:
    """All that a machine needs to run one worker. It holds the database's URL: never on a command line."""

    study: Path
    home: Path
    url: str = field(repr=False)
    target: int
    index: int
    gpus: int  # per trial; 0 on CPUs
    threads: int = 1
    trainer: Path | None = None
    cache: tuple[str, ...] = ()  # options of the stage cache
    root: Path = ROOT

    def command(self) -> list[str]:
        words = [sys.executable, "-m", "search.worker", "--lifeline", "--prepare"]
        words += [f"--study={self.study}", f"--home={self.home}"]
        words += [f"--target={self.target}", f"--index={self.index}", *self.cache]
        return [*words, f"--threads={self.threads}"] + ([f"--trainer={self.trainer}"] if self.trainer else [])


@dataclass(frozen=True)
class Ended:
    """How a task's worker ended: its exit status, and the last error that it wrote."""

    status: int
    said: str
    host: str


def tasks(session: Session, *, target: int, workers: int, gpus: int, trainer: Path | None) -> list[Task]:
    """One task for each worker."""
    study, home = Path(session.study.path).absolute(), session.place.home
    return [Task(study, home, session.url, target, index, gpus, trainer=trainer) for index in range(workers)]


def run_task(task: Task, environ: Mapping[str, str] | None = None) -> Ended:
    """Runs the task's worker here until it ends; it stops when we do (its lifeline is ours).

    Raises ValueError when this machine lacks the project at the same path."""
    host = os.uname().nodename
    if not (task.root / "search" / "worker.py").exists():
        raise ValueError(
            f"Every machine of the cluster needs the project at {task.root}, but {host} has none there. Put "
            "it on a shared folder, or clone and install it at that path."
        )
    log = task.home / "runs" / "workers" / f"{task.study.stem}-{host}-{task.index}-{os.getpid()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ if environ is None else environ) | {ENVIRONMENT: task.url}
    with log.open("wb") as out:
        process = subprocess.Popen(
            task.command(),
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            cwd=task.root,
            env=environment,
            start_new_session=True,
        )
        try:
            status = process.wait()
        except BaseException:
            process.terminate()  # it queues its configuration again
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
        finally:
            if process.stdin is not None:
                process.stdin.close()
    return Ended(status, "" if status == 0 else last_error(log), host)


def check_reachable(url: str, engine: str) -> None:
    """ValueError when other machines cannot reach the database: the private one has no network address."""
    parsed = sqlalchemy.make_url(url) if url else None
    host = str(parsed.query.get("host") or parsed.host or "") if parsed else ""
    if not host or host.startswith("/"):
        raise ValueError(
            f"Workers of --engine {engine} run on other machines, but the private database listens on a "
            "socket of this one only. Give a PostgreSQL that all of them reach: CADDIE_STORAGE=postgresql://..."
        )


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


class Engine(Protocol):
    """A scheduler that runs tasks somewhere and says how they ended."""

    def submit(self, tasks: Sequence[Task]) -> None: ...
    def ended(self) -> list[Ended]: ...  # those that ended since the last call
    def alive(self) -> bool: ...  # whether any task is queued or running
    def cancel(self) -> None: ...  # asks every task to stop


def work(engine: Engine, tasks: Sequence[Task], session: Session, progress: Progress) -> None:
    """Submits the tasks and watches until all have ended. Raises WorkerFailed, and KeyboardInterrupt."""
    target = tasks[0].target
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
    module = {"ray": "search.on_ray", "slurm": "search.on_slurm"}.get(name)
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


def run_cluster(
    common: Common, engine: str, words: Sequence[str], trials: int, workers: int | None, trainer: Path | None
) -> None:
    """`search.py --engine ...`: the default command, with workers on the machines of a cluster.

    Raises ValueError for what a person must solve, KeyboardInterrupt after a clean stop."""
    console, now = make_console(), time.monotonic()
    study, home = with_trainer(find_study(common.study), trainer), home_of(common)
    options = parse_options(words)
    cuda = prepare.settled(study, "device") == "cuda"
    gpus = int(options.pop("gpus", study.gpus_per_trial if cuda else 0))
    check_reachable(common.storage or os.environ.get(ENVIRONMENT, ""), engine)
    quiet_log(None)
    now = say(console, f"study {study.name}: {prepare.check_space(study)}", now)
    session = open_session(study, home=home, storage=common.storage, environ=os.environ)
    check_room(session.place)
    seen = snapshot(session.optuna_study.get_trials(deepcopy=False), trials)
    now = say(console, f"database: {seen.finished} of {trials} trials done", now)
    if seen.finished < trials:
        made = make_engine(engine, options, folder=session.place.runs / engine)
        count = min(workers or 1, trials - seen.finished)
        shares = tasks(session, target=trials, workers=count, gpus=gpus, trainer=trainer)
        shares = [replace(share, cache=common.cache) for share in shares]
        say(
            console,
            f"{count} worker{'s' if count > 1 else ''} on {engine}; Ctrl-C stops, nothing is lost",
            now,
        )
        with Progress(session.optuna_study, trials, console) as progress:
            work(made, shares, session, progress)
    print_leaderboard(console, measured(session))
