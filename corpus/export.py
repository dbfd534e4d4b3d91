"""Documents to a dataset folder: tokenizer, BOS + tokens, byte check, shards, manifest last."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from corpus import caseops
from corpus.bpb import byte_luts, count_bytes, verify_bytes
from corpus.manifest import (
    Manifest,
    ShardEntry,
    SplitEntry,
    manifest_path,
    mark_finished,
    mark_unfinished,
    sha256_file,
    write_manifest,
)
from corpus.shards import SHARD_TOKENS, shard_name, sidecar_name, write_shard
from corpus.text.documents import Split, check_disjoint
from corpus.tokenizer import (
    BYTE260_VOCAB_SIZE,
    Tokenizer,
    byte260_bytes,
    encode_documents,
    load_tokenizer,
    tokenizer_file_name,
    train_bpe,
    write_tokenizer,
)

TOKENIZER_TEXT_BYTES = 16_000_000  # more text changes few merges and costs time and memory
MIN_TRAIN_TOKENS = 2  # one prediction; what a run needs beyond it depends on its sequence length


@dataclass(frozen=True)
class Target:
    """Where a dataset goes and what it is called."""

    root: Path  # holds datasets/ and tokenizers/
    name: str  # "embedded", "books"
    vocab_size: int = 1024  # 260 = byte260
    shard_tokens: int = field(default=SHARD_TOKENS)
    caseops: bool = False  # lower case and operators, with byte sidecars (corpus/caseops.py)

    @property
    def variant(self) -> str:
        if self.vocab_size == BYTE260_VOCAB_SIZE:
            return "byte260"
        return f"sp{self.vocab_size}{'_caseops' if self.caseops else ''}"

    @property
    def folder(self) -> Path:
        return self.root / "datasets" / f"{self.name}_{self.variant}"

    @property
    def tokenizer_path(self) -> Path:
        return (
            self.root / "tokenizers" / tokenizer_file_name(self.name, self.vocab_size, caseops=self.caseops)
        )


def vocab_size_of(variant: str) -> int:
    """`sp1024` → 1024, `byte260` → 260. Raises ValueError on anything else."""
    if variant == "byte260":
        return BYTE260_VOCAB_SIZE
    if variant.startswith("sp") and variant[2:].isdecimal():
        return int(variant[2:])
    raise ValueError(
        f"A variant is sp<vocabulary size> or byte260, but got {variant!r}. Use sp1024, for example."
    )


def export_dataset(target: Target, split: Split, *, source: dict[str, Any]) -> Manifest:
    """Train the tokenizer on training text, encode, check, write all; the caller holds the lock.

    An old manifest goes first and the new one comes last, so that a build cut off anywhere is seen as
    unfinished. Raises ValueError if the splits share a document (as text or as tokens), one is empty, or the
    bytes differ.
    """
    _check_not_empty(split)
    check_disjoint(split)
    if target.caseops:
        if target.variant == "byte260":
            raise ValueError(
                "CaseOps needs operators in the vocabulary, but byte260 has bytes only. Use sp1024."
            )
        source = {**source, "transform": "caseops"}  # `open_dataset` then demands the sidecars
    raw = byte260_bytes() if target.variant == "byte260" else _train(split, target)
    target.folder.mkdir(parents=True, exist_ok=True)
    mark_unfinished(target.folder)
    clear_folder(target.folder)
    write_tokenizer(target.tokenizer_path, raw)
    tokenizer = load_tokenizer(target.tokenizer_path, vocab_size=target.vocab_size)
    val = _encode(target, tokenizer, split.val)
    train = _without(_encode(target, tokenizer, split.train), val)
    entries = {
        "val": _write_split(target, "val", val, tokenizer),
        "train": _write_split(target, "train", train, tokenizer),
    }
    manifest = Manifest(
        name=target.folder.name,
        vocab_size=target.vocab_size,
        tokenizer=target.tokenizer_path.relative_to(target.root).as_posix(),
        tokenizer_sha256=sha256_file(target.tokenizer_path),
        splits=entries,
        source=source,
    )
    write_manifest(target.folder, manifest)
    mark_finished(target.folder)
    return manifest


def clear_folder(folder: Path) -> None:
    """Take the manifest away, then the shards of a former or unfinished build; nothing else in the folder."""
    manifest_path(folder).unlink(missing_ok=True)
    for path in (*folder.glob("fineweb_*.bin"), *folder.glob(".*.tmp")):
        path.unlink()


def _check_not_empty(split: Split) -> None:
    if not split.val or not split.train:
        raise ValueError(
            f"Both splits need a document, but there are {len(split.val)} for validation and "
            f"{len(split.train)} for training. Give more text, shorter documents (--max-doc-bytes), or "
            "another --val-docs / --val-frac."
        )


def _encode(target: Target, tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    if not target.caseops:
        return encode_documents(tokenizer, texts)
    documents = encode_documents(tokenizer, [caseops.encode(text) for text in texts])
    caseops.verify_round_trip(tokenizer, documents, texts)
    return documents


def _train(split: Split, target: Target) -> bytes:
    """On the first TOKENIZER_TEXT_BYTES of training: validation text never shapes the vocabulary."""
    texts: list[str] = []
    left = TOKENIZER_TEXT_BYTES
    for text in split.train:
        # In lines: pieces never cross white space, and the trainer drops over-long lines in silence.
        texts += (caseops.encode(text) if target.caseops else text).split("\n")
        left -= len(text)
        if left <= 0:
            break
    operators = caseops.OPERATORS if target.caseops else ()
    return train_bpe(texts, vocab_size=target.vocab_size, operators=operators)


def _without(train: list[np.ndarray], val: list[np.ndarray]) -> list[np.ndarray]:
    """Training documents that are no validation document in tokens: normalisation can equal two texts."""
    known = {document.tobytes() for document in val}
    return [document for document in train if document.tobytes() not in known]


def _write_split(
    target: Target, split: str, documents: Sequence[np.ndarray], tokenizer: Tokenizer
) -> SplitEntry:
    documents = [document for document in documents if document.size > 1]  # else normalised to nothing
    tokens = np.concatenate(documents) if documents else np.zeros(0, dtype=np.uint16)
    if tokens.size < MIN_TRAIN_TOKENS:
        raise ValueError(
            f"The {split} split needs text that the tokenizer keeps, but it has {tokens.size} tokens. Give "
            "more text."
        )
    if target.caseops:
        counted = caseops.token_bytes(tokenizer, tokens)
        num_bytes = caseops.verify_documents(tokenizer, tokens, counted).num_bytes
    else:
        luts, counted = byte_luts(tokenizer), None
        verify_bytes(tokenizer, luts, tokens)
        num_bytes = int(count_bytes(luts, tokens[:-1], tokens[1:]).sum())
    shards: list[ShardEntry] = []
    for index, start in enumerate(range(0, tokens.size, target.shard_tokens)):
        part = tokens[start : start + target.shard_tokens]
        path = target.folder / shard_name(split, index)
        write_shard(path, part)
        if counted is not None and split == "val":
            write_shard(target.folder / sidecar_name(index), counted[start : start + target.shard_tokens])
        shards.append(ShardEntry(path.name, int(part.size), sha256_file(path)))
    return SplitEntry(len(documents), num_bytes, shards)
