"""bytes -> .xz stream (LZMA2) at `preset`, with the slower `extreme` search or without; deterministic.

Source: preset 6 in PR #549, preset 9 in #1019 (its 64 MiB window holds the whole model). Worse than zlib-9
was reported for int8, better for int6. Cost: about as slow as zstd-22 when packing. What we saw:
studies/LOG.md, "codecs on one trained export".
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass

from techniques.base import Choice, Int, Technique, setting


class LzmaXzCodec:
    """The standard library's xz container."""

    name = "lzma_xz"

    def __init__(self, preset: int, extreme: bool):
        self.preset = preset | (lzma.PRESET_EXTREME if extreme else 0)

    def compress(self, data: bytes) -> bytes:
        return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, preset=self.preset)

    def decompress(self, data: bytes) -> bytes:
        return lzma.decompress(data, format=lzma.FORMAT_XZ)


class LzmaXz(Technique):
    """LZMA instead of zlib."""

    name = "lzma_xz"
    reference = "PR #549 (preset 6), #1019 (preset 9)"
    stage = "pack"
    space = {"preset": Int(0, 9), "extreme": Choice((False, True))}
    smoke = {"preset": 6}

    @dataclass(frozen=True)
    class Config:
        preset: int = setting(9, "compression preset", low=0, high=9)
        extreme: bool = setting(False, "search longer for matches")

    def codec(self) -> LzmaXzCodec:
        return LzmaXzCodec(self.config.preset, self.config.extreme)
