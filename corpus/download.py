"""`corpus download`: the published export through huggingface_hub; resumable, each file checked by hash."""

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers

from corpus.bpb import byte_luts, count_bytes, verify_bos, verify_luts
from corpus.dataset import open_dataset
from corpus.export import vocab_size_of
from corpus.manifest import (
    Manifest,
    ShardEntry,
    SplitEntry,
    locked,
    manifest_path,
    sha256_file,
    write_manifest,
)
from corpus.shards import check_vocab, read_header, read_shard, read_tokens, shard_name
from corpus.tokenizer import load_tokenizer, tokenizer_file_name

REPO_ID = "willdepueoai/parameter-golf"
# Errors of the HTTP client that this huggingface_hub was built on (requests, httpx or httpx2).
_CLIENT_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]


@dataclass(frozen=True)
class Hub:
    """Where the export is published."""

    repo_id: str = REPO_ID
    revision: str = "main"
    prefix: str = "datasets"  # the repository's folder that holds datasets/ and tokenizers/
    dataset: str = "fineweb10B"  # folder datasets/<dataset>_<variant>
    tokenizer: str = "fineweb"  # file tokenizers/<tokenizer>_<V>_bpe.model
    endpoint: str | None = None  # None: huggingface_hub's own, HF_ENDPOINT or the public hub


@dataclass(frozen=True)
class Download:
    """What was done."""

    folder: Path
    tokenizer: Path
    manifest: Manifest
    fetched: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # complete already


def download(
    root: Path | str = "data", *, variant: str = "sp1024", train_shards: int = 1, hub: Hub | None = None
) -> Download:
    """Validation shards, the first `train_shards` training shards and the tokenizer of a variant.

    Files that are complete (size and hash of the hub's listing) are skipped; a cut-off one is resumed where
    it ended; each is checked before it gets its name. Training shards fetched before stay part of the
    dataset. Raises ValueError if the repository lacks them or a file is not what its listing says, OSError on
    network trouble that lasts.
    """
    hub, root = hub or Hub(), Path(root)
    vocab_size = vocab_size_of(variant)
    if train_shards < 1:
        raise ValueError(f"--train-shards must be at least 1, but got {train_shards}. Use 1 to 80.")
    folder = root / "datasets" / f"{hub.dataset}_{variant}"
    tokenizer_name = tokenizer_file_name(hub.tokenizer, vocab_size)
    try:
        commit, listing = _listing(hub, folder.name)
        wanted = _wanted(hub, folder.name, listing, train_shards)
        small = f"tokenizers/{tokenizer_name}"
        first = {small: _entry(listing, small, hub)}
        with locked(folder):
            fetched, skipped = _fetch_all(root, hub, commit, first)
            tokenizer = load_tokenizer(root / small, vocab_size=vocab_size)
            verify_luts(tokenizer, byte_luts(tokenizer))  # before 200 MB a shard
            more = _fetch_all(root, hub, commit, wanted)
            fetched = fetched + more[0]
            skipped = skipped + more[1]
            manifest = _write_manifest(root, folder, tokenizer_name, vocab_size, _source(hub, commit))
            try:
                open_dataset(folder, vocab_size=vocab_size, seq_len=1)
            except ValueError:  # what a run would refuse is no complete dataset
                manifest_path(folder).unlink()
                raise
    except HfHubHTTPError as error:
        raise OSError(_trouble(hub, error)) from error
    except _CLIENT_ERROR as error:
        raise OSError(_trouble(hub, error)) from error
    return Download(folder, root / "tokenizers" / tokenizer_name, manifest, fetched, skipped)


def _source(hub: Hub, commit: str) -> dict[str, Any]:
    return {"kind": "hub", "repo_id": hub.repo_id, "commit": commit, "prefix": hub.prefix}


def _trouble(hub: Hub, error: Exception) -> str:
    where = hub.endpoint or huggingface_hub.constants.ENDPOINT
    where, facts = (re.sub(r"//[^/\s]*@", "//", text) for text in (where, " ".join(str(error).split())[:300]))
    return (
        f"The export comes from {hub.repo_id} at {where}, but that failed: {type(error).__name__}: {facts}. "
        "Run the same command again to resume, or set HF_ENDPOINT to a mirror."
    )


def _listing(hub: Hub, folder: str) -> tuple[str, dict[str, RepoFile]]:
    """The commit behind the revision, and its files of the two folders by path below the prefix."""
    api = huggingface_hub.HfApi(endpoint=hub.endpoint)
    try:
        commit = api.repo_info(hub.repo_id, revision=hub.revision, repo_type="dataset").sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(
            f"The export is the dataset repository {hub.repo_id!r} at revision {hub.revision!r}, but the hub "
            "has no such one (or it is private). Check --repo and --revision, or log in."
        ) from error
    if not commit:
        raise ValueError(
            f"{hub.repo_id!r} names no commit for {hub.revision!r}. Check --repo and --revision."
        )
    files: dict[str, RepoFile] = {}
    for path in (f"datasets/{folder}", "tokenizers"):
        remote = f"{hub.prefix}/{path}".lstrip("/")
        try:
            entries = list(api.list_repo_tree(hub.repo_id, remote, revision=commit, repo_type="dataset"))
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code != 404:
                raise
            raise ValueError(
                f"The export has a folder {remote}, but {hub.repo_id} has none. Check --variant, --repo and "
                "--prefix."
            ) from error
        for entry in entries:
            if isinstance(entry, RepoFile):
                files[entry.path.removeprefix(f"{hub.prefix}/")] = entry
    return commit, files


def _wanted(hub: Hub, folder: str, listing: dict[str, RepoFile], train_shards: int) -> dict[str, RepoFile]:
    """Validation shards all of them, training shards the first `train_shards`; by path below the root."""
    is_val = re.compile(rf"datasets/{re.escape(folder)}/fineweb_val_\d+\.bin").fullmatch
    wanted = {path: entry for path, entry in sorted(listing.items()) if is_val(path)}
    if not wanted:
        raise ValueError(
            f"A dataset needs validation shards, but {hub.repo_id} lists none in datasets/{folder}. Check "
            "--variant."
        )
    available = sum(bool(re.search(r"/fineweb_train_\d+\.bin$", path)) for path in listing)
    if train_shards > available:
        raise ValueError(
            f"{hub.repo_id} has {available} training shards of {folder}, but {train_shards} were asked for. "
            f"Use --train-shards {available} or fewer."
        )
    for index in range(train_shards):
        path = f"datasets/{folder}/{shard_name('train', index)}"
        wanted[path] = _entry(listing, path, hub)
    return wanted


def _entry(listing: dict[str, RepoFile], path: str, hub: Hub) -> RepoFile:
    if path not in listing:
        raise ValueError(
            f"The export has the file {path}, but {hub.repo_id} does not list it below {hub.prefix!r}. "
            "Check --variant, --repo and --prefix."
        )
    return listing[path]


def _fetch_all(root: Path, hub: Hub, commit: str, wanted: dict[str, RepoFile]) -> tuple[list[str], list[str]]:
    fetched: list[str] = []
    skipped: list[str] = []
    for path, entry in wanted.items():
        destination = root / path
        if _matches(destination, entry):
            skipped.append(path)
            continue
        destination.parent.mkdir(parents=True, exist_ok=True)
        # The manifest goes before a file changes: an interrupted download is no complete dataset.
        manifest_path(destination.parent).unlink(missing_ok=True)
        _fetch(destination, hub, commit, entry)
        fetched.append(path)
    return fetched, skipped


def _fetch(destination: Path, hub: Hub, commit: str, entry: RepoFile) -> None:
    """One file, through `.<name>.<hash>.part`: what is there of it is kept, the rest asked for."""
    part = destination.with_name(f".{destination.name}.{_expected(entry)[1][:16]}.part")
    url = huggingface_hub.hf_hub_url(
        hub.repo_id, entry.path, repo_type="dataset", revision=commit, endpoint=hub.endpoint
    )
    headers = build_hf_headers()
    headers["Accept-Encoding"] = "identity"  # a compressed answer could not be resumed by byte
    with part.open("ab") as file:
        have = file.seek(0, os.SEEK_END)
        if have > entry.size:
            file.truncate(0)
            have = 0
        if have < entry.size:
            http_get(url, file, resume_size=have, headers=headers, expected_size=entry.size)
    if not _matches(part, entry):
        size_bytes = part.stat().st_size
        part.unlink()  # a damaged start must not be resumed
        raise ValueError(
            f"A downloaded file must have the size and hash of its listing, but {destination.name} "
            f"({size_bytes:,} bytes, {entry.size:,} listed) does not. It was damaged on the way and is "
            "deleted: run the command again."
        )
    if destination.suffix == ".bin":
        read_header(part)
    os.replace(part, destination)


def _expected(entry: RepoFile) -> tuple[str, str]:
    """The listing's hash: SHA-256 of a large file, else git's blob id."""
    return ("sha256", entry.lfs.sha256) if entry.lfs is not None else ("git", entry.blob_id)


def _matches(path: Path, entry: RepoFile) -> bool:
    """Whether the file has the listing's size and hash."""
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    kind, expected = _expected(entry)
    if kind == "sha256":
        return sha256_file(path) == expected
    raw = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest() == expected


def _write_manifest(
    root: Path, folder: Path, tokenizer_name: str, vocab_size: int, source: dict[str, Any]
) -> Manifest:
    """Check what is in the folder and write it down, unless the manifest there already says the same."""
    tokenizer_path = root / "tokenizers" / tokenizer_name
    tokenizer = load_tokenizer(tokenizer_path, vocab_size=vocab_size)
    luts = byte_luts(tokenizer)
    splits: dict[str, SplitEntry] = {}
    for split in ("val", "train"):
        paths = sorted(folder.glob(shard_name(split, 0).replace("000000", "[0-9]*")))
        documents = 0
        for path in paths:
            tokens = read_shard(path)
            check_vocab(tokens, vocab_size=vocab_size, where=path)
            documents += int((tokens == 1).sum())
        verify_bos(read_tokens(paths, limit=1 << 16))
        num_bytes = 0
        if split == "val":
            tokens = read_tokens(paths)
            num_bytes = int(count_bytes(luts, tokens[:-1], tokens[1:]).sum(dtype="int64"))
        shards = [ShardEntry(path.name, read_header(path), sha256_file(path)) for path in paths]
        splits[split] = SplitEntry(documents, num_bytes, shards)
    manifest = Manifest(
        name=folder.name,
        vocab_size=vocab_size,
        tokenizer=tokenizer_path.relative_to(root).as_posix(),
        tokenizer_sha256=sha256_file(tokenizer_path),
        splits=splits,
        source=source,
    )
    write_manifest(folder, manifest)
    return manifest
