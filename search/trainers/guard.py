"""`guard.py FD COMMAND...` runs COMMAND and ends with it: nothing that COMMAND started outlives this process.

FD is one end of a socket pair whose other end a worker holds. When the worker shuts it, or dies in whatever
way, COMMAND gets SIGTERM and GRACE_S later SIGKILL. At the end every descendant is killed (on Linux also one
that left the group: we adopt orphans), and the exit status, negative for a signal, goes through FD. Standard
library only, started with -I -S: some 15 ms. `keep(FD, program)` does the same for a function, in a fork of
search/trainers/forkserver.py.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

GRACE_S = 3.0
CANNOT_START = 127
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
CHILDREN = "/proc/self/task/{}/children"


def prctl(option: int, value: int) -> None:
    """Linux only; elsewhere the process group has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def start(program: Callable[[], None]) -> int:
    """Forks; the child ends with us, and runs `program`, which does not return."""
    me = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == me:
            program()
    finally:
        os._exit(CANNOT_START)


def execute(command: list[str]) -> None:
    """Becomes the command, or says why not."""
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"cannot start {command[0]}: {error.strerror}\n".encode())


def end_with(life_fd: int, child: int, over: threading.Event) -> None:
    os.read(life_fd, 1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(os.getpgrp(), signal.SIGTERM)
    if not over.wait(GRACE_S):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def sweep() -> None:
    """Kills whatever the child left behind; on Linux until there is nothing more to adopt."""
    while True:
        try:
            with open(CHILDREN.format(os.getpid()), encoding="ascii") as file:
                left = [int(pid) for pid in file.read().split()]
        except OSError:
            left = []
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0 if left else os.WNOHANG)
        except ChildProcessError:
            return
        if not left:
            return


def keep(life_fd: int, program: Callable[[], None]) -> None:
    """Runs the program below us, to its end or that of whoever holds the other end of the pair."""
    os.set_inheritable(life_fd, False)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = start(program)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    over = threading.Event()
    threading.Thread(target=end_with, args=(life_fd, child, over), daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    over.set()
    sweep()
    with contextlib.suppress(OSError):
        os.write(life_fd, f"{status}\n".encode())


if __name__ == "__main__":
    keep(int(sys.argv[1]), lambda: execute(sys.argv[2:]))
