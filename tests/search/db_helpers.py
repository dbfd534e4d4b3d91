"""Servers and worker processes for the tests of the storage; everything started here ends with its block."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent
WORKER = Path(__file__).with_name("db_worker.py")
HOLD = "import select, sys; from pathlib import Path; from search.storage.server import url_of; "
HOLD += "print(url_of(Path(sys.argv[1])), flush=True); select.select([sys.stdin], [], [], float(sys.argv[2]))"


def python(*arguments: str, **kwargs: object) -> subprocess.Popen[str]:
    """A Python process at the repository's root, output to pipes, out of our environment's storage."""
    env = {k: v for k, v in os.environ.items() if k != "CADDIE_STORAGE"} | {"PYTHONPATH": str(REPO)}
    env |= kwargs.pop("env", {})  # type: ignore[operator]
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env=env,
        **kwargs,  # type: ignore[arg-type]
    )


def hold(home: Path, seconds: float = 120.0, **kwargs: object) -> subprocess.Popen[str]:
    """A process that claims the server of `home` and prints its URL; it ends when we do."""
    return python("-c", HOLD, str(home), str(seconds), stdin=subprocess.PIPE, **kwargs)


def worker(*arguments: object, **env: str) -> subprocess.Popen[str]:
    """A process of db_worker.py."""
    return python(str(WORKER), *map(str, arguments), env=env)


def first_line(process: subprocess.Popen[str]) -> str:
    """The first line a process prints; its errors when it prints none."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise AssertionError(process.communicate(timeout=20)[1])
    return line


def until(condition: Callable[[], object], seconds: float = 20.0) -> float:
    """Waits for the condition and returns how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - began


def alive(pid: int) -> bool:
    """Whether the process exists and, where the system tells, is no zombie."""
    try:
        os.kill(pid, 0)
        if not Path("/proc/self/stat").exists():
            return True
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def server_place(home: Path) -> Path:
    """Where the private database under `home` lives: as root outside it, where a pointer says."""
    pointer = home / ".caddie" / "location"
    return Path(pointer.read_text()) if pointer.exists() else home / ".caddie"


def server_pids(place: Path) -> dict[str, int]:
    """{"supervisor": pid, "postmaster": pid} of a server that is up."""
    facts = json.loads((place / "server.json").read_text())
    return {"supervisor": facts["supervisor"], "postmaster": facts["postmaster"]}


def kill(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Ends one process of ours and reads what it left."""
    if process.poll() is None:
        process.send_signal(number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=20)


def _lockable(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def fresh_home() -> Iterator[Path]:
    """A folder that the server's user can reach; waits at the end until its server is gone."""
    folder = Path(tempfile.mkdtemp(prefix="caddie-test-"))
    folder.chmod(0o755)
    home = folder / "postgres"
    try:
        yield home
    finally:
        for lock in folder.rglob("serve.lock"):  # held until the server is down
            with lock.open("rb") as file:
                until(functools.partial(_lockable, file.fileno()), 60.0)
        shutil.rmtree(folder)


@contextlib.contextmanager
def held_server() -> Iterator[tuple[Path, str]]:
    """(home, URL) of a server that stays up for the block."""
    with fresh_home() as home:
        holder = hold(home, 600.0)
        try:
            yield home, first_line(holder)
        finally:
            kill(holder)
