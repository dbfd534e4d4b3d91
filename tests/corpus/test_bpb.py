"""Bytes counted = bytes decoded, exactly; and each published way of counting them wrong is caught."""

import dataclasses
import random
from typing import Any

import numpy as np
import pytest

from corpus.bpb import (
    ByteLuts,
    byte_luts,
    count_bytes,
    usable_tokens,
    verify_bos,
    verify_bytes,
    verify_luts,
)
from corpus.tokenizer import ByteTokenizer, Tokenizer, encode_documents
from tests.corpus.conftest import sentences


def random_texts(seed: int, count: int) -> list[str]:
    """Unicode from everywhere: white space, combining marks, private use, U+2581, U+FFFD, emoji."""
    generator = random.Random(seed)
    special = ["\u2581", "\ufffd", "\u200b", "\u00a0", "\u3000", "\0", "\t", "\n", " ", "  "]
    special += ["🙂", "é", "e\u0301", "ﬁ"]

    def character() -> str:
        kind = generator.random()
        if kind < 0.4:
            return generator.choice(special)
        if kind < 0.7:
            return chr(generator.randrange(32, 127))
        point = generator.randrange(0x20, 0x110000)
        return "x" if 0xD800 <= point < 0xE000 else chr(point)

    return ["".join(character() for _ in range(generator.randrange(1, 60))) for _ in range(count)]


def concatenated(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    return np.concatenate(encode_documents(tokenizer, texts))


def slow_bytes(tokenizer: Tokenizer, prev: int, target: int) -> int:
    """The rule of the challenge, one token at a time."""

    def boundary(token: int) -> bool:
        return tokenizer.is_control(token) or tokenizer.is_unknown(token) or tokenizer.is_unused(token)

    if boundary(target):
        return 0
    if tokenizer.is_byte(target):
        return 1
    piece = tokenizer.id_to_piece(target)
    if piece[0] == "\u2581":
        return len(piece[1:].encode()) + (0 if boundary(prev) else 1)
    return len(piece.encode())


def test_count_bytes_is_the_rule(tokenizer: Tokenizer):
    luts = byte_luts(tokenizer)
    generator = np.random.default_rng(0)
    prev, target = generator.integers(0, 400, (2, 20, 100))
    slow = [
        [slow_bytes(tokenizer, int(p), int(t)) for p, t in zip(*rows, strict=True)]
        for rows in zip(prev, target, strict=True)
    ]
    assert count_bytes(luts, prev, target).tolist() == slow


def test_a_space_after_bos_is_free_and_bos_itself_has_no_bytes(tokenizer: Tokenizer):
    luts = byte_luts(tokenizer)
    the = next(i for i in range(400) if tokenizer.id_to_piece(i) == "\u2581the")
    assert count_bytes(luts, np.array([1, the, the]), np.array([the, the, 1])).tolist() == [3, 4, 0]


@pytest.mark.parametrize("seed", range(5))
def test_random_unicode_counts_its_decoded_bytes(tokenizer: Tokenizer, seed: int):
    texts = random_texts(seed, 100)
    luts = byte_luts(tokenizer)
    tokens = concatenated(tokenizer, texts)
    check = verify_bytes(tokenizer, luts, tokens)
    decoded = [tokenizer.decode(tokenizer.encode(text)) for text in texts]
    assert check.num_documents == 100
    assert check.num_bytes == sum(len(text.encode()) for text in decoded)
    assert check.num_bytes == int(count_bytes(luts, tokens[:-1], tokens[1:]).sum())


@pytest.mark.parametrize("seed", range(3))
def test_random_unicode_as_plain_bytes(seed: int):
    tokenizer = ByteTokenizer()
    texts = random_texts(seed, 50)
    check = verify_bytes(tokenizer, byte_luts(tokenizer), concatenated(tokenizer, texts))
    assert check.num_bytes == sum(len(text.encode()) for text in texts)


def test_random_token_sequences_that_decode_to_text_are_exact_too(tokenizer: Tokenizer):
    # Not what an encoder gives: several spaces at the start, lone U+2581 everywhere.
    spaces = [i for i in range(260, 400) if tokenizer.id_to_piece(i).startswith("\u2581")]
    generator = np.random.default_rng(1)
    documents = [
        np.array([1, *generator.choice(spaces, 5), *generator.integers(260, 400, 20)]) for _ in range(50)
    ]
    check = verify_bytes(tokenizer, byte_luts(tokenizer), np.concatenate(documents))
    assert check.num_documents == 50


def mutated(luts: ByteLuts, **changes: Any) -> ByteLuts:
    return dataclasses.replace(luts, **changes)


def test_leading_space_counted_twice_is_caught(tokenizer: Tokenizer):
    # Trap 9a: in the table and again at evaluation; published scores were 1.17 times too low.
    luts = byte_luts(tokenizer)
    wrong = mutated(luts, base_bytes=luts.base_bytes + luts.has_leading_space.astype(np.int16))
    with pytest.raises(ValueError, match="table entries differ"):
        verify_bytes(tokenizer, wrong, concatenated(tokenizer, sentences(1, 3)))


def test_leading_space_never_counted_is_caught(tokenizer: Tokenizer):
    luts = byte_luts(tokenizer)
    with pytest.raises(ValueError, match="table entries differ"):
        verify_luts(tokenizer, mutated(luts, has_leading_space=np.zeros_like(luts.has_leading_space)))


def test_byte_tokens_counted_as_three_are_caught(tokenizer: Tokenizer):
    # Trap 9b: a byte token decoded alone is U+FFFD, three bytes; caught although the text has no byte token.
    luts = byte_luts(tokenizer)
    naive = luts.base_bytes.copy()
    naive[4:260] = [len(tokenizer.decode([token]).encode()) for token in range(4, 260)]
    assert naive[4 + 0xE2] == 3
    with pytest.raises(ValueError, match=r"token 132 \('<0x80>'\) decodes to 1 bytes and counts 3"):
        verify_bytes(tokenizer, mutated(luts, base_bytes=naive), np.array([1, 300]))


def test_a_special_that_is_no_boundary_is_caught(tokenizer: Tokenizer):
    luts = byte_luts(tokenizer)
    boundary = luts.is_boundary.copy()
    boundary[1] = False
    with pytest.raises(ValueError, match=r"token 1 \('<s>'\)"):
        verify_luts(tokenizer, mutated(luts, is_boundary=boundary))


class Renamed:
    """A tokenizer one of whose pieces is called otherwise."""

    def __init__(self, inner: Tokenizer, old: str, new: str):
        self._inner, self._old, self._new = inner, old, new

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def id_to_piece(self, token: int) -> str:
        piece = self._inner.id_to_piece(token)
        return self._new if piece == self._old else piece


def test_a_tokenizer_without_the_lone_space_piece_is_caught(tokenizer: Tokenizer):
    # Trap 9c: each such space is spelt by three byte tokens; bytes were about 20 % too many.
    broken: Any = Renamed(tokenizer, "\u2581", "Q")
    with pytest.raises(ValueError, match=r"lacks it: a space would be three"):
        verify_luts(broken, byte_luts(broken))


def test_a_space_spelt_by_byte_tokens_is_caught(tokenizer: Tokenizer):
    tokens = np.array([1, *tokenizer.encode("the"), 4 + 0xE2, 4 + 0x96, 4 + 0x81, *tokenizer.encode("cat")])
    with pytest.raises(ValueError, match="three byte tokens where one space"):
        verify_bytes(tokenizer, byte_luts(tokenizer), tokens)


def test_a_piece_with_an_inner_space_is_caught(tokenizer: Tokenizer):
    old = next(p for p in map(tokenizer.id_to_piece, range(260, 400)) if len(p) == 3 and p[0] == "\u2581")
    broken: Any = Renamed(tokenizer, old, f"\u2581{old[1]}\u2581{old[2]}")
    with pytest.raises(ValueError, match="table entries differ"):
        verify_luts(broken, byte_luts(broken))


def test_tables_of_another_tokenizer_are_caught(tokenizer: Tokenizer):
    with pytest.raises(ValueError, match="400 entries"):
        verify_luts(tokenizer, byte_luts(ByteTokenizer()))


@pytest.mark.parametrize("tail", [[4 + 0xE2, 4 + 0x96], [4 + 0xC3]])
def test_broken_characters_are_caught(tokenizer: Tokenizer, tail: list[int]):
    with pytest.raises(ValueError, match="whole UTF-8 characters"):
        verify_bytes(tokenizer, byte_luts(tokenizer), np.array([1, 300, *tail]))


def test_unknown_tokens_are_caught(tokenizer: Tokenizer):
    with pytest.raises(ValueError, match="must equal the tables' sum"):
        verify_bytes(tokenizer, byte_luts(tokenizer), np.array([1, 300, 3]))


def test_a_replacement_character_spelt_whole_is_text(tokenizer: Tokenizer):
    tokens = np.array([1, 300, 4 + 0xEF, 4 + 0xBF, 4 + 0xBD])
    assert verify_bytes(tokenizer, byte_luts(tokenizer), tokens).complete


def test_a_partial_check_says_so_and_cuts_no_character(tokenizer: Tokenizer):
    luts = byte_luts(tokenizer)
    tokens = concatenated(tokenizer, ["日本語 🙂 " * 40 + "the end"] * 3)
    for limit in range(20, 200, 7):
        check = verify_bytes(tokenizer, luts, tokens, max_tokens=limit)
        assert not check.complete
        assert check.num_documents == 1
        assert check.num_tokens <= limit
    assert verify_bytes(tokenizer, luts, tokens, max_tokens=tokens.size).complete


def test_bos_missing_is_caught():
    # Trap 26.
    assert verify_bos(np.array([1, 5, 1, 6])) == 2
    for tokens in (np.array([5, 1, 6]), np.array([5, 6]), np.array([], dtype=int)):
        with pytest.raises(ValueError, match="BOS missing"):
            verify_bos(tokens)


def test_another_number_of_documents_is_caught():
    # Trap 8: 10,000 documents where 50,000 were meant.
    with pytest.raises(ValueError, match="must hold 3 documents, but it has 2 BOS"):
        verify_bos(np.array([1, 5, 1, 6]), num_documents=3)


def test_tokens_scored_depend_on_the_sequence_length():
    # Trap 28: the trim changes the token set, so it is logged.
    assert [usable_tokens(1001, seq_len=s) for s in (1, 10, 256, 1000)] == [1000, 1000, 768, 1000]
    with pytest.raises(ValueError, match="at least one window of seq_len"):
        usable_tokens(1000, seq_len=1000)


def test_shapes_must_agree(tokenizer: Tokenizer):
    with pytest.raises(ValueError, match="one previous token"):
        count_bytes(byte_luts(tokenizer), np.array([1, 2]), np.array([1]))
