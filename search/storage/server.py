"""url_of(home) -> the SQLAlchemy URL of a private PostgreSQL kept under `home`, started or joined.

This process' claim on the server lasts until the process ends, in whatever way; the server stops when the
last claim is gone. The socket's path and the password never change, so a URL stays good over restarts. There
is no TCP: the socket's folder is private to one user, and the password is in a file only its owner reads.
"""

import fcntl
import functools
import hashlib
import json
import os
import pwd
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import psycopg2
import sqlalchemy

from search.storage.postmaster import DB_USER, PORT, ServerFailed, owner_of_server, traversable

ROOTS_HOME = Path("/var/lib")  # as root, for a project in a folder that the server's user cannot reach
START_S = 120.0  # recovery after a crash included
LAUNCHES = 3  # supervisors that die without a word before we give up
SUPERVISE = """
import sys
sys.path.insert(0, sys.argv[1])
from search.storage.postmaster import run
run(*sys.argv[2:])
"""
WAY_OUT = "Give --storage (or CADDIE_STORAGE) the URL of a PostgreSQL of your own, or use another folder."


class StorageError(ValueError):
    """The database cannot be used; the text says why and what to do, and holds no credentials."""


def url_of(home: Path) -> str:
    """The URL of the private server of `home`; makes, starts or joins it. Raises StorageError."""
    if os.geteuid() != 0:
        _check_user()
    try:
        place = _place_of(home.absolute())
        _claim(place)
        return _join(place)
    except ServerFailed as error:
        raise StorageError(str(error)) from None
    except OSError as error:
        raise StorageError(
            f"The private database must be able to write under its folder, but {error.filename or home} "
            f"says: {error.strerror}. Free some space or fix the permissions. {WAY_OUT}"
        ) from error


def _check_user() -> None:
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        raise StorageError(
            f"PostgreSQL runs only as a user the system knows, but uid {os.geteuid()} has no entry in the "
            "user database. Run as a user that has one (in a container: add it), or give --storage (or "
            "CADDIE_STORAGE) the URL of a PostgreSQL of your own."
        ) from None


def _place_of(home: Path) -> Path:
    """Where cluster and locks live: `home`, or as root a folder outside that the server's user can reach."""
    pointer = home / "location"
    if pointer.exists():
        return Path(pointer.read_text())
    home.mkdir(parents=True, exist_ok=True)
    as_root = os.geteuid() == 0
    if not (home / "users.lock").exists():
        home.chmod(0o711 if as_root else 0o700)
    owner = owner_of_server(home / "cluster" / "data")
    if not as_root or traversable(home, owner):
        return home
    place = ROOTS_HOME / f"caddie-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"
    place.mkdir(mode=0o711, parents=True, exist_ok=True)
    place.chmod(0o711)
    fresh = home / f"location.{secrets.token_hex(4)}"
    fresh.write_text(str(place))
    fresh.replace(pointer)
    return place


@functools.cache
def _claim(place: Path) -> int:
    """A shared flock on users.lock that this process keeps until it ends; waits for a server that stops."""
    fd = os.open(place / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def _join(place: Path) -> str:
    deadline = time.monotonic() + START_S
    tokens: list[str] = []
    while time.monotonic() < deadline:
        url = _url_if_up(place)
        if url is not None:
            return url
        serve_fd = os.open(place / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(serve_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a supervisor is at work
            os.close(serve_fd)
        else:
            _raise_failure(place, tokens)
            tokens.append(secrets.token_hex(8))
            _launch(place, tokens[-1], serve_fd)
        time.sleep(0.03)
    raise StorageError(
        f"The private database must answer within {START_S:.0f} s of its start, but does not. Its log is "
        f"{place / 'postgres.log'}. {WAY_OUT}"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", json.loads(path.read_text()))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _raise_failure(place: Path, tokens: list[str]) -> None:
    """Nobody supervises: raises the reason that a supervisor of ours left, or when too many died silently."""
    failure = _read_json(place / "error.json")
    if failure.get("token") in tokens:
        raise StorageError(f"{failure['text']} {WAY_OUT}")
    if len(tokens) >= LAUNCHES:
        raise StorageError(
            f"The private database's supervisor must stay alive, but {LAUNCHES} in a row died at the start. "
            f"See {place / 'supervisor.log'}. {WAY_OUT}"
        )


def _launch(place: Path, token: str, serve_fd: int) -> None:
    """Starts a supervisor that inherits the lock on `serve_fd`, and closes ours."""
    keep = {k: v for k in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if (v := os.environ.get(k)) is not None}
    root = str(Path(__file__).resolve().parents[2])
    try:
        with (place / "supervisor.log").open("wb") as log:
            subprocess.run(
                [sys.executable, "-P", "-c", SUPERVISE, root, str(place), token],
                pass_fds=[serve_fd],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=keep,
                start_new_session=True,
                check=False,
            )
    finally:
        os.close(serve_fd)


def _url_if_up(place: Path) -> str | None:
    """The URL when the server takes connections now, else None."""
    facts = _read_json(place / "server.json")
    if not facts:
        return None
    password = (place / "password").read_text()
    try:
        psycopg2.connect(
            host=facts["socket"],
            port=PORT,
            user=DB_USER,
            password=password,
            dbname="postgres",
            connect_timeout=5,
        ).close()
    except psycopg2.OperationalError as error:
        if "password authentication failed" in str(error):
            raise StorageError(
                f"The private database's password must be the one in {place / 'password'}, but the server "
                f"refuses it. Put the file back, or move {place} away to begin a new database. {WAY_OUT}"
            ) from None
        return None
    url = sqlalchemy.URL.create(
        "postgresql+psycopg2",
        username=DB_USER,
        password=password,
        port=PORT,
        database="postgres",
        query={"host": facts["socket"]},
    )
    return url.render_as_string(hide_password=False)
