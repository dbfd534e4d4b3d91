"""Cutting loses nothing and splits no character; the order is frozen; the splits share no document."""

import random

import numpy as np
import pytest

from corpus.text.documents import (
    Split,
    check_disjoint,
    cut_documents,
    document_hashes,
    paragraphs,
    shuffled,
    text_hash,
    unique_documents,
)


def test_paragraphs_are_cut_at_blank_lines():
    assert paragraphs("a\nb\n \t\n\n  c\r\n\r\nd\n\n") == ["a\nb", "c", "d"]


@pytest.mark.parametrize("seed", range(20))
def test_cut_documents_keep_every_character_and_the_limit(seed: int):
    generator = random.Random(seed)
    parts = ["".join(generator.choices("ab é日🙂 ", k=generator.randrange(1, 200))) for _ in range(20)]
    limit = generator.randrange(8, 120)
    documents = cut_documents(parts, max_bytes=limit)
    assert all(len(document.encode()) <= limit for document in documents)
    joined = "".join("".join(documents).split())
    assert joined == "".join("".join(parts).split())


def test_unique_documents_are_unique_up_to_white_space():
    assert unique_documents(["a b", "", " \n", "a\n b ", "c", "a b"]) == ["a b", "c"]
    assert text_hash("a b") == text_hash(" a\n\nb")


def test_the_order_is_frozen():
    items = list(range(10))
    assert shuffled(items, seed=1337) == shuffled(items, seed=1337) != shuffled(items, seed=1)
    assert items == list(range(10))


def test_overlap_is_caught():
    # Trap 8: a validation document that is in training, written otherwise.
    check_disjoint(Split(val=["a b"], train=["c"]))
    with pytest.raises(ValueError, match=r"share no document, but 1 of 2"):
        check_disjoint(Split(val=["a b", "x"], train=["c", "a\nb"]))


def test_document_hashes_tell_documents_apart_and_find_equal_ones():
    tokens = np.array([7, 8, 1, 5, 6, 1, 6, 5, 1, 5, 6, 1, 5, 6, 0, 1], dtype=np.uint16)
    hashes = document_hashes(tokens, whole=True)
    assert hashes.size == 5
    assert hashes[0] == hashes[2]
    assert np.unique(hashes).size == 4
    assert np.array_equal(document_hashes(tokens, whole=False), hashes[:-1])
    assert document_hashes(np.array([5, 6], dtype=np.uint16), whole=True).size == 0
