"""SentencePiece BPE, published settings; ids pad 0, bos 1, eos 2, unk 3; or byte260, 4 specials + 256."""

import io
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import sentencepiece

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
BYTE260_VOCAB_SIZE = 260
SPACE = "\u2581"
MAX_PIECE_SIZE = 65536  # shards are uint16
FULL = 0.95  # of a vocabulary, beside specials and bytes: single characters that leave no room for merges
ROOM = 0.5  # what they get where they would take more
_ENCODE_BATCH = 1024  # documents whose id lists are alive at once
_MAX_LINE_BYTES = 1 << 20  # the trainer's own limit of 4,192 bytes would drop longer documents in silence

PUBLISHED_SETTINGS: dict[str, object] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "nmt_nfkc",
    "add_dummy_prefix": False,
    "character_coverage": 0.999,
    "hard_vocab_limit": False,
    "pad_id": PAD_ID,
    "bos_id": BOS_ID,
    "eos_id": EOS_ID,
    "unk_id": UNK_ID,
}


LOSSLESS_SETTINGS: dict[str, object] = {
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}


class Tokenizer(Protocol):
    """What the byte count and the encoder need; `SentencePieceProcessor` and `ByteTokenizer` both are one."""

    def vocab_size(self) -> int: ...
    def id_to_piece(self, id: int, /) -> str: ...
    def is_control(self, id: int, /) -> bool: ...
    def is_unknown(self, id: int, /) -> bool: ...
    def is_unused(self, id: int, /) -> bool: ...
    def is_byte(self, id: int, /) -> bool: ...
    def bos_id(self) -> int: ...
    def encode(self, input: Any, /) -> Any: ...
    def decode(self, input: Any, /) -> Any: ...


class ByteTokenizer:
    """UTF-8 bytes as ids 4..259, no normalisation: the `byte260` variant."""

    def vocab_size(self) -> int:
        return BYTE260_VOCAB_SIZE

    def id_to_piece(self, id: int, /) -> str:
        return ("<pad>", "<s>", "</s>", "<unk>")[id] if id < 4 else f"<0x{id - 4:02X}>"

    def is_control(self, id: int, /) -> bool:
        return id < UNK_ID

    def is_unknown(self, id: int, /) -> bool:
        return id == UNK_ID

    def is_unused(self, id: int, /) -> bool:
        return False

    def is_byte(self, id: int, /) -> bool:
        return id > UNK_ID

    def bos_id(self) -> int:
        return BOS_ID

    def encode(self, input: Any, /) -> Any:
        if isinstance(input, str):
            return [byte + 4 for byte in input.encode()]
        return [self.encode(text) for text in input]

    def decode(self, input: Any, /) -> Any:
        if len(input) and isinstance(input[0], (list, tuple)):
            return [self.decode(ids) for ids in input]
        return bytes(id - 4 for id in input if id > UNK_ID).decode(errors="replace")


def train_bpe(texts: Iterable[str], *, vocab_size: int, operators: Sequence[str] = ()) -> bytes:
    """The model file of a BPE vocabulary of exactly `vocab_size`, the same bytes for the same texts.

    `operators` are symbols of their own (corpus/caseops.py); with them the text is not normalised at all.

    One thread, because the number of threads is written into the model. Raises ValueError if the text is
    empty or too small for the vocabulary, or the size impossible.
    """
    if not 260 < vocab_size <= MAX_PIECE_SIZE:
        raise ValueError(
            f"vocab_size must be over 260 (4 specials and 256 bytes) and at most {MAX_PIECE_SIZE} (uint16 "
            f"shards), but got {vocab_size}. Use 1024, 4096 or 8192, or the variant byte260."
        )
    texts, more = fitted(list(texts), vocab_size, lossless=bool(operators))
    settings = PUBLISHED_SETTINGS | more
    settings |= LOSSLESS_SETTINGS | {"user_defined_symbols": [*operators]} if operators else {}
    model = io.BytesIO()
    try:
        cast(Any, sentencepiece.SentencePieceTrainer).train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            num_threads=1,
            max_sentence_length=_MAX_LINE_BYTES,
            minloglevel=2,
            **settings,
        )
    except RuntimeError as error:
        raise ValueError(
            f"A vocabulary of {vocab_size} needs text with enough different words, but training failed: "
            f"{str(error).strip()[:300]}. Give more text, or a smaller --vocab-size."
        ) from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    if processor.vocab_size() != vocab_size:
        raise ValueError(
            f"A vocabulary of {vocab_size} needs text with enough different words, but this text gave only "
            f"{processor.vocab_size()} pieces. Give more text, or a smaller --vocab-size, of as many at most."
        )
    return model.getvalue()


def fitted(
    texts: Sequence[str], vocab_size: int, *, lossless: bool
) -> tuple[Sequence[str], dict[str, object]]:
    """(the text that a vocabulary is trained on, what the published settings lack for it): all of it and {}
    for most. Of a script with more characters than a vocabulary has room for (FULL), the frequent ones become
    pieces, ROOM of it, and the text is cut at the others, which are bytes: the library takes no coverage
    below 0.98. The space is a piece, however rare."""

    def folded(text: str) -> str:
        plain = text if lossless else unicodedata.normalize("NFKC", text)
        return "".join(SPACE if c == " " or (not lossless and c.isspace()) else c for c in plain)

    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    by_normal = Counter[str]()
    for glyph, count in counts.items():
        for c in folded(glyph):
            by_normal[c] += count
    wanted = by_normal.most_common()
    total = by_normal.total()
    covered = 0
    most = 0
    for _, count in wanted:
        if covered >= cast("float", PUBLISHED_SETTINGS["character_coverage"]) * total:
            break
        covered += count
        most += 1
    pieces = vocab_size - BYTE260_VOCAB_SIZE
    fits = most <= FULL * pieces
    kept = {c for c, _ in wanted[: most if fits else max(1, int(ROOM * pieces))]}
    settings: dict[str, object] = {} if SPACE in kept or not total else {"required_chars": SPACE}
    if fits:
        return texts, settings
    rare = "".join(c for c in counts if not {*folded(c)} <= kept | {SPACE})
    cut = re.compile(f"[{re.escape(rare)}]+")
    return [part for text in texts for part in cut.split(text) if part], settings


def byte260_bytes() -> bytes:
    """The file of the `byte260` variant: it holds no data, only what the ids mean."""
    text = {"kind": "pure_byte", "vocab_size": BYTE260_VOCAB_SIZE, "byte_offset": 4}
    text |= {"pad_id": PAD_ID, "bos_id": BOS_ID, "eos_id": EOS_ID, "unk_id": UNK_ID}
    return (json.dumps(text, indent=1) + "\n").encode()


def tokenizer_file_name(name: str, vocab_size: int, *, caseops: bool = False) -> str:
    """As published: `fineweb_1024_bpe.model`; `fineweb_pure_byte_260.json` for the bytes."""
    if vocab_size == BYTE260_VOCAB_SIZE:
        return f"{name}_pure_byte_260.json"
    return f"{name}_{vocab_size}_{'caseops_' if caseops else ''}bpe.model"


def load_tokenizer(path: Path | str, *, vocab_size: int) -> Tokenizer:
    """The tokenizer of a `.model` (SentencePiece) or `.json` (byte260) file.

    Raises ValueError if the file is missing, foreign, of another size than `vocab_size`, or its BOS is not 1.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"A dataset needs its tokenizer, but {path} is no file. Give the path of the tokenizer that made "
            "the shards; `python -m corpus embedded`, `build` and `download` put it under tokenizers/."
        )
    raw = path.read_bytes()
    tokenizer = _parse_byte260(path, raw) if path.suffix == ".json" else _parse_sentencepiece(path, raw)
    if tokenizer.vocab_size() != vocab_size:
        raise ValueError(
            f"Wrong tokenizer size: the tokenizer must have vocab_size {vocab_size} pieces, but {path} has "
            f"{tokenizer.vocab_size()}. Use vocab_size {tokenizer.vocab_size()}, or the tokenizer of the "
            "shards."
        )
    if tokenizer.bos_id() != BOS_ID:
        raise ValueError(
            f"Documents begin with BOS = {BOS_ID}, but {path} has bos_id {tokenizer.bos_id()}. "
            "Use a tokenizer with the published special ids (pad 0, bos 1, eos 2, unk 3)."
        )
    return tokenizer


def _parse_sentencepiece(path: Path, raw: bytes) -> Tokenizer:
    try:
        if not raw:
            raise RuntimeError("the file is empty")
        return cast(Tokenizer, sentencepiece.SentencePieceProcessor(model_proto=raw))
    except RuntimeError as error:
        raise ValueError(
            f"A tokenizer is a SentencePiece model, but {path} cannot be read as one "
            f"({str(error).strip()[:200]}). Fetch or build it again."
        ) from error


def _parse_byte260(path: Path, raw: bytes) -> Tokenizer:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"A .json tokenizer is the byte260 file, but {path} is no JSON ({error}). Build it again."
        ) from error
    if content != json.loads(byte260_bytes()):
        raise ValueError(
            f"The only .json tokenizer known here is byte260, but {path} says {str(content)[:200]}. "
            "Use the .model file of a SentencePiece tokenizer."
        )
    return ByteTokenizer()


def encode_documents(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Each text as BOS(1) + its tokens, no EOS: arrays (N_i,) uint16."""
    documents: list[np.ndarray] = []
    for start in range(0, len(texts), _ENCODE_BATCH):
        for ids in tokenizer.encode(list(texts[start : start + _ENCODE_BATCH])):
            document = np.empty(len(ids) + 1, dtype=np.uint16)
            document[0] = BOS_ID
            document[1:] = ids
            documents.append(document)
    return documents


def write_tokenizer(path: Path | str, raw: bytes) -> None:
    """Write the tokenizer file atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(raw)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
