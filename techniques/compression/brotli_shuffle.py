"""bytes -> one byte, the stride, then brotli of the bytes with every stride-th beside each other.

Byte i of a group of `stride` goes to stream i: float16 scales and halves part into their low and high bytes
(on random halves brotli does better without: search the stride). Stride 1 is brotli alone.

Source: shuffle by 2, then brotli-11, in PR #1218 and most records after it; about 0.9 MB smaller than zstd-22
in one report (#1712), 1.04 times the order-0 entropy at int6 (measured). Cost: about 90 s of one core for
27 MB, less than a second to read. What we saw: studies/LOG.md, "codecs on one trained export".
"""

from __future__ import annotations

from dataclasses import dataclass

from techniques.base import Choice, Technique, Unavailable, setting

WINDOW_BITS = 24  # the largest window that every brotli decoder reads


def shuffle_bytes(data: bytes, stride: int) -> bytes:
    return b"".join(data[i::stride] for i in range(stride))


def unshuffle_bytes(data: bytes, stride: int) -> bytes:
    out, at = bytearray(len(data)), 0
    for i in range(stride):
        n = len(range(i, len(data), stride))
        out[i::stride] = data[at : at + n]
        at += n
    return bytes(out)


class BrotliShuffleCodec:
    """Equal bytes in, equal bytes out under one version of the library."""

    name = "brotli_shuffle"

    def __init__(self, stride: int, quality: int):
        try:
            import brotli  # pyright: ignore[reportMissingTypeStubs]
        except ImportError as error:
            raise Unavailable(
                "brotli_shuffle needs the package `brotli`. Install it, or use lzma_xz."
            ) from error
        self.brotli, self.stride, self.quality = brotli, stride, quality

    def compress(self, data: bytes) -> bytes:
        shuffled = shuffle_bytes(data, self.stride)
        body = self.brotli.compress(shuffled, quality=self.quality, lgwin=WINDOW_BITS)
        return bytes([self.stride]) + body

    def decompress(self, data: bytes) -> bytes:
        return unshuffle_bytes(self.brotli.decompress(data[1:]), data[0])


class BrotliShuffle(Technique):
    """Byte shuffle, then brotli."""

    name = "brotli_shuffle"
    reference = "PR #1218, #1712"
    stage = "pack"
    space = {"stride": Choice((1, 2, 4))}
    smoke = {"stride": 2}

    @dataclass(frozen=True)
    class Config:
        stride: int = setting(2, "bytes of a group that part", choices=(1, 2, 4))
        quality: int = setting(11, "brotli quality", low=0, high=11)

    def codec(self) -> BrotliShuffleCodec:
        return BrotliShuffleCodec(self.config.stride, self.config.quality)
