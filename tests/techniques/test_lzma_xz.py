"""LZMA: bytes come back, the same bytes each time; the module shadows nothing of the standard library."""

import lzma

import pytest
import torch

from techniques.compression.lzma_xz import LzmaXz


def int6_bytes() -> bytes:
    q = (torch.randn(1 << 15, generator=torch.Generator().manual_seed(0)) * 6).round().clamp(-31, 31)
    return q.to(torch.int8).numpy().tobytes()


@pytest.mark.parametrize("data", [b"", b"a", bytes(10_000), int6_bytes()])
@pytest.mark.parametrize(
    "settings", [{"preset": 0}, {"preset": 6}, {"preset": 9}, {"preset": 6, "extreme": True}]
)
def test_round_trip_is_exact_and_deterministic(data: bytes, settings: dict):
    codec = LzmaXz(LzmaXz.Config(**settings)).codec()
    packed = codec.compress(data)
    assert codec.decompress(packed) == lzma.decompress(packed) == data
    assert codec.compress(data) == packed == LzmaXz(LzmaXz.Config(**settings)).codec().compress(data)


def test_presets_reach_the_library_and_the_name_is_the_flag():
    assert LzmaXz(LzmaXz.Config(preset=9, extreme=True)).codec().preset == 9 | lzma.PRESET_EXTREME
    assert LzmaXz().codec().name == LzmaXz.name == "lzma_xz"
    assert lzma.__file__.endswith("lzma.py") and "techniques" not in lzma.__file__
