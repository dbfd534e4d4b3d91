"""Store: what finished stages left, by address, in one folder under a disk limit.

    ROOT/entries/<stage>-<address>/   the files and entry.json: their sizes and sha256
    ROOT/tmp/                         entries on their way in or out; a rename makes either atomic

An entry is whole or not there: it is written beside its place and renamed (of two writers the first one
stays; both have the same content). Every file is hashed while it is copied out: an entry that is not what it
was is dropped with a note, and the stage runs again. Over the limit the least recently used entries go, never
one that somebody holds. Trouble with the disk costs a hit, never a trial: one note of each kind, and on.
The folder may be shared by machines (it needs rename and flock; NFS 4 has both).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from search.stage_cache.addresses import CHUNK_BYTES, sha256_of

MANIFEST = "entry.json"
MANIFEST_BYTES = 1000  # it has less
DEFAULT_BYTES = 10_000_000_000  # about ninety checkpoints of the challenge's 27 M parameters in float32
KEEP_FREE_BYTES = 1_000_000_000  # of the disk: trials must be able to write
ABANDONED_S = 3600.0  # a temporary folder of another machine that is older has no owner
log = logging.getLogger(__name__)


class Corrupt(Exception):
    """An entry is not what its manifest says."""


@dataclass(frozen=True)
class Limits:
    """How much of a disk the store may take."""

    max_bytes: int = DEFAULT_BYTES
    keep_free_bytes: int = KEEP_FREE_BYTES


class Store:
    """See the head of this file. `notes` are what a person should know; each kind is noted once."""

    def __init__(self, root: Path, limits: Limits | None = None):
        self.root, self.limits = root, limits or Limits()
        self.entries, self.tmp = root / "entries", root / "tmp"
        self.notes: list[str] = []
        self._noted: set[str] = set()
        self._count = 0
        self._sweep()

    # -- reading

    def has(self, name: str) -> bool:
        """Whether there is an entry; it may still turn out to be corrupt."""
        return (self.entries / name / MANIFEST).exists()

    def facts(self, name: str) -> dict[str, Any] | None:
        """What was stored beside the files; {} of a ruin, None without an entry."""
        try:
            return cast("dict[str, Any]", _manifest((self.entries / name / MANIFEST).read_bytes())["facts"])
        except FileNotFoundError:
            return None
        except (OSError, Corrupt):
            return {}

    def fetch(self, name: str, folder: Path) -> Mapping[str, Any] | None:
        """Copies an entry's files into `folder`, verified, and returns its facts; None: a miss. A corrupt
        entry is dropped; what was copied of it is removed again."""
        copied: list[Path] = []
        try:
            with self._held(name) as held:
                if held is None:
                    return None
                for file, facts in held["files"].items():
                    copied.append(folder / file)
                    _copy(self.entries / name / file, folder / file, facts["sha256"])
                os.utime(self.entries / name / MANIFEST)
                return cast("dict[str, Any]", held["facts"])
        except (Corrupt, FileNotFoundError) as error:
            self.note("corrupt", f"entry {name} was not what it should be ({error}); dropped, the stage runs")
            self.drop(name)
        except OSError as error:
            self.note("read", f"entry {name} cannot be read ({error.strerror or error}); the stage runs")
        for path in copied:
            path.unlink(missing_ok=True)
        return None

    @contextlib.contextmanager
    def _held(self, name: str) -> Generator[dict[str, Any] | None]:
        """The manifest, under a shared lock that keeps the entry from being evicted."""
        path = self.entries / name / MANIFEST
        try:
            file = path.open("r+b")
        except FileNotFoundError:
            yield None
            return
        with file:
            fcntl.flock(file, fcntl.LOCK_SH)
            if not path.exists():  # it was taken away while we waited
                yield None
                return
            yield _manifest(file.read())

    # -- writing

    def put(self, name: str, files: Sequence[Path], facts: Mapping[str, Any]) -> bool:
        """Stores the files under their own names. False when there is one already, or when it cannot be:
        then a note says why. The rest of the trial goes on."""
        if self.has(name):
            return False
        try:
            with self._lock(), self.beside() as beside:
                size = sum(path.stat().st_size for path in files) + MANIFEST_BYTES
                if self.has(name) or not self._make_room(size):
                    return False
                for path in files:
                    shutil.copyfile(path, beside / path.name)
                write_manifest(beside, facts)
                return self.adopt(name, beside)
        except OSError as error:
            self.note("write", f"nothing more can be stored in {self.root} ({error.strerror or error})")
            return False

    def receive(self, name: str, beside: Path) -> bool:
        """An entry that came from elsewhere, whole and checked, under the same limits. True: it is here."""
        with self._lock():
            size = sum(path.stat().st_size for path in beside.iterdir())
            return self.has(name) or (self._make_room(size) and self.adopt(name, beside))

    @contextlib.contextmanager
    def reading(self, name: str) -> Generator[Path | None]:
        """The entry's folder, held; None when there is none."""
        with self._held(name) as held:
            yield None if held is None else self.entries / name

    @contextlib.contextmanager
    def beside(self) -> Generator[Path]:
        """A folder on the store's file system for an entry on its way; gone at the end, whatever happened."""
        self._count += 1
        path = self.tmp / f"{socket.gethostname()}-{os.getpid()}-{self._count}"
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def adopt(self, name: str, beside: Path) -> bool:
        """Renames a whole entry into place; False when somebody was faster."""
        self.entries.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            try:
                os.rename(beside, self.entries / name)
                return True
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if self.has(name):
                return False
            self.drop(name)  # a ruin without a manifest
        return False

    def drop(self, name: str) -> None:
        """Takes an entry away at once, whoever reads it (their copies are checked)."""
        with contextlib.suppress(OSError), self.beside() as beside:
            os.rename(self.entries / name, beside / name)

    # -- room

    def _listing(self) -> list[tuple[float, Path, int]]:
        """(last use, entry, bytes), the least recently used first."""
        found: list[tuple[float, Path, int]] = []
        with contextlib.suppress(FileNotFoundError):
            for entry in self.entries.iterdir():
                with contextlib.suppress(OSError):  # evicted meanwhile
                    size = sum(path.stat().st_size for path in entry.iterdir())
                    found.append(((entry / MANIFEST).stat().st_mtime, entry, size))
        return sorted(found)

    def _make_room(self, size: int) -> bool:
        """Evicts until `size` more bytes keep both limits. Under the store's lock."""
        if size > self.limits.max_bytes:
            self.note("size", f"a stage of {size:,} bytes is larger than the whole cache; raise --cache-size")
            return False
        listing = self._listing()
        excess = sum(s for _, _, s in listing) + size - self.limits.max_bytes
        lacking = size + self.limits.keep_free_bytes - shutil.disk_usage(self.root).free
        for _, entry, bytes_ in listing:
            if excess <= 0 and lacking <= 0:
                break
            if self._evict(entry):
                excess, lacking = excess - bytes_, lacking - bytes_
        if lacking > 0:
            self.note("room", f"{self.root} has too little free space; nothing more is stored there")
        return excess <= 0 and lacking <= 0

    def _evict(self, entry: Path) -> bool:
        """False when somebody holds it."""
        try:
            with (entry / MANIFEST).open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.drop(entry.name)
        except OSError:
            return False
        return not entry.exists()

    @contextlib.contextmanager
    def _lock(self) -> Generator[None]:
        """One at a time looks for room."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _sweep(self) -> None:
        """Takes away what killed writers left in tmp/."""
        with contextlib.suppress(OSError, ValueError):
            for path in self.tmp.iterdir():
                host, pid, _ = path.name.rsplit("-", 2)
                old = time.time() - path.stat().st_mtime > ABANDONED_S
                dead = host == socket.gethostname() and not Path(f"/proc/{pid}").exists()
                if old or (dead and Path("/proc/self").exists()):
                    shutil.rmtree(path, ignore_errors=True)

    def note(self, kind: str, text: str) -> None:
        """Once for each kind: a worker may meet the same trouble in every trial."""
        if kind not in self._noted:
            self._noted.add(kind)
            self.notes.append(f"stage cache: {text}")
            log.warning("stage cache: %s", text)


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """entry.json over the files that lie in `folder`."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    text = json.dumps({"files": files, "facts": dict(facts)}, indent=1, sort_keys=True)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def check(folder: Path) -> None:
    """Corrupt unless every file of the manifest is there as it was."""
    try:
        manifest = _manifest((folder / MANIFEST).read_bytes())
        for file, facts in manifest["files"].items():
            if sha256_of(folder / file) != facts["sha256"]:
                raise Corrupt(f"{file} has other content")
    except FileNotFoundError as error:
        raise Corrupt(f"{Path(error.filename).name} is missing") from None


def _manifest(data: bytes) -> dict[str, Any]:
    try:
        found: object = json.loads(data)
    except ValueError:
        raise Corrupt(f"{MANIFEST} is no JSON") from None
    if not isinstance(found, dict) or not {"files", "facts"} <= found.keys():
        raise Corrupt(f"{MANIFEST} is not of this form")
    return cast("dict[str, Any]", found)


def _copy(source: Path, target: Path, sha256: str) -> None:
    """Copies and hashes in one pass, so that what was checked is what lies there."""
    found = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as write:
        while part := read.read(CHUNK_BYTES):
            found.update(part)
            write.write(part)
    if found.hexdigest() != sha256:
        raise Corrupt(f"{source.name} has other content")
