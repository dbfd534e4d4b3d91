"""Remote: entries of the stage cache in an Optuna artifact store, so that machines share them.

`s3://bucket/prefix` (boto3, and its usual credentials) or a folder. One object an entry: a plain tar of its
files and manifest, named after its address. What comes back is checked like a local entry; half an object is
a miss. A store that does not answer is left alone for PAUSE_S: it costs hits, never a trial.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from search.stage_cache.store import MANIFEST, Corrupt, Store, check

PAUSE_S = 600.0
STAGE_FILES = {"stage_average.json", "stage_pack.json", "stage_evaluate.json", "weights.pt", "artifact.bin"}
NAMES = {MANIFEST, "reports.jsonl", *STAGE_FILES}


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
                    _unpack(reader, beside)
                check(beside)
                return self.store.receive(name, beside)
        except ArtifactNotFound:
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


def _unpack(reader: Any, folder: Path) -> None:
    with tarfile.open(fileobj=reader, mode="r|") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() and member.name in NAMES else None
            if content is None:
                raise Corrupt(f"it holds {member.name!r}")
            with content, (folder / member.name).open("wb") as file:
                shutil.copyfileobj(content, file)


def open_remote(place: str, store: Store) -> Remote:
    """The shared store at `s3://bucket/prefix` or in a folder. ValueError when it cannot be used at all."""
    from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore  # they import boto3

    if not place.startswith("s3://"):
        if "://" in place:
            raise ValueError(
                f"A shared stage cache is a folder or s3://bucket/prefix, but got {place!r}. Use one of them."
            )
        folder = Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        return Remote(FileSystemArtifactStore(folder), "", store, ())
    parts = urlsplit(place)
    if not parts.netloc:
        raise ValueError(
            f"A shared stage cache on S3 names a bucket, but got {place!r}. Use s3://bucket/prefix."
        )
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
