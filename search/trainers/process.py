"""run_trainer(job, ...) -> Outcome: one configuration through one trainer process, to its end or ours.

The process is fresh, or a fork of one that has imported the trainer (search/trainers/warm.py).

The trainer runs under `guard.py` in a session of its own: it and all it started are gone when this function
returns, and when this process dies. What the machine caused is raised as InfrastructureError (TrainerCrashed,
when it might yet be the configuration), a stop as Interrupted.
"""

import contextlib
import errno
import json
import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from search.common.errors import InfrastructureError, Interrupted
from search.common.paths import ROOT
from search.trainers import guard
from search.trainers.files import Record, Tail, check_result, last_words, read_result
from search.trainers.trainer import TRAINER
from search.trainers.warm import WarmTrainers

POLL_S = 0.2  # how often reports, the deadline and `stop` are looked at; the trainer's end wakes us at once
LAST_WORDS_S = guard.GRACE_S + 10.0  # after that the guard itself is killed
BAD_INPUT, CONFIG_FAILED = 2, 3  # the trainer's exit statuses (docs/contracts.md)
MACHINE_ERRNOS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE)
# glibc gives large blocks back to the kernel at every free, and a CPU step pays page faults for them again:
# kept, a step of the laptop preset takes 0.87 of the CPU time (one pair of benchmarks/trainer/step_time.py).
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
WORLD = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PRESET")
SIGNALS = {one.value: one.name for one in signal.Signals}
CREDENTIAL = re.compile(r"^(CADDIE_|PG)|TOKEN$|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL|ACCESS_KEY")
OnReport = Callable[[Record, tuple[Record, ...]], str | None]  # a report, all so far -> why to prune


class TrainerCrashed(InfrastructureError):
    """The trainer ended as it should not: a signal, a traceback, no result. Perhaps the machine's fault."""


class DiskTrouble(InfrastructureError):
    """The disk is full, read-only or broken: no trial can run until somebody helps."""


@dataclass(frozen=True)
class Job:
    """What to run, where, and for how long at most."""

    folder: Path  # of this trial: config.json and all that the trainer writes
    config: Mapping[str, Any]  # flat settings
    environment: Mapping[str, str]
    timeout_s: float  # of the whole process, start-up included
    command: tuple[str, ...] = TRAINER  # config.json and --out_dir come behind it
    cwd: Path = ROOT  # relative paths of the settings start here
    fill: Callable[[Path], tuple[Record, ...]] | None = None  # finished stages; gives their early reports
    warm: WarmTrainers | None = None  # forks the process where it can; None: a fresh one


@dataclass(frozen=True)
class Outcome:
    """How a trainer process ended that the configuration is responsible for."""

    kind: Literal["finished", "pruned", "failed"]
    reason: str = ""  # of `pruned` and `failed`, one line
    result: Record | None = None  # result.json
    reports: tuple[Record, ...] = ()
    process_s: float = 0.0  # start of the process to its end
    report_s: float = 0.0  # of that, spent in `on_report`


def trainer_environment(environ: Mapping[str, str], *, strip: Set[str], num_threads: int) -> dict[str, str]:
    """`environ` less what would change a run and less credentials, with a share of the threads."""
    dropped = {*strip, *WORLD}
    kept = {k: v for k, v in environ.items() if k not in dropped and not CREDENTIAL.search(k)}
    threads = {name: str(num_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if num_threads}
    return ALLOCATOR | kept | threads | {"OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1"}


def prepare_folder(folder: Path) -> None:
    """An empty folder; one of that name that an earlier study left is kept beside it as `<name>.old-<k>`."""
    if folder.exists() and any(folder.iterdir()):
        k = 1
        while (beside := folder.with_name(f"{folder.name}.old-{k}")).exists():
            k += 1
        folder.rename(beside)
    folder.mkdir(parents=True, exist_ok=True)


def run_trainer(job: Job, *, on_report: OnReport, stop: Callable[[], bool] = lambda: False) -> Outcome:
    """`on_report` may say why to prune; Interrupted once `stop()`. Reports of `fill` are replayed first."""
    try:
        prepare_folder(job.folder)
        text = json.dumps(dict(job.config), indent=1, sort_keys=True)
        (job.folder / "config.json").write_text(text + "\n", encoding="utf-8")
        recorded = job.fill(job.folder) if job.fill else ()
        for k, record in enumerate(recorded, 1):
            if (reason := on_report(record, recorded[:k])) is not None:
                return Outcome("pruned", reason=reason, reports=recorded[:k])
        process = _Process(job, stop)
    except OSError as error:
        of_the_disk = error.errno in (*MACHINE_ERRNOS, errno.EACCES, errno.EPERM)
        kind = DiskTrouble if of_the_disk else InfrastructureError
        raise kind(f"{error.filename or job.folder}: {error.strerror or error}") from error
    try:
        watched = _watch(process, on_report, stop)
        watched.reports = watched.reports or list(recorded)
    finally:
        process.end()
    process_s = time.perf_counter() - process.began
    reports = tuple(watched.reports)
    outcome = Outcome("finished", reports=reports, process_s=process_s, report_s=watched.report_s)
    return _classify(job, outcome, watched, process.status)


class _Process:
    """The guard and, below it, the trainer."""

    def __init__(self, job: Job, stop: Callable[[], bool]):
        self.job = job
        self.life, theirs = socket.socketpair()
        self.began = time.perf_counter()
        self.status: int | None = None  # the trainer's; negative: killed by that signal; None: not known
        self._words = b""
        self.popen: subprocess.Popen[bytes] | None = None  # None: forked by a warm server
        try:
            with theirs, (job.folder / "console.log").open("wb") as console:
                self.pid = self._forked(console.fileno(), theirs.fileno(), stop)
                if not self.pid:
                    self.popen = self._fresh(console.fileno(), theirs.fileno())
                    self.pid = self.popen.pid
        except BaseException:
            self.life.close()
            raise

    def _argv(self) -> list[str]:
        return [str(self.job.folder / "config.json"), f"--out_dir={self.job.folder}"]

    def _forked(self, console: int, life: int, stop: Callable[[], bool]) -> int:
        job = self.job
        if job.warm is None:
            return 0
        return job.warm.begin(
            job.command,
            self._argv(),
            environment=job.environment,
            cwd=job.cwd,
            fds=(console, life),
            stop=stop,
        )

    def _fresh(self, console: int, life: int) -> subprocess.Popen[bytes]:
        watch = [sys.executable, "-I", "-S", guard.__file__, str(life)]
        return subprocess.Popen(
            [*watch, *self.job.command, *self._argv()],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            cwd=self.job.cwd,
            env=dict(self.job.environment),
            pass_fds=[life],
            start_new_session=True,
        )

    def over(self, timeout_s: float) -> bool:
        """Waits until the guard has ended, at most `timeout_s`; keeps the status it sent."""
        until = time.monotonic() + timeout_s
        while select.select([self.life], [], [], max(0.0, until - time.monotonic()))[0]:
            try:
                words = self.life.recv(64)
            except ConnectionError:
                words = b""
            if not words:
                return True
            self._words += words
        return False

    def end(self) -> None:
        """Nothing of it is left after this."""
        with contextlib.suppress(OSError):
            self.life.shutdown(socket.SHUT_WR)
        self.over(LAST_WORDS_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.popen is not None:
            self.popen.wait()
        elif self.job.warm is not None:
            self.over(LAST_WORDS_S)
            self.job.warm.over(self.pid)
        self.life.close()
        if self.status is None and self._words.strip():
            self.status = int(self._words)


@dataclass
class _Watched:
    """What was seen while it ran, and why we ended it if we did."""

    reports: list[Record] = field(default_factory=list[Record])
    pruned: str | None = None
    timed_out: bool = False
    report_s: float = 0.0


def _watch(process: _Process, on_report: OnReport, stop: Callable[[], bool]) -> _Watched:
    """Follows the metrics until the process is over, is to be pruned, or is out of time."""
    seen, tail = _Watched(), Tail(process.job.folder / "metrics.jsonl")
    while True:
        over = process.over(POLL_S)
        for record in tail.records():
            if not _is_report(record):
                continue
            seen.reports.append(record)
            began = time.perf_counter()
            verdict = on_report(record, tuple(seen.reports))
            seen.report_s += time.perf_counter() - began
            if verdict is not None and not over:
                seen.pruned = verdict
                return seen
        if over:
            return seen
        if stop():
            raise Interrupted("the worker was told to stop")
        if time.perf_counter() - process.began > process.job.timeout_s:
            seen.timed_out = True
            return seen


def _is_report(record: Record) -> bool:
    """A report whose numbers are numbers; a run that diverged says so itself."""
    told = (record.get("progress"), record.get("val_bpb"))
    finite = all(isinstance(n, int | float) and math.isfinite(n) for n in told)
    return finite and record.get("kind") == "report"


def _classify(job: Job, outcome: Outcome, seen: _Watched, status: int | None) -> Outcome:
    """The outcome in full, or InfrastructureError."""
    result = read_result(job.folder / "result.json")
    if seen.pruned is not None:
        return replace(outcome, kind="pruned", reason=seen.pruned)
    if seen.timed_out:
        reason = f"timeout: still running after {job.timeout_s:.0f} s"
        return replace(outcome, kind="failed", reason=reason, result=result)
    last = last_words(job.folder / "console.log")
    if status == 0 and result is not None and result.get("status") == "finished":
        problem = check_result(result)
        if problem is None:
            return replace(outcome, kind="finished", result=result)
        return replace(outcome, kind="failed", reason=problem, result=result)
    if any(f"[Errno {number}]" in last or os.strerror(number) in last for number in MACHINE_ERRNOS):
        raise DiskTrouble(f"{job.folder}: {last}")
    refusal = _refusal(job.folder / "console.log") if "torch.distributed.run" in job.command else ""
    if status == BAD_INPUT or refusal:
        return replace(outcome, kind="failed", reason=f"refused: {(refusal or last).removeprefix('error: ')}")
    if status == CONFIG_FAILED or (result is not None and result.get("status") == "failed"):
        reason = str((result or {}).get("reason") or last)
        return replace(outcome, kind="failed", reason=reason, result=result)
    if status == guard.CANNOT_START:
        raise InfrastructureError(f"the trainer could not be started: {last}")
    if status is None:
        raise TrainerCrashed("the trainer's guard was killed")
    if status < 0:
        name = SIGNALS.get(-status, f"signal {-status}")
        raise TrainerCrashed(f"the trainer was killed by {name}: {last}")
    what = "without a result" if status == 0 else f"with exit status {status}"
    raise TrainerCrashed(f"the trainer ended {what}: {last}")


def _refusal(console: Path) -> str:
    """The first `error: …` line: torchrun turns every exit status of a rank into 1."""
    lines = console.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in lines if line.startswith("error: ")), "")
