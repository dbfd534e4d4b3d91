"""Zstandard: bytes come back, the same bytes each time, fewer than zlib's."""

import zlib

import pytest
import torch

from techniques.compression.zstd import Zstd


def int6_bytes() -> bytes:
    q = (torch.randn(1 << 16, generator=torch.Generator().manual_seed(0)) * 6).round().clamp(-31, 31)
    return q.to(torch.int8).numpy().tobytes()


@pytest.mark.parametrize("data", [b"", b"a", bytes(10_000), int6_bytes()])
@pytest.mark.parametrize("level", [1, 22])
def test_round_trip_is_exact_and_deterministic(data: bytes, level: int):
    codec = Zstd(Zstd.Config(level=level)).codec()
    packed = codec.compress(data)
    assert Zstd(Zstd.Config()).codec().decompress(packed) == data  # any level reads any level
    assert codec.compress(data) == packed == Zstd(Zstd.Config(level=level)).codec().compress(data)


def test_is_smaller_than_zlib():
    data = int6_bytes()
    assert len(Zstd().codec().compress(data)) < len(zlib.compress(data, 9))
    assert Zstd().codec().name == Zstd.name == "zstd"
