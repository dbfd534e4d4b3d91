"""Shuffle and brotli: bytes come back, the same bytes each time, fewer than zlib's."""

import zlib

import numpy as np
import pytest

from techniques.compression.brotli_shuffle import BrotliShuffle, shuffle_bytes, unshuffle_bytes
from tests.techniques.test_zstd import int6_bytes


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("data", [b"", b"a", b"abcdefg", bytes(1001), int6_bytes()[:9999]])
def test_round_trip_is_exact_and_deterministic(data: bytes, stride: int):
    codec = BrotliShuffle(BrotliShuffle.Config(stride=stride)).codec()
    stored = codec.compress(data)
    assert BrotliShuffle().codec().decompress(stored) == data  # any stride reads any stride
    assert codec.compress(data) == stored
    assert unshuffle_bytes(shuffle_bytes(data, stride), stride) == data


def test_the_shuffle_is_the_transpose():
    assert shuffle_bytes(b"aAbBcC", 2) == b"abcABC" and shuffle_bytes(b"abcdefg", 4) == b"aebfcgd"


def test_is_smaller_than_zlib_and_parts_words():
    data = int6_bytes()
    assert len(BrotliShuffle().codec().compress(data)) < len(zlib.compress(data, 9))
    words = np.arange(20_000, dtype=np.uint16).tobytes()
    one, two = (len(BrotliShuffle(BrotliShuffle.Config(stride=s)).codec().compress(words)) for s in (1, 2))
    assert two < one
