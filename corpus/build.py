"""`corpus build --text`: .txt, .md, .jsonl (also .xz .gz .zst) of the user's own to a dataset folder."""

import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from corpus.export import Target, export_dataset
from corpus.manifest import Manifest, is_complete, is_unfinished, locked, read_manifest
from corpus.text.documents import (
    MAX_DOCUMENT_BYTES,
    Split,
    cut_documents,
    paragraphs,
    shuffled,
    unique_documents,
)

PLAIN_SUFFIXES = (".txt", ".md")
JSONL_SUFFIXES = (".jsonl", ".jsonl.xz", ".jsonl.gz", ".jsonl.zst")
# By default validation is 480 kB (about 190,000 tokens of sp1024), or a tenth of a small corpus.
DEFAULT_VAL_BYTES = 480_000
DEFAULT_VAL_FRAC = 0.1
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class BuildOptions:
    """How texts become documents and splits."""

    val_documents: int | None = None  # the first so many of the frozen order
    val_frac: float | None = None  # or this share of the documents
    seed: int = 1337
    max_document_bytes: int = MAX_DOCUMENT_BYTES  # of .txt and .md; a .jsonl line is a document as it is
    force: bool = False  # replace an existing dataset of the same name


def build(target: Target, texts: Sequence[Path | str], *, options: BuildOptions | None = None) -> Manifest:
    """Read the texts, split them and write the dataset; the same texts and options again change nothing.

    Raises ValueError on missing, empty, undecodable or unknown files, too few documents for two splits, too
    little text for the vocabulary, or an existing dataset from other text (unless `force`).
    """
    options = options or BuildOptions()
    _check_options(options)
    files = text_files([Path(text) for text in texts])
    documents = unique_documents(
        document for path in files for document in read_documents(path, max_bytes=options.max_document_bytes)
    )
    if not documents:
        raise ValueError(
            f"A corpus needs text, but the {len(files)} files hold none (first {files[0]}). Give files with "
            "text."
        )
    documents = shuffled(documents, seed=options.seed)
    num_val = count_validation(documents, options)
    source = {
        "kind": "text",
        "seed": options.seed,
        "files": [path.name for path in files],
        "documents": len(documents),
        "val_documents": num_val,
        "text_sha256": hashlib.sha256("\0".join(documents).encode()).hexdigest(),
        **({"transform": "caseops"} if target.caseops else {}),
    }
    with locked(target.folder):
        existing = _existing(target, source, force=options.force)
        if existing is not None:
            return existing
        split = Split(val=documents[:num_val], train=documents[num_val:])
        return export_dataset(target, split, source=source)


def text_files(paths: Sequence[Path]) -> list[Path]:
    """The text files that the paths name; a folder stands for all those under it, in path order.

    Raises ValueError if a path does not exist, is of an unknown kind, or a folder holds none.
    """
    files: list[Path] = []
    known = " ".join((*PLAIN_SUFFIXES, *JSONL_SUFFIXES))
    if not paths:
        raise ValueError("A corpus needs text, but no path was given. Use --text DIR or --text FILE ...")
    for path in paths:
        if path.is_dir():
            found = sorted(entry for entry in path.rglob("*") if entry.is_file() and _is_text(entry))
            if not found:
                raise ValueError(
                    f"A folder of text holds files of the kinds {known}, but {path} has none. Add some."
                )
            files += found
        elif not path.is_file():
            raise ValueError(f"--text names files or folders, but {path} does not exist. Check the path.")
        elif not _is_text(path):
            raise ValueError(
                f"Text files are of the kinds {known}, but got {path.name}. Convert or rename it."
            )
        else:
            files.append(path)
    return list(dict.fromkeys(files))


def read_documents(path: Path, *, max_bytes: int = MAX_DOCUMENT_BYTES) -> list[str]:
    """The file's documents: a .jsonl line each, else the file if small, else paragraphs up to `max_bytes`.

    Raises ValueError on bytes that are not UTF-8, broken compression, or a line without {"text": "..."}.
    """
    if _is_jsonl(path):
        return list(_read_jsonl(path))
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _undecodable(path, f"byte {error.start:,} ({error.reason})") from error
    return cut_documents(paragraphs(text), max_bytes=max_bytes)


def count_validation(documents: Sequence[str], options: BuildOptions) -> int:
    """How many of the first documents are validation. Raises ValueError if a split would be empty."""
    total = len(documents)
    if options.val_documents is not None:
        count = options.val_documents
    elif options.val_frac is not None:
        count = round(total * options.val_frac)
    else:
        sizes = [len(document.encode()) for document in documents]
        budget, count = min(DEFAULT_VAL_BYTES, DEFAULT_VAL_FRAC * sum(sizes)), 0
        while count < total and budget > 0:
            budget -= sizes[count]
            count += 1
    if not 0 < count < total:
        raise ValueError(
            f"Both splits need a document, but validation would take {count} of {total}. Give more text, "
            "smaller documents (--max-doc-bytes), or another --val-docs / --val-frac."
        )
    return count


def _check_options(options: BuildOptions) -> None:
    if options.val_documents is not None and options.val_frac is not None:
        raise ValueError("Validation is given once, but got --val-docs and --val-frac. Use one of the two.")
    if options.val_frac is not None and not 0 < options.val_frac < 1:
        raise ValueError(
            f"--val-frac lies between 0 and 1, but got {options.val_frac}. Use 0.05, for example."
        )
    if options.max_document_bytes < 64:
        raise ValueError(
            f"--max-doc-bytes must be at least 64, but got {options.max_document_bytes}. Use "
            f"{MAX_DOCUMENT_BYTES}."
        )


def _existing(target: Target, source: dict[str, Any], *, force: bool) -> Manifest | None:
    """The manifest if this very dataset is there already. Raises ValueError if another one is."""
    if force:
        return None
    if target.folder.is_dir():
        manifest = read_manifest(target.folder)
        if manifest is not None and manifest.source == source and is_complete(target.folder):
            return manifest
        if manifest is not None:
            raise ValueError(
                f"A dataset is never replaced in silence, but {target.folder} already holds "
                f"{manifest.data_id} ({manifest.source.get('kind')}) from other text or options. Use another "
                "--name, or --force."
            )
        if any(target.folder.glob("fineweb_*.bin")) and not is_unfinished(target.folder):
            raise ValueError(
                f"{target.folder} holds shards that this command did not write. Use another --name, or "
                "--force."
            )
    return None


def _is_jsonl(path: Path) -> bool:
    return path.name.lower().endswith(JSONL_SUFFIXES)


def _is_text(path: Path) -> bool:
    return _is_jsonl(path) or path.suffix.lower() in PLAIN_SUFFIXES


def _read_jsonl(path: Path) -> Iterator[str]:
    number = 0
    try:
        for number, raw in enumerate(_lines(path), 1):
            if raw.strip():
                yield _text_of(path, number, raw)
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise ValueError(
            f"A compressed file must be whole, but {path} breaks off or is damaged after line {number:,} "
            f"({error}). Fetch it again."
        ) from error


def _chunks(path: Path) -> Iterator[bytes]:
    """The file's decompressed bytes. Raises EOFError or the codec's error if it breaks off."""
    name = path.name.lower()
    if name.endswith(".zst"):
        yield from _zstd_chunks(path)
        return
    if name.endswith(".xz"):
        stream = lzma.open(path)
    elif name.endswith(".gz"):
        stream = gzip.open(path)
    else:
        stream = path.open("rb")
    with stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    """Frame after frame by hand: the library's stream reader ends a cut-off file without a word."""
    decompressor = None
    with path.open("rb") as file:
        while raw := file.read(_CHUNK_BYTES):
            while raw:
                decompressor = decompressor or zstandard.ZstdDecompressor().decompressobj()
                yield decompressor.decompress(raw)
                raw = decompressor.unused_data
                if decompressor.eof:
                    decompressor = None
    if decompressor is not None:
        raise EOFError("the last frame is not whole")


def _lines(path: Path) -> Iterator[bytes]:
    rest = b""
    for chunk in _chunks(path):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _text_of(path: Path, number: int, raw: bytes) -> str:
    try:
        line = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _undecodable(path, f"line {number:,}, byte {error.start} ({error.reason})") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"A .jsonl file has one JSON object a line, but {path} line {number:,} is none ({error}). Repair "
            "the line."
        ) from error
    text = line.get("text") if isinstance(line, dict) else None
    if not isinstance(text, str):
        facts = f"the keys {sorted(line)[:8]}" if isinstance(line, dict) else f"a {type(line).__name__}"
        raise ValueError(
            f'A .jsonl line is {{"text": "..."}}, but {path} line {number:,} has {facts}. Rename the field '
            "to text."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _undecodable(path, f"line {number:,}: a lone surrogate in the text") from error
    return text


def _undecodable(path: Path, facts: str) -> ValueError:
    return ValueError(
        f"Text must be UTF-8, but {path} is not: {facts}. Convert it, for example with `iconv -f latin1 -t "
        "utf-8`."
    )
