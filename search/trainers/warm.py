"""WarmTrainers: runs of our trainer as forks of a process that has imported it (forkserver.py beside this).

A run computes what a fresh process would, to the last bit, without the seconds of its imports. The server's
environment is the run's; another one, other sources, RUNS runs or MOST_BYTES of its memory take a new server.
On Linux and for runs on a CPU; where it cannot serve, `begin` says so, and the run gets a fresh process.
"""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from search.common.errors import Interrupted
from search.common.paths import ROOT
from search.trainers.trainer import TRAINER

RUNS = 100  # of one server
MOST_BYTES = 1_000_000_000  # resident, of a server: a third of it after its imports
START_S = 300.0  # its imports, on a busy machine
END_S = 2.0
LOOK_S = 0.2  # how often `stop` is asked meanwhile
PROGRAM = ("-m", "search.trainers.forkserver")
ROOMS = ("bundle", "corpus", "techniques", "trainer")  # what a run executes beside the script
Sources = tuple[tuple[str, int, int], ...]  # file, time, bytes


def sources() -> Sources:
    """The files that a run may execute, and when they were last touched."""
    files = [ROOT / "train_gpt.py", *(p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py")))]
    return tuple((str(p), found.st_ctime_ns, found.st_size) for p in files if (found := p.stat()))


def modules() -> list[str]:
    """Those that a run imports late: techniques, and what makes its script."""
    techniques = sorted((ROOT / "techniques").glob("*/[!_]*.py"))
    return ["bundle.lean", *(f"techniques.{p.parent.name}.{p.stem}" for p in techniques)]


@dataclass(frozen=True)
class Kind:
    """What the runs of one server have in common."""

    before: tuple[str, ...]  # of the command, in front of the trainer: `nice -n 10`
    environment: Mapping[str, str]
    sources: Sources


class WarmTrainers:
    """One server, started when a run first asks; safe in several threads."""

    def __init__(self, trainer: tuple[str, str] = TRAINER, late: Sequence[str] | None = None) -> None:
        self.trainer = trainer  # interpreter and script, with a function `main(argv)`
        self.late = modules() if late is None else list(late)
        self.lock = threading.Lock()
        self.kind: Kind | None = None  # of the server, or of the one that could not be had
        self.control: socket.socket | None = None  # None: no server
        self.process: subprocess.Popen[bytes] | None = None
        self.left: list[subprocess.Popen[bytes]] = []  # servers that end with their runs
        self.runs = 0

    def begin(
        self,
        command: Sequence[str],
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        cwd: Path,
        fds: tuple[int, int],
        stop: Callable[[], bool],
    ) -> int:
        """Runs the trainer's `command` with the arguments `argv`: the process id of its guard, 0 where that
        cannot be. `fds`: its console and its lifeline. Raises Interrupted once `stop()`."""
        if tuple(command[-2:]) != self.trainer or sys.platform != "linux":
            return 0
        told = json.dumps({"argv": list(argv), "cwd": str(cwd)}).encode()
        with self.lock:
            pid, kind = 0, None
            try:
                kind = Kind(tuple(command[:-2]), dict(environment), sources())
                if not self._serves(kind) or self.control is None:
                    return 0
                self.runs += 1
                socket.send_fds(self.control, [told], fds)
                pid = self._answer(self.control, stop)
                kind = kind if pid or self.runs == 1 else None  # one that never served never will
            except OSError:  # it died: this run gets a fresh process, the next one a new server
                kind = None
            except Interrupted:
                kind = None
                raise
            finally:
                self.kind = kind
                if not pid:
                    if self.process is not None:  # or it would still begin that run; others go on without it
                        self.process.kill()
                    self._leave()
            return pid

    def over(self, pid: int) -> None:
        """Nobody needs the process id of that run any more."""
        with self.lock, contextlib.suppress(OSError):
            if self.control is not None:
                self.control.send(json.dumps({"over": pid}).encode())

    def close(self) -> None:
        """The server ends, once its runs have."""
        with self.lock:
            self._leave()
            self.kind = None
            for process in self.left:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_S)

    def _serves(self, kind: Kind) -> bool:
        """Whether a server of this kind is there, or could be started."""
        if kind == self.kind:
            if self.control is None or (self.runs < RUNS and self._bytes() < MOST_BYTES):
                return self.control is not None
        self._leave()
        self.kind, self.runs = kind, 0
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        python, script = self.trainer
        words = [*kind.before, python, *PROGRAM, str(theirs.fileno()), script, *self.late]
        with theirs:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=ROOT,
                env=dict(kind.environment),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return True

    def _answer(self, control: socket.socket, stop: Callable[[], bool]) -> int:
        """The process id that the server sends; 0 when it ends instead, or takes too long."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if select.select([control], [], [], LOOK_S)[0]:
                return int(control.recv(64) or b"0")
            if stop():
                raise Interrupted("the worker was told to stop")
        return 0

    def _bytes(self) -> int:
        """Of the server's memory."""
        assert self.process is not None
        try:
            pages = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1]
        except OSError:
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def _leave(self) -> None:
        """Lets go of the server: it ends by itself."""
        if self.control is not None:
            self.control.close()
        if self.process is not None:
            self.left.append(self.process)
        self.left = [process for process in self.left if process.poll() is None]
        self.control, self.process = None, None
