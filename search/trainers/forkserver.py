"""`python -m search.trainers.forkserver FD SCRIPT MODULE...` imports them, then forks a run of SCRIPT for
each message on FD, one end of a pair of sockets, until its other end (search/trainers/warm.py) is shut.

A message is JSON with two descriptors: `argv` and `cwd` of a run, its console and its lifeline; the answer is
the process id of its guard. `over` says that nobody needs that id any more. This process starts no thread
and makes no tensor: only then is a fork whole. Where an import started one, it ends at once.
"""

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from search.trainers import guard

TASKS = Path("/proc/self/task")
MESSAGE_BYTES = 1 << 16


def run_script(script: ModuleType, argv: list[str], life_fd: int) -> None:
    """What Python does with a script and its arguments; does not return."""
    os.close(life_fd)
    sys.argv = [str(script.__file__), *argv]
    status = 1
    try:
        status = script.main(argv)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:  # noqa: BLE001 (as the interpreter: a traceback, and status 1)
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def fork(control: socket.socket, script: ModuleType, told: dict[str, Any], fds: list[int]) -> int:
    """A guard and, below it, a run. The guard's process id."""
    if child := os.fork():
        for fd in fds:
            os.close(fd)
        return child
    console_fd, life_fd = fds
    try:
        control.close()
        os.setsid()
        for fd in (1, 2):
            os.dup2(console_fd, fd)
        os.close(console_fd)
        os.chdir(told["cwd"])
        guard.keep(life_fd, lambda: run_script(script, told["argv"], life_fd))
    finally:
        os._exit(guard.CANNOT_START)


def serve(control: socket.socket, script: ModuleType) -> None:
    """Until the other end is shut."""
    while True:
        data, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 2)
        if not data:
            return
        told = json.loads(data)
        if "over" in told:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(told["over"], 0)
        else:
            control.send(str(fork(control, script, told, fds)).encode())


def load(path: Path) -> ModuleType:
    """The script as a module; it does not run."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def main(argv: list[str]) -> int:
    control = socket.socket(fileno=int(argv[0]))
    script = load(Path(argv[1]))
    for name in argv[2:]:
        importlib.import_module(name)
    if len(os.listdir(TASKS)) > 1:
        return guard.CANNOT_START
    gc.collect()
    gc.freeze()  # a child that collects garbage copies no page of ours
    with contextlib.suppress(ConnectionError):
        serve(control, script)
    control.close()
    with contextlib.suppress(ChildProcessError):  # the runs hold lifelines of their own
        while True:
            os.wait()
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
