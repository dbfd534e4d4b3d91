"""BPB = (sum nll / ln 2) / sum bytes; bytes(y after p) = base[y] + (lead[y] and not boundary[p])."""

from dataclasses import dataclass

import numpy as np

from corpus.tokenizer import BOS_ID, SPACE, Tokenizer

CHECK_TOKENS = 100_000  # the load-time check decodes this much and takes well under a second
AT_ONCE = 1 << 20  # tokens: as indices all of them would take four times the room of their bytes


@dataclass(frozen=True)
class ByteLuts:
    """Bytes by token id, all of shape (V,)."""

    base_bytes: np.ndarray  # int16: UTF-8 bytes without one leading U+2581; 1 for a byte; 0 for specials
    has_leading_space: np.ndarray  # bool: the piece began with U+2581, one byte more unless after a boundary
    is_boundary: np.ndarray  # bool: control, unknown or unused: a leading space right after it is free


@dataclass(frozen=True)
class ByteCheck:
    """What `verify_bytes` decoded and found equal."""

    num_documents: int
    num_tokens: int  # BOS included
    num_bytes: int
    complete: bool  # False: only the first documents were checked


def byte_luts(tokenizer: Tokenizer) -> ByteLuts:
    """The look-up tables (V,) of the tokenizer, exactly the challenge's rule."""
    size = tokenizer.vocab_size()
    base_bytes = np.zeros(size, dtype=np.int16)
    has_leading_space = np.zeros(size, dtype=bool)
    is_boundary = np.ones(size, dtype=bool)
    for token in range(size):
        if tokenizer.is_control(token) or tokenizer.is_unknown(token) or tokenizer.is_unused(token):
            continue
        is_boundary[token] = False
        if tokenizer.is_byte(token):
            base_bytes[token] = 1  # its name "<0xE2>" has six characters, its decoding alone three bytes
            continue
        piece = tokenizer.id_to_piece(token)
        has_leading_space[token] = piece.startswith(SPACE)
        base_bytes[token] = len(piece.removeprefix(SPACE).encode())
    return ByteLuts(base_bytes, has_leading_space, is_boundary)


def count_bytes(luts: ByteLuts, prev_tokens: np.ndarray, target_tokens: np.ndarray) -> np.ndarray:
    """Bytes (uint16, same shape) of each target token after its previous token."""
    prev_tokens, target_tokens = np.asarray(prev_tokens), np.asarray(target_tokens)
    if prev_tokens.shape != target_tokens.shape:
        raise ValueError(
            f"Each target has one previous token, but got shapes {prev_tokens.shape} and "
            f"{target_tokens.shape}. Pass tokens[:-1] and tokens[1:]."
        )
    out = np.empty(target_tokens.shape, np.uint16)
    for i in range(0, len(out), AT_ONCE):
        part = slice(i, i + AT_ONCE)
        space = luts.has_leading_space[target_tokens[part]] & ~luts.is_boundary[prev_tokens[part]]
        out[part] = luts.base_bytes[target_tokens[part]] + space
    return out


def usable_tokens(num_tokens: int, *, seq_len: int) -> int:
    """Tokens scored at this evaluation length, floor((N - 1) / S) * S; the input needs one more.

    It depends on `seq_len`, so log it with each score. Raises ValueError if not one window fits.
    """
    usable = (num_tokens - 1) // seq_len * seq_len
    if usable <= 0:
        raise ValueError(
            f"Validation needs at least one window of seq_len + 1 = {seq_len + 1} tokens, but there are "
            f"{num_tokens}. Use a shorter seq_len or a larger corpus."
        )
    return usable


def verify_bos(tokens: np.ndarray, *, num_documents: int | None = None) -> int:
    """The number of documents in (N,): the first token must be BOS, the number `num_documents` if given.

    Raises ValueError otherwise: document-wise methods need BOS, and a wrong number tells of another split.
    """
    found = int(np.count_nonzero(np.asarray(tokens) == BOS_ID))
    if tokens.size == 0 or int(tokens[0]) != BOS_ID:
        first = int(tokens[0]) if tokens.size else None
        raise ValueError(
            f"BOS missing: every document begins with BOS = {BOS_ID}, so a split does too, but the first "
            f"token is {first} and {found} of {tokens.size:,} are BOS. Export the shards again with BOS "
            "before each document."
        )
    if num_documents is not None and found != num_documents:
        raise ValueError(
            f"The split must hold {num_documents:,} documents, but it has {found:,} BOS. "
            "It is another split or incomplete: build or fetch it again."
        )
    return found


def verify_luts(tokenizer: Tokenizer, luts: ByteLuts) -> None:
    """Every table entry against the tokenizer's own decoding of that one token after plain text.

    Raises ValueError if a leading space is counted twice or never, a byte token is not 1, a special is not 0,
    a piece has U+2581 inside, or the tokenizer has text pieces but no lone U+2581 (a space would then cost
    three bytes).
    """
    size = tokenizer.vocab_size()
    if not (luts.base_bytes.shape == luts.has_leading_space.shape == luts.is_boundary.shape == (size,)):
        raise ValueError(
            f"Byte tables have vocab_size {size} entries, but got {luts.base_bytes.shape}. Rebuild them."
        )
    special = np.array(
        [tokenizer.is_control(t) or tokenizer.is_unknown(t) or tokenizer.is_unused(t) for t in range(size)]
    )
    is_byte = np.array([tokenizer.is_byte(t) for t in range(size)])
    text = np.flatnonzero(~special & ~is_byte)
    if text.size and SPACE not in {tokenizer.id_to_piece(int(t)) for t in text}:
        raise ValueError(
            "A tokenizer with text pieces needs the lone piece U+2581, but this one lacks it: a space would "
            "be three byte tokens and the bytes counted about 20 % too many. Train the tokenizer again."
        )
    expected = np.where(is_byte, 1, 0)
    anchor = _anchor(tokenizer)
    for token in text:
        expected[token] = len(tokenizer.decode([*anchor, int(token)]).encode()) - len(anchor)
    counted = luts.base_bytes.astype(np.int64) + luts.has_leading_space
    wrong = np.flatnonzero((counted != expected) | (luts.is_boundary != special))
    if wrong.size:
        token = int(wrong[0])
        raise ValueError(
            f"A token counts the bytes of its decoded text, but {wrong.size} of {size} table entries differ: "
            f"token {token} ({tokenizer.id_to_piece(token)!r}) decodes to {int(expected[token])} bytes and "
            f"counts {int(counted[token])} (boundary {bool(luts.is_boundary[token])}). Build the tables with "
            "corpus.bpb.byte_luts."
        )


def verify_bytes(
    tokenizer: Tokenizer, luts: ByteLuts, tokens: np.ndarray, *, max_tokens: int | None = None
) -> ByteCheck:
    """Decoded bytes of each document in (N,), or in its first `max_tokens`, must equal the tables' sum.

    The decoder drops spaces at a document's start, so each document is decoded after one plain letter, and
    then the one leading space that is free after BOS is taken off: equality is exact, for any document, not
    within a tolerance. Raises ValueError on the first document that differs, that is not text (broken UTF-8),
    or that holds U+2581 itself (a space through byte tokens).
    """
    verify_luts(tokenizer, luts)
    verify_bos(tokens)
    complete = max_tokens is None or tokens.size <= max_tokens
    tokens = np.asarray(tokens if complete else tokens[:max_tokens])
    starts = np.flatnonzero(tokens == BOS_ID)
    ends = np.append(starts[1:], tokens.size)
    if not complete and starts.size > 1:  # the last document is cut anywhere, perhaps within a character
        starts, ends = starts[:-1], ends[:-1]
    elif not complete:
        ends[-1] = _last_word_start(luts, tokens)
    counted = np.zeros(tokens.size, dtype=np.int64)
    counted[1:] = count_bytes(luts, tokens[:-1], tokens[1:])
    anchor = _anchor(tokenizer)
    pieces = [[*anchor, *tokens[a + 1 : b].tolist()] for a, b in zip(starts, ends, strict=True)]
    total = 0
    for index, text in enumerate(tokenizer.decode(pieces) if pieces else []):
        body = tokens[starts[index] + 1 : ends[index]]
        free = int(body.size > 0 and bool(luts.has_leading_space[body[0]]))
        decoded = len(text.encode()) - len(anchor) - free
        lut_bytes = int(counted[starts[index] + 1 : ends[index]].sum())
        if "\ufffd" in text and _is_broken(tokenizer, body):
            raise ValueError(
                f"A document's byte tokens must be whole UTF-8 characters, but document {index} decodes to "
                "U+FFFD. The shards were cut or made with another tokenizer: build them again."
            )
        if SPACE in text and luts.has_leading_space.any():
            raise ValueError(
                f"Spaces are pieces with U+2581, but document {index} holds U+2581 as three byte tokens "
                "where one space was meant. Encode the text again with a tokenizer that has the lone piece "
                "U+2581."
            )
        if decoded != lut_bytes:
            raise ValueError(
                f"The bytes of the decoded text must equal the tables' sum, but document {index} has "
                f"{decoded} bytes and {lut_bytes} were counted. Build the tables with byte_luts of the "
                "tokenizer that made the shards."
            )
        total += decoded
    checked = int(ends[-1]) if starts.size else 0
    return ByteCheck(int(starts.size), checked, total, complete)


def _anchor(tokenizer: Tokenizer) -> list[int]:
    """One token that decodes to one ASCII letter, to put before a document: a piece, or its byte where a
    vocabulary of another script has no ASCII piece; none if all are bytes."""
    size = tokenizer.vocab_size()
    texts = [t for t in range(size) if len(tokenizer.id_to_piece(t)) == 1]
    letters = [t for t in texts if tokenizer.id_to_piece(t).isascii()]
    letters += [t for t in range(size) if texts and tokenizer.is_byte(t) and tokenizer.decode([t]) == "a"]
    return next(([t] for t in letters if len(tokenizer.decode([t])) == 1), [])


def _last_word_start(luts: ByteLuts, tokens: np.ndarray) -> int:
    """Where the last word begins: a cut there never splits a character."""
    words = np.flatnonzero(luts.has_leading_space[tokens])
    return int(words[-1]) if words.size else 1


def _is_broken(tokenizer: Tokenizer, body: np.ndarray) -> bool:
    """True unless each U+FFFD of the decoding is spelt by tokens (EF BF BD, or a piece of its own)."""
    spelt = bytearray()
    for token in body.tolist():
        piece = tokenizer.id_to_piece(token)
        spelt += bytes([int(piece[3:5], 16)]) if tokenizer.is_byte(token) else piece.encode()
    try:
        spelt.decode()
    except UnicodeDecodeError:
        return True
    return False
