"""Documents: cut, unique, in a frozen order whose first part is validation; the splits share none."""

import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from corpus.tokenizer import BOS_ID

MAX_DOCUMENT_BYTES = 8192
_HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd
BLOCK_TOKENS = 1 << 15  # hashed at once
Item = TypeVar("Item")
_SPACES = re.compile(r"\s+")
_BLANK_LINES = re.compile(r"\n[ \t\r\f\v]*\n\s*")


@dataclass(frozen=True)
class Split:
    """Texts of the two splits, in their frozen order."""

    val: list[str]
    train: list[str]


def text_hash(text: str) -> bytes:
    """SHA-256 of the document with its white space made single, as the tokenizer makes it."""
    return hashlib.sha256(_SPACES.sub(" ", text).strip().encode()).digest()


def unique_documents(texts: Iterable[str]) -> list[str]:
    """The texts without the blank ones and without those whose `text_hash` came before."""
    seen: dict[bytes, str] = {}
    for text in texts:
        if text and not text.isspace():
            seen.setdefault(text_hash(text), text)
    return list(seen.values())


def paragraphs(text: str) -> list[str]:
    """The text cut at blank lines, without empty pieces."""
    return [part for part in _BLANK_LINES.split(text.replace("\r\n", "\n")) if part and not part.isspace()]


def cut_documents(parts: Iterable[str], *, max_bytes: int = MAX_DOCUMENT_BYTES) -> list[str]:
    """Paragraphs joined into documents of at most `max_bytes` of UTF-8; longer ones are cut at spaces."""
    documents: list[str] = []
    held: list[str] = []
    held_bytes = 0
    for part in (piece for whole in parts for piece in _cut_long(whole, max_bytes)):
        size = len(part.encode())
        if held and held_bytes + 2 + size > max_bytes:
            documents.append("\n\n".join(held))
            held, held_bytes = [], 0
        held_bytes += size + (2 if held else 0)
        held.append(part)
    return [*documents, "\n\n".join(held)] if held else documents


def _cut_long(text: str, max_bytes: int) -> Iterable[str]:
    """Pieces of at most `max_bytes`, cut at the last white space that fits, else between two characters."""
    raw = text.encode()
    while len(raw) > max_bytes:
        end = max(raw.rfind(b" ", 1, max_bytes + 1), raw.rfind(b"\n", 1, max_bytes + 1))
        if end <= 0:
            end = max_bytes
            while raw[end] & 0xC0 == 0x80:
                end -= 1
        yield raw[:end].decode()
        raw = raw[end:].lstrip(b" \n")
    if raw:
        yield raw.decode()


def shuffled(items: Sequence[Item], *, seed: int) -> list[Item]:
    """The frozen order: it depends on the seed and on the given order, nothing else."""
    order = list(items)
    random.Random(seed).shuffle(order)
    return order


def check_disjoint(split: Split) -> None:
    """Raises ValueError if a validation document is also a training one, by the hash of its whole text."""
    train = {text_hash(text) for text in split.train}
    shared = [text for text in split.val if text_hash(text) in train]
    if shared:
        raise ValueError(
            f"Train and validation must share no document, but {len(shared)} of {len(split.val)} validation "
            f"documents are also in training (one begins {shared[0][:60]!r}). De-duplicate the documents "
            "before they are split."
        )


def document_hashes(tokens: np.ndarray, *, whole: bool) -> np.ndarray:
    """A 64-bit hash (D,) of each complete document in (N,) uint16, from BOS to the token before the next.

    Tokens before the first BOS belong to a document cut off and are left out; so is the last document unless
    `whole` says that the array ends where a document ends.
    """
    tokens = np.asarray(tokens)
    starts = np.flatnonzero(tokens == BOS_ID)
    if starts.size == 0:
        return np.zeros(0, dtype=np.uint64)
    lengths = np.diff(np.concatenate([starts, [tokens.size]]))
    # Some documents at a time: their words stay in the processor's cache.
    cuts = np.flatnonzero(np.diff(starts // BLOCK_TOKENS)) + 1
    parts = zip(np.split(starts, cuts), np.split(lengths, cuts), strict=True)
    hashes = np.concatenate([_hashes(tokens, *part) for part in parts])
    return hashes if whole else hashes[:-1]


def _hashes(tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """A sum of well-mixed (token, place) words of each of the neighbours that begin at `starts` (D,): order
    counts."""
    first = starts - starts[0]
    body = tokens[starts[0] : starts[-1] + lengths[-1]].astype(np.uint64)
    place = np.arange(body.size, dtype=np.uint64) - np.repeat(first.astype(np.uint64), lengths)
    mixed = _mix(body + (place << np.uint64(16)))
    return np.add.reduceat(mixed, first) ^ _mix(lengths.astype(np.uint64))


def _mix(words: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser on uint64, wrapping."""
    words = (words + np.uint64(1)) * _HASH_MULTIPLIER
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
