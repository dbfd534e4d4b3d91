"""Each tensor's integers by an asymmetric numeral system (rANS) under its own histograms; the rest by
brotli.

The rows of a tensor fall into `row_classes` classes by their mean |q|; a class has one histogram, stored as
counts of at most 2¹⁶ − 1 beside a class a row. On clean symbol streams brotli-11 lies 1 to 5 % above the
entropy and zlib-9 7 to 20 % (studies of 22 Nov 2026); what this coder spends on a real export is not
measured yet.

Source: none of the published stacks that we read has it; the coder is the library `constriction`. Cost:
tables of 2 · symbols · classes bytes a tensor, before brotli. Data that is no container of this trainer goes
to brotli whole. What we saw: studies/LOG.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from techniques._artifact import container_streams, read_head, stream_dtype, streams_of
from techniques.base import Int, Technique, Unavailable, setting

CODED_KINDS = ("int8", "fix")  # streams of integers
COUNT_LIMIT = 2**16 - 1


def row_classes_of(q: np.ndarray, classes: int) -> np.ndarray:
    """uint8 [r]: rows of [r,c] by rising mean |q|, in classes of equal size."""
    rank = np.argsort(np.argsort(np.abs(q.astype(np.int16)).mean(1), kind="stable"), kind="stable")
    return (rank * min(classes, len(q)) // len(q)).astype(np.uint8)


def histogram(symbols: np.ndarray, low: int, size: int) -> np.ndarray:
    """uint16 [size] counts of low … low + size − 1; those of a large tensor are scaled down, none to zero."""
    counts = np.bincount(symbols.astype(np.int64) - low, minlength=size)
    scaled = counts * min(1.0, COUNT_LIMIT / max(1, counts.max()))
    return np.where(counts > 0, np.maximum(1, scaled), 0).astype(np.uint16)


class AnsCodec:
    """Equal bytes in, equal bytes out under one version of the libraries."""

    name = "ans"

    def __init__(self, row_classes: int):
        try:
            import brotli  # pyright: ignore[reportMissingTypeStubs]
            import constriction  # pyright: ignore[reportMissingTypeStubs]
        except ImportError as error:
            raise Unavailable(
                "ans needs the packages `constriction` and `brotli`. Install them, or use lzma_xz."
            ) from error
        self.brotli: Any = brotli
        self.stream: Any = vars(constriction)["stream"]
        self.row_classes = row_classes

    def model(self, counts: np.ndarray) -> Any:
        return self.stream.model.Categorical(counts / counts.sum(dtype=np.float64), perfect=False)

    def compress(self, data: bytes) -> bytes:
        """u32 bytes of brotli'd rest (0: all of it is there), rest, words of the coder. Rest: container
        without the integers, then per stream: lowest symbol, symbols - 1, classes, class of each row,
        counts."""
        try:
            streams = container_streams(data)
        except (ValueError, KeyError, TypeError):
            return struct.pack("<I", 0) + self.brotli.compress(data, quality=11, lgwin=24)
        _, start = read_head(data)
        rest, tables = [data[:start]], []
        work: list[tuple[np.ndarray, np.ndarray]] = []  # symbols from 0, counts: in the reader's order
        for kind, _, array in streams:
            if kind not in CODED_KINDS or not array.size:
                rest.append(array.tobytes())
                continue
            low, high = int(array.min()), int(array.max())
            size = max(2, high - low + 1)  # a model needs two symbols
            classes = row_classes_of(array, self.row_classes)
            number = int(classes.max()) + 1
            tables.append(struct.pack("<bBB", low, size - 1, number) + classes.tobytes())
            for k in range(number):
                symbols = array[classes == k].ravel()
                counts = histogram(symbols, low, size)
                counts[counts.argmin()] += counts.min() == 0 and np.count_nonzero(counts) == 1
                tables[-1] += counts.tobytes()
                work.append((symbols.astype(np.int32) - low, counts))
        coder = self.stream.stack.AnsCoder()
        for symbols, counts in reversed(work):
            coder.encode_reverse(symbols, self.model(counts))
        plain = self.brotli.compress(b"".join(rest + tables), quality=11, lgwin=24)
        return struct.pack("<I", len(plain)) + plain + coder.get_compressed().tobytes()

    def decompress(self, data: bytes) -> bytes:
        (size,) = struct.unpack_from("<I", data)
        if not size:
            return self.brotli.decompress(data[4:])
        rest = self.brotli.decompress(data[4 : 4 + size])
        coder = self.stream.stack.AnsCoder(np.frombuffer(data, np.uint32, offset=4 + size))
        head, at = read_head(rest)
        layout, out = streams_of(head), [rest[:at]]
        plain: dict[int, bytes] = {}
        for i, (kind, _, sides) in enumerate(layout):
            if kind not in CODED_KINDS or not np.prod(sides):
                count = int(np.prod(sides)) * stream_dtype(kind).itemsize
                plain[i], at = rest[at : at + count], at + count
        for i, (_, _, sides) in enumerate(layout):
            if i not in plain:
                array, at = self.read_stream(rest, at, sides, coder)
                plain[i] = array.tobytes()
        return b"".join(out + [plain[i] for i in range(len(layout))])

    def read_stream(self, rest: bytes, at: int, sides: tuple[int, ...], coder: Any) -> tuple[np.ndarray, int]:
        """(int8 [r,c], where its table ends)."""
        low, size, number = struct.unpack_from("<bBB", rest, at)
        classes = np.frombuffer(rest, np.uint8, sides[0], at + 3)
        at, out = at + 3 + sides[0], np.empty(sides, np.int8)
        for k in range(number):
            counts = np.frombuffer(rest, np.uint16, size + 1, at)
            at += 2 * (size + 1)
            rows = classes == k
            symbols = coder.decode(self.model(counts), int(rows.sum()) * sides[1])
            out[rows] = (symbols + low).reshape(-1, sides[1]).astype(np.int8)
        return out, at


class Ans(Technique):
    """An entropy coder over the quantised symbols."""

    name = "ans"
    reference = "constriction (R. Bamler), arXiv:2201.01741"
    stage = "pack"
    space = {"row_classes": Int(1, 16, log=True)}
    smoke = {"row_classes": 2}

    @dataclass(frozen=True)
    class Config:
        row_classes: int = setting(4, "histograms of a tensor, over its rows by mean |q|", low=1, high=64)

    def codec(self) -> AnsCodec:
        return AnsCodec(self.config.row_classes)
