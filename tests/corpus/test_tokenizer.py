"""The published settings, determinism, and clear errors for wrong or impossible tokenizers."""

from pathlib import Path

import numpy as np
import pytest

from corpus.tokenizer import (
    ByteTokenizer,
    Tokenizer,
    byte260_bytes,
    encode_documents,
    load_tokenizer,
    train_bpe,
)
from tests.corpus.conftest import sentences


def test_two_trainings_give_the_same_file():
    texts = sentences(3, 100)
    assert train_bpe(texts, vocab_size=350) == train_bpe(texts, vocab_size=350)


def test_special_ids_and_byte_pieces_are_the_published_ones(tokenizer: Tokenizer):
    assert [tokenizer.id_to_piece(i) for i in range(5)] == ["<pad>", "<s>", "</s>", "<unk>", "<0x00>"]
    assert [tokenizer.is_byte(i) for i in (3, 4, 259, 260)] == [False, True, True, False]


def test_digits_are_split_and_there_is_no_dummy_prefix(tokenizer: Tokenizer):
    pieces = [tokenizer.id_to_piece(i) for i in tokenizer.encode("the 1234")]
    assert not pieces[0].startswith("\u2581")
    assert pieces[-4:] == ["1", "2", "3", "4"]


def test_long_documents_are_not_dropped_from_training():
    # The trainer's own limit of 4,192 bytes a line would leave it without any text here.
    long = " ".join(sentences(4, 100))
    assert len(long) > 10_000
    assert train_bpe([long], vocab_size=350)


@pytest.mark.parametrize(("texts", "size"), [([], 300), ([""], 300), (["a"], 300), (["ab cd ef"], 1024)])
def test_too_little_text_for_the_vocabulary(texts: list[str], size: int):
    with pytest.raises(ValueError, match="needs text with enough different words"):
        train_bpe(texts, vocab_size=size)


@pytest.mark.parametrize("size", [0, 260, 65537])
def test_impossible_sizes(size: int):
    with pytest.raises(ValueError, match="vocab_size must be over 260"):
        train_bpe(["the cat"], vocab_size=size)


def test_wrong_tokenizer_size(tokenizer_path: Path):
    with pytest.raises(ValueError, match=r"Wrong tokenizer size: .* 1024 pieces, but .* has 400"):
        load_tokenizer(tokenizer_path, vocab_size=1024)


@pytest.mark.parametrize(
    ("name", "raw"), [("t.model", b""), ("t.model", b"foreign"), ("t.json", b"{"), ("t.json", b"{}")]
)
def test_foreign_tokenizers(tmp_path: Path, name: str, raw: bytes):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match="tokenizer"):
        load_tokenizer(tmp_path / name, vocab_size=400)


def test_missing_tokenizer(tmp_path: Path):
    with pytest.raises(ValueError, match="is no file"):
        load_tokenizer(tmp_path / "absent.model", vocab_size=400)


def test_documents_are_bos_and_tokens_without_eos(tokenizer: Tokenizer):
    documents = encode_documents(tokenizer, ["the cat", ""])
    assert documents[0].dtype == np.uint16
    assert documents[0].tolist() == [1, *tokenizer.encode("the cat")]
    assert documents[1].tolist() == [1]


def test_byte260_round_trip(tmp_path: Path):
    path = tmp_path / "x_pure_byte_260.json"
    path.write_bytes(byte260_bytes())
    tokenizer = load_tokenizer(path, vocab_size=260)
    assert isinstance(tokenizer, ByteTokenizer)
    assert tokenizer.encode("é") == [0xC3 + 4, 0xA9 + 4]
    assert tokenizer.decode([1, *tokenizer.encode("日本 \u2581")]) == "日本 \u2581"
