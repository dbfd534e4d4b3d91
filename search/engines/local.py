"""launch(session, ...): worker processes until the study has its finished trials; Ctrl-C stops them cleanly.

Workers are fresh processes in sessions of their own; the database's URL reaches them through the environment.
Each holds a pipe from us as its lifeline: if we die, they stop. One that dies is started again, and its trial
is failed and queued again at once, without waiting for its heartbeat to be missed.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from search.common.attributes import WORKER
from search.common.options import ENVIRONMENT, WorkerSpec
from search.engines import base
from search.report.progress import Progress
from search.session.session import Session
from search.storage.patient import requeue
from search.study.limits import set_all, violations

MAX_RESTARTS = 5  # of one worker, in a row, without a trial finished in between
FULL_BYTES = 100_000  # less than this free is a full disk


@dataclass
class Slot:
    """One worker of the session: the process that it is now."""

    spec: WorkerSpec
    environment: dict[str, str] = field(repr=False)  # it may hold the database's URL
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    finished_then: int = 0  # finished trials of the study when it was last started
    log: Path = field(default_factory=Path)


def launch(
    session: Session,
    specs: Sequence[WorkerSpec],
    progress: Progress,
    *,
    external: bool,
    gpus: Sequence[str] = (),
) -> None:
    """Runs a worker for each spec until the target. Raises WorkerFailed, and KeyboardInterrupt once all have
    stopped. `external`: the database is the user's, not the private one of the home. `gpus`: values for
    CUDA_VISIBLE_DEVICES, dealt to the workers in turn."""
    shared = {k: v for k, v in os.environ.items() if k != ENVIRONMENT}
    if external:
        shared[ENVIRONMENT] = session.url
    own = [{"CUDA_VISIBLE_DEVICES": gpus[spec.index % len(gpus)]} if gpus else {} for spec in specs]
    slots = [Slot(spec, shared | more) for spec, more in zip(specs, own, strict=True)]
    with base.stop_requested() as stopping:
        try:
            for slot in slots:
                start(slot, session)
            while not stopping.is_set() and any(slot.process is not None for slot in slots):
                for slot in slots:
                    poll_worker(slot, session)
                progress.look()
                stopping.wait(base.POLL_S)
            if stopping.is_set():
                progress.leave(base.STOPPING)
        finally:
            stop_all(slots, session)
    progress.look(now=True)
    if stopping.is_set():
        raise KeyboardInterrupt


def start(slot: Slot, session: Session) -> None:
    slot.log = log_of(session, slot.spec.index)
    slot.finished_then = base.finished(session)
    slot.process = base.start_worker(slot.spec, slot.log, slot.environment)


def log_of(session: Session, index: int) -> Path:
    """A worker's log: this session's own, whoever else works under the home."""
    return session.folders.runs / "workers" / f"{index}-{os.uname().nodename}-{os.getpid()}.log"


def poll_worker(slot: Slot, session: Session) -> None:
    """Looks after one worker: over when it says so, started again when it died."""
    if slot.process is None or (status := slot.process.poll()) is None:
        return
    ended = slot.process
    slot.process = None
    base.close_lifeline(ended)
    fail_dead_worker(session, ended.pid)
    if status == 0:
        return
    said = base.last_error(slot.log)
    if status in (1, 2) and said.startswith("error: "):
        raise base.WorkerFailed(said.removeprefix("error: "))
    free = shutil.disk_usage(slot.log.parent).free
    if free < FULL_BYTES:  # its last words found no room either
        raise base.WorkerFailed(
            f"Trials must be able to write, but {slot.log.parent} has {free:,} bytes free. Free some, and "
            "run the same command to go on; nothing stored is lost."
        )
    done = base.finished(session)
    if done >= slot.spec.target:
        return
    slot.restarts = 1 if done > slot.finished_then else slot.restarts + 1
    if slot.restarts > MAX_RESTARTS:
        raise base.WorkerFailed(
            f"A worker must live, but worker {slot.spec.index} died {slot.restarts} times without "
            f"finishing a trial (last: exit status {status}, {said}). Its log is {slot.log}. Every finished "
            "trial is stored."
        )
    time.sleep(min(2.0, 0.2 * 2**slot.restarts) if slot.restarts > 1 else 0.0)
    start(slot, session)


def fail_dead_worker(session: Session, pid: int) -> None:
    study = session.optuna_study
    storage = study._storage  # pyright: ignore[reportPrivateUsage]
    host = os.uname().nodename
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not str(trial.user_attrs.get(WORKER, "")).startswith(f"{host}:{pid}:"):
            continue
        trial_id = trial._trial_id  # pyright: ignore[reportPrivateUsage]
        with contextlib.suppress(UpdateFinishedTrialError):
            lost = violations(None, session.study.limits, failure="its worker died")
            set_all(Trial(study, trial_id), lost)
            if storage.set_trial_state_values(trial_id, TrialState.FAIL):
                requeue(study, storage.get_trial(trial_id), counted=True)


def stop_all(slots: list[Slot], session: Session) -> None:
    """SIGTERM to every worker, SIGKILL to one that does not stop; what a killed one left is queued again."""
    alive = [slot.process for slot in slots if slot.process is not None]
    for process in alive:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        base.close_lifeline(process)
    until = time.monotonic() + base.STOP_S
    for process in alive:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        fail_dead_worker(session, process.pid)
    for slot in slots:
        slot.process = None
