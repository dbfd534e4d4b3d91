"""bytes -> Zstandard frame at `level` (22: largest windows, optimal parser); one thread, deterministic.

Source: PR #414, #518, #569, #1263; about 5 % smaller than zlib-9 on int6. Cost: about ten times zlib's
seconds when packing, fewer when reading. What we saw: studies/LOG.md, "codecs on one trained export".
"""

from __future__ import annotations

from dataclasses import dataclass

from techniques.base import Int, Technique, Unavailable, setting


class ZstdCodec:
    """One frame, without dictionary; equal bytes in, equal bytes out under one version of libzstd."""

    name = "zstd"

    def __init__(self, level: int):
        try:
            import zstandard
        except ImportError as error:
            raise Unavailable("zstd needs the package `zstandard`. Install it, or use lzma_xz.") from error
        self.zstandard, self.level = zstandard, level

    def compress(self, data: bytes) -> bytes:
        return self.zstandard.ZstdCompressor(level=self.level).compress(data)

    def decompress(self, data: bytes) -> bytes:
        return self.zstandard.ZstdDecompressor().decompress(data)


class Zstd(Technique):
    """Zstandard instead of zlib."""

    name = "zstd"
    reference = "PR #414, #569"
    stage = "pack"
    space = {"level": Int(1, 22)}
    smoke = {"level": 22}

    @dataclass(frozen=True)
    class Config:
        level: int = setting(22, "compression level", low=1, high=22)

    def codec(self) -> ZstdCodec:
        return ZstdCodec(self.config.level)
