"""What every engine runs and returns: tasks of one worker each."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from optuna.trial import TrialState

from search.common.options import WorkerSpec
from search.common.paths import ROOT
from search.session.session import Session
from search.storage.url import ENVIRONMENT
from search.workers.spec import worker_command

POLL_S = 0.2
STOP_S = 20.0  # for a worker to kill its trainer and queue its trial again


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
    """Runs the task's worker here until it ends; it stops when we do (its lifeline is ours).

    Raises ValueError when this machine lacks the project at the same path."""
    host = os.uname().nodename
    if not (task.root / "search" / "workers" / "worker.py").exists():
        raise ValueError(
            f"Every machine of the cluster needs the project at {task.root}, but {host} has none there. Put "
            "it on a shared folder, or clone and install it at that path."
        )
    spec = task.spec
    log = spec.home / "runs" / "workers" / f"{spec.study.stem}-{host}-{spec.index}-{os.getpid()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ if environ is None else environ) | {ENVIRONMENT: task.url}
    with log.open("wb") as out:
        process = subprocess.Popen(
            worker_command(spec),
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

    def stop(number: int, frame: object) -> None:
        stopping.set()

    old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
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
