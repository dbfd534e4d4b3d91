"""Each tensor's integers by an asymmetric numeral system (rANS) under histograms of their own; the rest by
brotli.

Rows fall into classes by their mean |q|, columns likewise; each pair of classes has one histogram, a byte a
symbol. How many classes, 1, 2, 4 … up to the two settings, is chosen for each tensor by the bytes that they
save against those that their histograms take: small tensors keep one. One class of each is the order-0
entropy of a tensor; more go below it where rows or columns differ in spread.

Source: none of the published stacks that we read has it; the coder is the library `constriction`. Figures
against the entropy and the other codecs: `python -m benchmarks.trainer.codecs`. Cost: seconds of packing and
reading. Data that is no container of this trainer goes to brotli whole. What we saw: studies/LOG.md,
"codecs on one trained export".
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from techniques.base import Choice, Technique, Unavailable, setting
from trainer.artifact import container_streams, read_head, stream_dtype, streams_of

CODED_KINDS = ("int8", "fix")  # streams of integers
CLASS_COUNTS = (1, 2, 4, 8, 16, 32)
LEVELS = 255  # a histogram's entry v stands for a share v²: fine where shares are large


def classes_of(means: np.ndarray, classes: int) -> np.ndarray:
    """uint8 [n]: places by rising mean, in classes of equal size. Those of classes/2 are these // 2."""
    rank = np.argsort(np.argsort(means, kind="stable"), kind="stable")
    return (rank * classes // len(means)).astype(np.uint8)


def levels_of(counts: np.ndarray) -> np.ndarray:
    """uint8 [..,symbols]: v of counts, with v² near their shares; none that occurs falls to zero."""
    shares = counts / np.maximum(1, counts.max(-1, keepdims=True))
    return np.where(counts > 0, np.maximum(1, np.round(LEVELS * np.sqrt(shares))), 0).astype(np.uint8)


def coded_bytes(counts: np.ndarray) -> float:
    """Of symbols with these counts [cells, symbols], each cell under its own histogram, and of the tables."""
    totals = np.maximum(1, counts.sum(1, keepdims=True))
    bits = -(counts * np.log2(np.maximum(counts, 1) / totals)).sum()
    return float(bits / 8) + float(counts.size)


class Cells:
    """Where each element of q [r,c] belongs: the chosen classes of rows and columns, and their counts."""

    def __init__(self, q: np.ndarray, row_classes: int, column_classes: int):
        magnitude = np.abs(q.astype(np.int16))
        self.low = int(q.min())
        self.size = max(2, int(q.max()) - self.low + 1)  # a model needs two symbols
        self.rows = classes_of(magnitude.mean(1), row_classes)
        self.columns = classes_of(magnitude.mean(0), column_classes)
        self.symbols = (q.astype(np.int16) - self.low).astype(np.int32)
        label = self.rows[:, None].astype(np.int64) * column_classes + self.columns
        flat = np.bincount((label * self.size + self.symbols).ravel(), minlength=0)
        finest = np.zeros(row_classes * column_classes * self.size, np.int64)
        finest[: len(flat)] = flat
        self.counts = finest.reshape(row_classes, column_classes, self.size)
        self.choose()

    def choose(self) -> None:
        """Merge neighbouring classes as long as the tables cost more than they save."""
        best: tuple[float, int, int] | None = None
        by_row = [2**i for i in range(self.counts.shape[0].bit_length())]
        by_column = [2**i for i in range(self.counts.shape[1].bit_length())]
        for down, across in itertools.product(by_row, by_column):
            merged = self.merged(down, across)
            stored = len(self.rows) * (merged.shape[0] > 1) + len(self.columns) * (merged.shape[1] > 1)
            bits = np.log2(max(2, merged.shape[0] * merged.shape[1])) / 2
            cost = coded_bytes(merged.reshape(-1, self.size)) + stored * bits / 8
            if best is None or cost < best[0]:
                best = (cost, down, across)
        assert best is not None
        self.counts = self.merged(best[1], best[2])
        self.rows, self.columns = self.rows // best[1], self.columns // best[2]

    def merged(self, down: int, across: int) -> np.ndarray:
        r, c, size = self.counts.shape
        return self.counts.reshape(r // down, down, c // across, across, size).sum((1, 3))

    def table(self) -> bytes:
        """Lowest symbol, symbols - 1, classes of rows and columns, each row's and column's class, levels."""
        r, c, _ = self.counts.shape
        head = struct.pack("<bBBB", self.low, self.size - 1, r, c)
        named = (self.rows.tobytes() if r > 1 else b"") + (self.columns.tobytes() if c > 1 else b"")
        return head + named + levels_of(self.counts).tobytes()

    def parts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(symbols, levels) of each cell that holds any, in the reader's order."""
        levels = levels_of(self.counts)
        out = []
        for k, m in np.ndindex(*levels.shape[:2]):
            symbols = self.symbols[self.rows == k][:, self.columns == m].ravel()
            if symbols.size:
                out.append((symbols, levels[k, m]))
        return out


class AnsCodec:
    """Equal bytes in, equal bytes out under one version of the libraries."""

    name = "ans"

    def __init__(self, config: Any):
        try:
            import brotli  # pyright: ignore[reportMissingTypeStubs]
            import constriction  # pyright: ignore[reportMissingTypeStubs]
        except ImportError as error:
            raise Unavailable(
                "ans needs the packages `constriction` and `brotli`. Install them, or use lzma_xz."
            ) from error
        self.brotli: Any = brotli
        self.stream: Any = vars(constriction)["stream"]
        self.config = config

    def model(self, levels: np.ndarray) -> Any:
        shares = np.square(levels.astype(np.float64))
        if np.count_nonzero(shares) < 2:  # a model needs two symbols, seen or not
            shares[int(shares[0] > 0)] += 1e-6 * shares.max()
        return self.stream.model.Categorical(shares / shares.sum(), perfect=False)

    def compress(self, data: bytes) -> bytes:
        """u32 bytes of brotli'd rest (0: all of it is there), rest, words of the coder. Rest: container
        without the integers, then a table per stream."""
        try:
            streams = container_streams(data)
        except (ValueError, KeyError, TypeError):
            return struct.pack("<I", 0) + self.brotli.compress(data, quality=11, lgwin=24)
        _, start = read_head(data)
        rest, tables = [data[:start]], []
        work: list[tuple[np.ndarray, np.ndarray]] = []
        for kind, _, array in streams:
            if kind not in CODED_KINDS or not array.size:
                rest.append(array.tobytes())
                continue
            cells = Cells(array, self.config.row_classes, self.config.column_classes)
            tables.append(cells.table())
            work += cells.parts()
        coder = self.stream.stack.AnsCoder()
        for symbols, levels in reversed(work):
            coder.encode_reverse(symbols, self.model(levels))
        plain = self.brotli.compress(b"".join(rest + tables), quality=11, lgwin=24)
        return struct.pack("<I", len(plain)) + plain + coder.get_compressed().tobytes()

    def decompress(self, data: bytes) -> bytes:
        (size,) = struct.unpack_from("<I", data)
        if not size:
            return self.brotli.decompress(data[4:])
        rest = self.brotli.decompress(data[4 : 4 + size])
        coder = self.stream.stack.AnsCoder(np.frombuffer(data[4 + size :], np.uint32))
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
        low, size, *numbers = struct.unpack_from("<bBBB", rest, at)
        at, classes = at + 4, []
        for side, number in zip(sides, numbers, strict=True):
            named = side if number > 1 else 0
            given = np.frombuffer(rest, np.uint8, named, at)
            classes.append(given if named else np.zeros(side, np.uint8))
            at += named
        shape = (*numbers, size + 1)
        levels = np.frombuffer(rest, np.uint8, int(np.prod(shape)), at).reshape(shape)
        out = np.empty(sides, np.int8)
        for k, m in np.ndindex(*numbers):
            cell = np.ix_(classes[0] == k, classes[1] == m)
            count = out[cell].size
            if count:
                symbols = coder.decode(self.model(levels[k, m]), count)
                out[cell] = (symbols + low).reshape(out[cell].shape).astype(np.int8)
        return out, at + levels.size


class Ans(Technique):
    """An entropy coder over the quantised symbols."""

    name = "ans"
    reference = "constriction (R. Bamler), arXiv:2201.01741"
    stage = "pack"
    space = {"row_classes": Choice(CLASS_COUNTS), "column_classes": Choice(CLASS_COUNTS)}
    unseen = ("row_classes",)  # all of few rows take one class
    smoke = {"row_classes": 4}

    @dataclass(frozen=True)
    class Config:
        row_classes: int = setting(8, "classes of a tensor's rows, at most", choices=CLASS_COUNTS)
        column_classes: int = setting(8, "classes of its columns, at most", choices=CLASS_COUNTS)

    def codec(self) -> AnsCodec:
        return AnsCodec(self.config)
