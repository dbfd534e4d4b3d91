"""manifest.json, written last: a folder with one is complete; `data_id` is the hash of all it says."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from corpus.shards import HEADER_BYTES, SPLITS

MANIFEST_NAME = "manifest.json"
FORMAT = 1
_MARK_NAME = ".building"


@dataclass(frozen=True)
class ShardEntry:
    """One shard file."""

    file: str
    tokens: int
    sha256: str

    @property
    def size_bytes(self) -> int:
        return HEADER_BYTES + 2 * self.tokens


@dataclass(frozen=True)
class SplitEntry:
    """One split: what is in its shards."""

    documents: int  # BOS in all shards
    bytes: int  # UTF-8 bytes of the normalised text, as the byte tables count them; 0 = not counted
    shards: list[ShardEntry]

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)


@dataclass(frozen=True)
class Manifest:
    """All that says which data this is. No time and no absolute path: the same data gives the same file."""

    name: str  # the folder's name
    vocab_size: int
    tokenizer: str  # relative to the root that holds datasets/ and tokenizers/
    tokenizer_sha256: str
    splits: dict[str, SplitEntry]
    source: dict[str, Any]  # kind, seed, package versions or files or repository
    format: int = FORMAT

    @property
    def data_id(self) -> str:
        """16 hexadecimal digits, the same on every machine that has the same data."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def manifest_path(folder: Path | str) -> Path:
    return Path(folder) / MANIFEST_NAME


def root_of(folder: Path | str) -> Path:
    """The root that holds `datasets/` and `tokenizers/`, two steps above a dataset folder."""
    return Path(folder).resolve().parent.parent


def write_manifest(folder: Path | str, manifest: Manifest) -> None:
    """Write it atomically: the last step of every build."""
    path = manifest_path(folder)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    content = json.dumps({**asdict(manifest), "data_id": manifest.data_id}, indent=1, sort_keys=True)
    try:
        temporary.write_text(content + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_manifest(folder: Path | str) -> Manifest | None:
    """The folder's manifest, or None if there is none (a foreign or unfinished folder).

    Raises ValueError if there is one that cannot be read, or whose `data_id` is not that of its content.
    """
    path = manifest_path(folder)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        claimed = content.pop("data_id")
        splits = {
            name: SplitEntry(
                **{**content["splits"][name], "shards": [ShardEntry(**s) for s in entry["shards"]]}
            )
            for name, entry in content["splits"].items()
        }
        manifest = Manifest(**{**content, "splits": splits})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"A manifest is a JSON file of format {FORMAT}, but {path} cannot be read "
            f"({type(error).__name__}: {error}). Delete the dataset folder and build it again."
        ) from error
    if manifest.data_id != claimed or manifest.format != FORMAT or set(splits) != set(SPLITS):
        raise ValueError(
            f"A manifest's data_id is the hash of its content, but {path} claims {claimed} and has "
            f"{manifest.data_id} (format {manifest.format}). It was edited or is of another version: build "
            "the dataset again."
        )
    return manifest


def check_sizes(folder: Path | str, manifest: Manifest) -> None:
    """Raises ValueError unless the folder holds exactly the manifest's shards, by their sizes."""
    folder = Path(folder)
    entries = {shard.file: shard for split in manifest.splits.values() for shard in split.shards}
    present = {path.name for path in folder.glob("fineweb_*.bin") if "_bytes_" not in path.name}
    if present != set(entries):
        missing, extra = sorted(set(entries) - present), sorted(present - set(entries))
        raise ValueError(
            f"{folder} must hold exactly the shards of its manifest, but {len(missing)} are missing "
            f"{missing[:3]} and {len(extra)} are foreign {extra[:3]}. Build or fetch the dataset again, or "
            "take foreign files out."
        )
    for name, entry in entries.items():
        size_bytes = (folder / name).stat().st_size
        if size_bytes != entry.size_bytes:
            raise ValueError(
                f"{folder / name} must have {entry.size_bytes:,} bytes by its manifest, but has "
                f"{size_bytes:,}. Build or fetch the dataset again."
            )
    tokenizer = root_of(folder) / manifest.tokenizer
    if not tokenizer.is_file():
        raise ValueError(
            f"The dataset {manifest.name} needs its tokenizer {tokenizer}, but there is no such file. "
            "Put it back, or build the dataset again with --force."
        )


def is_complete(folder: Path | str) -> bool:
    """Whether the folder has a readable manifest and every file it names, judged by size alone."""
    try:
        manifest = read_manifest(folder)
        if manifest is None:
            return False
        check_sizes(folder, manifest)
    except ValueError:
        return False
    return True


def mark_unfinished(folder: Path) -> None:
    """Say that this program began to write here: without a manifest, such a folder may be built anew."""
    (folder / _MARK_NAME).touch()


def mark_finished(folder: Path) -> None:
    (folder / _MARK_NAME).unlink(missing_ok=True)


def is_unfinished(folder: Path) -> bool:
    """Whether a build of ours was cut off here; shards without mark and manifest are somebody else's."""
    return (folder / _MARK_NAME).exists()


def sha256_file(path: Path | str) -> str:
    """Hexadecimal SHA-256 of the file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(folder: Path | str) -> Iterator[None]:
    """Hold the folder's lock: one builder at a time on this machine; a killed one lets go."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
