"""Store: what finished stages left, by address, in one folder under a disk limit.

    ROOT/entries/<stage>-<address>/   the files and entry.json: their sizes and sha256
    ROOT/tmp/                         entries on their way in or out; a rename makes either atomic

An entry is whole or not there: it is written beside its place and renamed (of two writers the first one
stays; both have the same content). Every file is hashed while it is copied out: an entry that is not what it
was is dropped with a note, and the stage runs again. Over the limit the least recently used entries go, never
one that somebody holds. Trouble with the disk costs a hit, never a trial: one note of each kind, and on.
The folder may be shared by machines (it needs rename and flock; NFS 4 has both), so nothing in it is trusted:
an entry holds plain files of known names and bounded size, and no link is followed.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from search.common.console import redact
from search.stage_cache.addresses import CHUNK_BYTES, sha256_of

MANIFEST = "entry.json"
MANIFEST_BYTES = 1000  # it has less
TEXT_BYTES = 50_000_000  # a JSON file of an entry has less; of a manifest, 64 times MANIFEST_BYTES
RECORDS = ("stage_average.json", "stage_pack.json", "stage_evaluate.json", "reports.jsonl")
KNOWN_FILES = (*RECORDS, "weights.pt", "artifact.bin")  # whatever a stage leaves
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
        if link := next((p for p in (self.entries, self.tmp, root / "lock") if p.is_symlink()), None):
            raise ValueError(f"A stage cache is no link, but {link} is one. Name another --cache.")
        self._sweep()

    # -- reading

    def has(self, name: str) -> bool:
        """Whether there is an entry; it may still turn out to be corrupt."""
        return (self.entries / name / MANIFEST).exists()

    def facts(self, name: str) -> dict[str, Any] | None:
        """What was stored beside the files; {} of a ruin, None without an entry."""
        try:
            with open_plain(self.entries / name / MANIFEST) as file:
                return cast("dict[str, Any]", _manifest(file)["facts"])
        except FileNotFoundError:
            return None
        except (OSError, Corrupt):
            return {}

    def fetch(self, name: str, folder: Path) -> Mapping[str, Any] | None:
        """Copies an entry's files into `folder`, verified, and returns its facts; None: a miss. A corrupt
        entry is dropped, one that cannot be copied stays; what was copied is removed again."""
        copied: list[Path] = []
        try:
            with self._held(name) as held:
                if held is None or not self._fits(sum(f["bytes"] for f in held["files"].values())):
                    return None
                folder.mkdir(parents=True, exist_ok=True)
                for file, facts in held["files"].items():
                    with open_plain(self.entries / name / file, facts["bytes"]) as source:
                        copied.append(folder / file)
                        _copy(source, folder / file, facts)
                with contextlib.suppress(OSError):  # dropped meanwhile, or another user's
                    os.utime(self.entries / name / MANIFEST)
                return cast("dict[str, Any]", held["facts"])
        except Corrupt as error:
            self.note("corrupt", f"entry {name} was not what it should be ({error}); dropped, the stage runs")
            self.drop(name)
        except OSError as error:
            self.note("read", f"entry {name} cannot be copied ({error.strerror or error}); the stage runs")
        for path in copied:
            path.unlink(missing_ok=True)
        return None

    @contextlib.contextmanager
    def _held(self, name: str) -> Generator[dict[str, Any] | None]:
        """The manifest, under a shared lock that keeps the entry from being evicted."""
        path = self.entries / name / MANIFEST
        try:
            file = open_plain(path)
        except FileNotFoundError:
            yield None
            return
        with file:
            fcntl.flock(file, fcntl.LOCK_SH)
            if not path.exists():  # it was taken away while we waited
                yield None
                return
            if path.parent.is_symlink():
                raise Corrupt("it is a link")
            yield _manifest(file)

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
        if not self._fits(size):
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

    def _fits(self, size: int) -> bool:
        if size > self.limits.max_bytes:
            self.note("size", f"a stage of {size:,} bytes is larger than the whole cache; raise --cache-size")
        return size <= self.limits.max_bytes

    def most_bytes(self) -> int:
        """Of an entry that is to come in."""
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free - self.limits.keep_free_bytes
        return min(self.limits.max_bytes, max(free, 0))

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
            text = redact(text)  # notes are stored with the trial
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
    """Corrupt unless the folder holds the files of its manifest as they were, and nothing else."""
    try:
        with open_plain(folder / MANIFEST) as file:
            files = _manifest(file)["files"]
        if {path.name for path in folder.iterdir()} != {MANIFEST, *files}:
            raise Corrupt(f"{MANIFEST} names other files")
        for name, facts in files.items():
            with open_plain(folder / name, facts["bytes"]):
                if sha256_of(folder / name) != facts["sha256"]:
                    raise Corrupt(f"{name} has other content")
    except FileNotFoundError as error:
        raise Corrupt(f"{Path(error.filename).name} is missing") from None


def open_plain(path: Path, size: int | None = None) -> BinaryIO:
    """The file, opened: Corrupt for a link, a pipe or another size; with a size, for none too (otherwise
    FileNotFoundError)."""
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR, errno.ENOENT if size is not None else 0):
            raise Corrupt(f"{path.name} is no plain file") from None
        raise
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or size not in (None, found.st_size):
        file.close()
        raise Corrupt(f"{path.name} is no plain file of {size or 0:,} bytes")
    return file


def _manifest(file: BinaryIO) -> dict[str, Any]:
    """The checked manifest. Corrupt: too long, of another form, or with a file that no stage leaves."""
    try:
        found: Any = json.loads(file.read(64 * MANIFEST_BYTES))
        for name, facts in found["files"].items():
            most = TEXT_BYTES if name in RECORDS else 1 << 62
            sized = type(facts["bytes"]) is int and 0 <= facts["bytes"] <= most
            if name not in KNOWN_FILES or not sized or not re.fullmatch("[0-9a-f]{64}", facts["sha256"]):
                raise Corrupt(f"{MANIFEST} names {name!r} with {facts['bytes']!r} bytes")
        found["facts"].keys()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Corrupt(f"{MANIFEST} is not of this form") from None
    return cast("dict[str, Any]", found)


def _copy(source: BinaryIO, target: Path, facts: Mapping[str, Any]) -> None:
    """Copies and hashes in one pass, so that what was checked is what lies there."""
    found = hashlib.sha256()
    target.unlink(missing_ok=True)  # a link there is no way out
    with target.open("xb") as write:
        while part := source.read(min(CHUNK_BYTES, facts["bytes"] - write.tell())):
            found.update(part)
            write.write(part)
    if found.hexdigest() != facts["sha256"]:
        raise Corrupt(f"{target.name} has other content")
