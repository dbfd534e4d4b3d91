"""Integers grouped by their tensors' part in the model, rows sorted by likeness, transposed; a stream a
group.

A group holds all tensors whose names differ in numbers only (one projection of every layer). Rows of a
tensor are put in a greedy chain: behind each row the nearest of the rest by L1 distance; the order is stored,
two bytes a row, and undone when reading. Column by column the neighbours then resemble each other. `sort =
"auto"` sorts where the group shrinks by more than its orders take; "always" and "never" do not look. It looks
at the whole of a group of less than TRIED bytes, else at columns, evenly spaced, of about a quarter of that.

Source: PR #1855, which gives each group to `lrzip -z` (ZPAQ) and sorts the token embedding, query and MLP
input rows: 280 KB under brotli of a 16 MB artifact, 100 s to write, 20 s to read. ZPAQ is a program of its
own; here a group goes to brotli or to xz, which find less (figures: studies/LOG.md). Cost: with "auto" what
is looked at is compressed twice; sorting R rows of C columns takes R²·C/2 sums of 16 bits. Data that is no
container of this trainer goes to brotli whole. What we saw: studies/LOG.md, "codecs on one trained export".
"""

from __future__ import annotations

import lzma
import re
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from techniques.base import Choice, Technique, Unavailable, setting
from trainer.artifact import container_streams, read_head, stream_dtype, streams_of

SORT_BLOCK = 8192  # rows that are sorted among themselves: their distances fill 256 MB
SORT_ROWS = 32  # rows whose distances are summed together, in a core's cache
TRIED = 2**20  # bytes of a group from which on a part of it is looked at
WHOLE = 0xFFFFFFFF  # in place of the rest's length: all of the data is there


def likeness_order(q: np.ndarray) -> np.ndarray:
    """uint16 [r]: rows of int8 [r,c] in a chain, each followed by the nearest of those left (L1; ties: the
    first), within blocks of SORT_BLOCK rows. The chain starts at a block's first row."""
    order = np.empty(len(q), np.uint16)
    for start in range(0, len(q), SORT_BLOCK):
        distance = distances(q[start : start + SORT_BLOCK])
        here = 0
        for i in range(len(distance)):
            order[start + i] = start + here
            distance[:, here] = np.inf
            here = int(distance[here].argmin())
    return order


def distances(q: np.ndarray) -> np.ndarray:
    """float32 [r,r]: L1 between the rows of int8 [r,c]. Each pair once, column by column in 16 bits, which
    hold 128 columns' sums."""
    columns = q.T.astype(np.int16, "C")
    out = np.zeros((len(q), len(q)), np.float32)
    for i in range(0, len(q), SORT_ROWS):
        rows = slice(i, i + SORT_ROWS)
        for part in np.split(columns, range(128, len(columns), 128)):
            out[rows, i:] += sum(abs(column[rows, None] - column[i:]) for column in part)
        out[i:, rows] = out[rows, i:].T
    return out


def groups_of(layout: Sequence[tuple[str, str, tuple[int, ...]]]) -> list[list[int]]:
    """Places of the int8 streams in `layout` (kind, tensor's name, shape), by name without numbers and by
    columns."""
    found: dict[tuple[str, int], list[int]] = {}
    for i, (kind, name, sides) in enumerate(layout):
        if kind == "int8":
            found.setdefault((re.sub(r"\d+", "#", name), sides[1]), []).append(i)
    return list(found.values())


class PerGroupCodec:
    """Equal bytes in, equal bytes out under one version of the libraries. u32 length of the squeezed rest;
    rest; per group u32 length and its stream. Rest: the container without integers; per group one byte (1:
    sorted) and then its tensors' orders."""

    name = "per_group"

    def __init__(self, config: Any):
        try:
            import brotli  # pyright: ignore[reportMissingTypeStubs]
        except ImportError as error:
            raise Unavailable("per_group needs the package `brotli`. Install it, or use lzma_xz.") from error
        self.brotli, self.config = brotli, config

    def squeeze(self, data: bytes) -> bytes:
        """One stream; its first byte says by what."""
        if self.config.coder == "xz":
            return b"x" + lzma.compress(data, preset=9)
        return b"b" + self.brotli.compress(data, quality=self.config.quality, lgwin=24)

    def open(self, data: bytes) -> bytes:
        return lzma.decompress(data[1:]) if data[:1] == b"x" else self.brotli.decompress(data[1:])

    def group(self, tensors: list[np.ndarray]) -> tuple[bytes, bytes]:
        """(flag and orders, stream) of tensors [r_i, c]."""
        if self.config.sort == "never" or max(len(q) for q in tensors) > 2**16:
            return self.stream(tensors, [])
        orders = [likeness_order(q) for q in tensors]
        if self.config.sort == "always":
            return self.stream(tensors, orders)
        step = sum(q.size for q in tensors) // TRIED * 4 or 1
        few = [q[:, ::step] for q in tensors]
        plain = self.stream(few, [])
        found = self.stream(few, orders)
        pays = step * (len(plain[1]) - len(found[1])) > len(self.squeeze(found[0][1:]))
        if step > 1:
            return self.stream(tensors, orders if pays else [])
        return found if pays else plain

    def stream(self, tensors: list[np.ndarray], orders: list[np.ndarray]) -> tuple[bytes, bytes]:
        """As `group`, with the rows in these orders, or with none as they are."""
        rows = [q[o] for q, o in zip(tensors, orders, strict=True)] if orders else tensors
        told = b"".join(order.tobytes() for order in orders)
        return bytes([bool(orders)]) + told, self.squeeze(columns_first(rows))

    def compress(self, data: bytes) -> bytes:
        try:
            streams = container_streams(data)
        except (ValueError, KeyError, TypeError):
            return struct.pack("<I", WHOLE) + self.squeeze(data)
        _, start = read_head(data)
        layout = [(kind, name, array.shape) for kind, name, array in streams]
        rest = [data[:start], *(array.tobytes() for kind, _, array in streams if kind != "int8")]
        bodies: list[bytes] = []
        groups = [[streams[i][2] for i in places] for places in groups_of(layout)]
        with ThreadPoolExecutor() as threads:  # the coders leave the interpreter free
            largest = sorted(groups, key=lambda group: -sum(q.size for q in group))  # they end together
            waiting = {id(group): threads.submit(self.group, group) for group in largest}
            for told, stream in (waiting[id(group)].result() for group in groups):
                rest.append(told)
                bodies.append(struct.pack("<I", len(stream)) + stream)
        squeezed = self.squeeze(b"".join(rest))
        return struct.pack("<I", len(squeezed)) + squeezed + b"".join(bodies)

    def decompress(self, data: bytes) -> bytes:
        (size,) = struct.unpack_from("<I", data)
        if size == WHOLE:
            return self.open(data[4:])
        rest, place = self.open(data[4 : 4 + size]), 4 + size
        head, at = read_head(rest)
        layout, out = streams_of(head), [rest[:at]]
        plain: dict[int, bytes] = {}
        for i, (kind, _, sides) in enumerate(layout):
            if kind != "int8":
                count = int(np.prod(sides)) * stream_dtype(kind).itemsize
                plain[i], at = rest[at : at + count], at + count
        for places in groups_of(layout):
            (count,) = struct.unpack_from("<I", data, place)
            stream, place = self.open(data[place + 4 : place + 4 + count]), place + 4 + count
            is_sorted, at = rest[at] == 1, at + 1
            rows = [layout[i][2][0] for i in places]
            whole = np.frombuffer(stream, np.int8).reshape(layout[places[0]][2][1], sum(rows)).T
            for i, part in zip(places, np.split(whole, np.cumsum(rows)[:-1]), strict=True):
                tensor = np.empty(part.shape, np.int8)
                order = np.arange(len(part))
                if is_sorted:
                    order, at = np.frombuffer(rest, np.uint16, len(part), at), at + 2 * len(part)
                tensor[order] = part
                plain[i] = tensor.tobytes()
        return b"".join(out + [plain[i] for i in range(len(layout))])


def columns_first(tensors: list[np.ndarray]) -> bytes:
    """The transpose of the tensors on top of each other."""
    return np.ascontiguousarray(np.concatenate(tensors).T).tobytes()


class PerGroup(Technique):
    """A stream for each group of like tensors, rows sorted by likeness."""

    name = "per_group"
    reference = "PR #1855 (with lrzip in place of our coders)"
    stage = "pack"
    space = {"coder": Choice(("brotli", "xz")), "sort": Choice(("auto", "always", "never"))}
    smoke = {"sort": "always"}

    @dataclass(frozen=True)
    class Config:
        coder: str = setting("brotli", "what compresses a group", choices=("brotli", "xz"))
        sort: str = setting(
            "auto",
            "order of a group's rows: by likeness where that pays, always, or as it is",
            choices=("auto", "always", "never"),
        )
        quality: int = setting(11, "brotli quality", low=0, high=11)

    def codec(self) -> PerGroupCodec:
        return PerGroupCodec(self.config)
