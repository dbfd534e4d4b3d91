"""Engines: where a study's workers run. `local` starts processes here, `ray` and `slurm` hand the same worker
to a cluster's scheduler. Any other machine joins by hand: the same command there, with the same --storage.

A task of an engine is one worker, not one trial: trials are short beside a scheduler's start, and leases,
retries and the exact count live in the database for every kind of engine alike. A task that its machine took
with it is run again elsewhere; its trial is queued again once its heartbeat is missed.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy
from optuna.trial import TrialState

from search.common.options import ENVIRONMENT, WorkerSpec
from search.common.paths import ROOT
from search.report.progress import Progress
from search.session.session import Session
from search.storage.patient import normalise_url
from search.study.model import Study
from search.workers.prepare import worker_command

POLL_S = 0.2
STOP_S = 20.0  # for a worker to kill its trainer and queue its trial again
STOPPING = "stopping: what runs is queued again"
ENGINES = ("local", "ray", "slurm")


@dataclass(frozen=True)
class Task:
    """All that a machine needs to run one worker. It holds the database's URL: never on a command line."""

    spec: WorkerSpec
    url: str = field(repr=False)
    gpus: int  # per trial; 0 on CPUs
    root: Path = ROOT


@dataclass(frozen=True)
class Ended:
    """How a task's worker ended: its exit status, and the last error that it wrote."""

    status: int
    said: str
    host: str


def run_task(task: Task, environ: Mapping[str, str] | None = None) -> Ended:
    """Runs the task's worker here until it, or we, end. ValueError without the project at the same path."""
    host = os.uname().nodename
    if not (task.root / "search" / "workers" / "worker.py").exists():
        raise ValueError(
            f"Every machine of the cluster needs the project at {task.root}, but {host} has none there. Put "
            "it on a shared folder, or clone and install it at that path."
        )
    spec = task.spec
    log = spec.home / "runs" / "workers" / f"{spec.study.stem}-{host}-{spec.index}-{os.getpid()}.log"
    environment = dict(os.environ if environ is None else environ) | {ENVIRONMENT: task.url}
    process = start_worker(spec, log, environment, root=task.root)
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
        close_lifeline(process)
    return Ended(status, "" if status == 0 else last_error(log), host)


def start_worker(
    spec: WorkerSpec, log: Path, environment: Mapping[str, str], *, root: Path = ROOT
) -> subprocess.Popen[bytes]:
    """A worker in a session of its own; its output goes to `log`, its stdin is its lifeline."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        return subprocess.Popen(
            worker_command(spec),
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            cwd=root,
            env=environment,
            start_new_session=True,
        )


def close_lifeline(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()


class Engine(Protocol):
    """A scheduler that runs tasks somewhere and says how they ended."""

    def submit(self, tasks: Sequence[Task]) -> None: ...
    def ended(self) -> list[Ended]: ...  # those that ended since the last call
    def alive(self) -> bool: ...  # whether any task is queued or running
    def cancel(self) -> None: ...  # asks every task to stop


class WorkerFailed(ValueError):
    """A worker said what a person must solve; the text is the worker's."""


@contextmanager
def stop_requested() -> Generator[threading.Event]:
    """While the block lasts, SIGINT and SIGTERM set the event instead of ending us."""
    stopping = threading.Event()
    ends = (signal.SIGINT, signal.SIGTERM)
    old = {number: signal.signal(number, lambda number, frame: stopping.set()) for number in ends}
    try:
        yield stopping
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def finished(session: Session) -> int:
    trials = session.optuna_study.get_trials(deepcopy=False)
    return sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials)


def last_error(log: Path) -> str:
    """The last `error: ` line of a worker's log, else its last line."""
    lines = [s for s in log.read_text(encoding="utf-8", errors="replace").splitlines() if s.strip()]
    return ([s for s in lines if s.startswith("error: ")] or lines or ["it said nothing"])[-1][:1000]


def check_reachable(url: str, engine: str) -> None:
    """ValueError when other machines cannot reach the database: the private one has no network address."""
    parsed = sqlalchemy.make_url(normalise_url(url)) if url else None
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
    """The cluster that runs the workers; None: this machine. `url`: "" for the private one. ValueError."""
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
            if stopping.is_set():
                progress.leave(STOPPING)
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
