"""Remote: entries of the stage cache in an Optuna artifact store, so that machines share them.

`s3://bucket/prefix` (boto3, and its usual credentials) or a folder. One object an entry: a plain tar of its
files and manifest, named after its address. What comes back is checked like a local entry; half an object is
a miss. A store that does not answer is left alone for PAUSE_S: it costs hits, never a trial.
"""

import secrets
import shutil
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from search.stage_cache.store import KNOWN_FILES, MANIFEST, MANIFEST_BYTES, Corrupt, Store, check, open_plain

PAUSE_S = 600.0


class Remote:
    """See the head of this file."""

    def __init__(self, objects: Any, prefix: str, store: Store, trouble: tuple[type[Exception], ...]):
        self.objects, self.prefix, self.store = objects, prefix, store
        self.trouble = (OSError, tarfile.TarError, *trouble)
        self._silent_until = 0.0

    def fetch(self, name: str) -> bool:
        """Brings an entry into the local store; False: there is none, or not a whole one."""
        from optuna.artifacts.exceptions import ArtifactNotFound

        if time.monotonic() < self._silent_until:
            return False
        try:
            with self.store.beside() as beside:
                with self.objects.open_reader(self._id(name)) as reader:
                    _unpack(reader, beside, self.store.most_bytes())
                check(beside)
                return self.store.receive(name, beside)
        except (ArtifactNotFound, FileNotFoundError):
            return False
        except (Corrupt, tarfile.TarError) as error:
            self.store.note("remote entry", f"{self._id(name)} in the shared store is not whole ({error})")
        except self.trouble as error:
            self._leave_alone(error)
        return False

    def push(self, name: str) -> bool:
        """Uploads a local entry; an object of that name is replaced (its content is the same, or broken)."""
        if time.monotonic() < self._silent_until:
            return False
        try:
            with tempfile.TemporaryFile(dir=self.store.tmp) as packed:
                with self.store.reading(name) as folder:
                    if folder is None:
                        return False
                    with tarfile.open(fileobj=packed, mode="w") as tar:
                        for path in sorted(folder.iterdir()):
                            tar.add(path, arcname=path.name, recursive=False)
                packed.seek(0)
                self.objects.write(self._id(name), packed)
                return True
        except self.trouble as error:
            self._leave_alone(error)
            return False

    def _id(self, name: str) -> str:
        return f"{self.prefix}{name}.tar"

    def _leave_alone(self, error: Exception) -> None:
        self._silent_until = time.monotonic() + PAUSE_S
        first = (str(error).splitlines() or [type(error).__name__])[0]
        self.store.note("remote", f"the shared store does not answer ({first}); the local one goes on")


class SharedFolder:
    """An artifact store in a folder that others may write: no link is followed, no object seen half."""

    def __init__(self, root: Path):
        self.root = root

    def open_reader(self, name: str) -> Any:
        return open_plain(self.root / name)

    def write(self, name: str, content: Any) -> None:
        beside = self.root / f".{name}-{secrets.token_hex(8)}"
        try:
            with beside.open("xb") as file:
                shutil.copyfileobj(content, file)
            beside.replace(self.root / name)
        finally:
            beside.unlink(missing_ok=True)


class _Member(tarfile.TarInfo):
    """A member whose extended headers, which tarfile keeps in memory, are short."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        if not self.isreg() and self.size > MANIFEST_BYTES:
            raise Corrupt(f"a header has {self.size:,} bytes")
        return cast("Any", super())._proc_member(tar)


def _unpack(reader: Any, folder: Path, left: int) -> None:
    """Plain files of known names, each once, `left` bytes in all; Corrupt before more is written."""
    with tarfile.open(fileobj=reader, mode="r|", tarinfo=_Member) as tar:
        for member in tar:
            left = left - member.size
            path = folder / member.name
            known = member.name in (MANIFEST, *KNOWN_FILES) and not path.exists()
            if not known or not member.isreg() or member.issparse():
                raise Corrupt(f"it holds {member.name!r}")
            if left < 0:
                raise Corrupt(
                    f"{member.name} has {member.size:,} bytes, {-left:,} more than there is room for"
                )
            with cast("Any", tar.extractfile(member)) as content, path.open("xb") as file:
                shutil.copyfileobj(content, file)


def open_remote(place: str, store: Store) -> Remote:
    """The shared store at `s3://bucket/prefix` or in a folder. ValueError when it cannot be used at all."""
    if not place.startswith("s3://"):
        if "://" in place:
            raise ValueError(
                f"A shared stage cache is a folder or s3://bucket/prefix, but got {place!r}. Use one of them."
            )
        folder = Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        return Remote(SharedFolder(folder), "", store, ())
    parts = urlsplit(place)
    if not parts.netloc or "@" in place:
        got = "user-info, which process lists show" if "@" in place else repr(place)
        raise ValueError(
            f"A shared stage cache on S3 names a bucket, but got {got}. Use s3://bucket/prefix, and boto3's "
            "credentials."
        )
    from optuna.artifacts import Boto3ArtifactStore  # it imports boto3

    try:
        import boto3  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
        import botocore.config  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
        import botocore.exceptions  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
    except ImportError:
        raise ValueError(
            "A shared stage cache on S3 needs boto3, which is not installed. Run pip install -e '.[s3]', or "
            "share a folder."
        ) from None
    quick = cast("Any", botocore.config).Config(
        connect_timeout=5, read_timeout=30, retries={"max_attempts": 2}
    )
    client = cast("Any", boto3).client("s3", config=quick)
    errors = cast("Any", botocore.exceptions)
    prefix = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
    trouble = (errors.BotoCoreError, errors.ClientError)
    return Remote(Boto3ArtifactStore(parts.netloc, client=client), prefix, store, trouble)
