"""CaseOps: text to lower case and back, exactly; operators say where capitals were and count no bytes.

Each maximal run of ASCII letters becomes: all lower: itself · two or more, all upper: ALLCAPS + lower · first
upper, the rest lower: TITLE + lower · else TITLE before a first upper letter, CAPNEXT before each later one.
Operators are U+E001 TITLE, U+E002 ALLCAPS, U+E003 CAPNEXT, U+E004 ESC. An operator that stands in the text is
written ESC + itself; U+2581, which SentencePiece would read as a space, is written ESC + "_". Nothing else
changes, so decode(encode(s)) == s for every string that UTF-8 can hold.

The tokenizer has the four operators as symbols of their own and does not normalise: tokens give the text back
byte for byte. A token counts the UTF-8 bytes that its part of the *original* text has: operators and BOS 0,
the character behind an ESC its own three bytes. Validation's counts lie beside its shards as
`fineweb_val_bytes_%06d.bin`: the shard format, value i belonging to token i (docs/caseops.md).
Source: PR #1729.
"""

import re
from collections.abc import Sequence

import numpy as np

from corpus.bpb import ByteCheck, verify_bos
from corpus.tokenizer import BOS_ID, SPACE, Tokenizer

TITLE, ALLCAPS, CAPNEXT, ESC = OPERATORS = "\ue001\ue002\ue003\ue004"
SPACE_MARK = "_"  # what stands for U+2581 behind an ESC
ESCAPED_BYTES = 3  # UTF-8 bytes of an operator, and of U+2581
_TO_MARK = re.compile(f"[A-Za-z]+|[{OPERATORS}{SPACE}]")
_MARKED = re.compile(f"{ESC}([{OPERATORS}{SPACE_MARK}])|{ALLCAPS}([a-z]+)|[{TITLE}{CAPNEXT}]([a-z])")


def encode(text: str) -> str:
    """The transformed text."""
    return _TO_MARK.sub(_mark, text)


def decode(text: str) -> str:
    """The original of a transformed text. ValueError if `text` is the transform of none."""
    original = _MARKED.sub(_unmark, text)
    if encode(original) != text:
        raise ValueError(
            "A CaseOps text has operators before lower-case letters only and no other capitals, but got one "
            f"that encode() never writes: {text[:60]!r}. The data were made with another transform."
        )
    return original


def _mark(match: re.Match[str]) -> str:
    run = match[0]
    if run in OPERATORS:
        return ESC + run
    if run == SPACE:
        return ESC + SPACE_MARK
    lower = run.lower()
    if run == lower:
        return run
    if len(run) > 1 and run.isupper():
        return ALLCAPS + lower
    first = TITLE + lower[0] if run[0].isupper() else run[0]
    return first + "".join(CAPNEXT + c.lower() if c.isupper() else c for c in run[1:])


def _unmark(match: re.Match[str]) -> str:
    if match[1]:
        return SPACE if match[1] == SPACE_MARK else match[1]
    return (match[2] or match[3]).upper()


def is_caseops(tokenizer: Tokenizer) -> bool:
    """Whether every operator is one token of it."""
    pieces = {tokenizer.id_to_piece(token) for token in range(tokenizer.vocab_size())}
    return set(OPERATORS) <= pieces


def token_bytes(tokenizer: Tokenizer, tokens: np.ndarray) -> np.ndarray:
    """Bytes of the original text that each token of (N,) stands for, uint16 (N,).

    Raises ValueError if what follows an ESC is nothing that is escaped: another transform made the tokens.
    """
    pieces = [tokenizer.id_to_piece(token) for token in range(tokenizer.vocab_size())]
    table = np.array([_piece_bytes(tokenizer, token) for token in range(len(pieces))], dtype=np.uint16)
    tokens = np.asarray(tokens)
    counted = table[tokens]
    escape, begun = pieces.index(ESC), -1  # begun: the last ESC that is not itself escaped
    for at in np.flatnonzero(tokens == escape).tolist():
        if at == begun + 1 and begun >= 0:
            continue
        begun = at
        if at + 1 == tokens.size:
            break
        piece = pieces[int(tokens[at + 1])]
        if piece in OPERATORS:
            counted[at + 1] = ESCAPED_BYTES
        elif piece.startswith(SPACE_MARK):
            counted[at + 1] += ESCAPED_BYTES - len(SPACE_MARK)
        else:
            raise ValueError(
                f"A CaseOps ESC stands before an operator or {SPACE_MARK!r}, but token {at:,} stands before "
                f"{piece!r}. The shards were made with another transform: build them again."
            )
    return counted


def _piece_bytes(tokenizer: Tokenizer, token: int) -> int:
    """Of a token that no ESC precedes."""
    if tokenizer.is_control(token) or tokenizer.is_unknown(token) or tokenizer.is_unused(token):
        return 0
    piece = tokenizer.id_to_piece(token)
    if tokenizer.is_byte(token):
        return 1
    return 0 if piece in OPERATORS else len(piece.replace(SPACE, " ").encode())


def decode_documents(tokenizer: Tokenizer, tokens: np.ndarray) -> list[str]:
    """The original texts of the documents in (N,); the first token must be BOS."""
    starts = np.flatnonzero(tokens == BOS_ID)
    pieces = np.split(tokens, starts[1:])
    letter = next(t for t in range(tokenizer.vocab_size()) if tokenizer.id_to_piece(t) == "a")
    texts = tokenizer.decode([[letter, *piece[1:].tolist()] for piece in pieces])  # it drops leading spaces
    return [decode(text[1:]) for text in texts]


def verify_documents(
    tokenizer: Tokenizer, tokens: np.ndarray, counted: np.ndarray, *, max_tokens: int | None = None
) -> ByteCheck:
    """Each document's counts must sum to the bytes of its original text; equality is exact.

    Looks at the documents of (N,) that end within the first `max_tokens`. Raises ValueError on the first that
    differs, or that no original text has.
    """
    verify_bos(tokens)
    ends = np.append(np.flatnonzero(tokens == BOS_ID)[1:], tokens.size)
    if max_tokens is not None:
        ends = ends[: max(1, int((ends <= max_tokens).sum()))]
    last = int(ends[-1])
    texts = decode_documents(tokenizer, np.asarray(tokens[:last]))
    sums = np.add.reduceat(np.asarray(counted[:last], dtype=np.int64), [0, *ends[:-1].tolist()])
    for index, (text, total) in enumerate(zip(texts, sums.tolist(), strict=True)):
        if len(text.encode()) != total:
            raise ValueError(
                f"A document's byte counts must sum to the bytes of its original text, but document {index} "
                f"has {len(text.encode())} bytes and {total} are counted. Build the dataset again."
            )
    return ByteCheck(len(texts), last, int(sums.sum()), last == tokens.size)


def verify_round_trip(tokenizer: Tokenizer, documents: Sequence[np.ndarray], texts: Sequence[str]) -> None:
    """ValueError unless the tokens of each document give its text back, byte for byte."""
    for index, text in enumerate(decode_documents(tokenizer, np.concatenate(documents))):
        if text != texts[index]:
            raise ValueError(
                f"CaseOps tokens must give the text back exactly, but document {index} came back changed: "
                f"{text[:60]!r} for {texts[index][:60]!r}. Report it with the text."
            )
