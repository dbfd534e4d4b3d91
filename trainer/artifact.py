"""The artifact: magic, codec's name, compressed container. Container: JSON head, then all integers, all
scales, all halves, all floats, all integers of corrections, their scales: like beside like compresses best.

`container_streams` gives a codec the container's parts with their names and shapes: it may model each.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from techniques.parts import Codec

MAGIC = b"GOLF1\n"
KINDS = ("int8", "scale", "float16", "float32", "fix", "fix_scale")  # in the container's order


@dataclass
class Fix:
    """A stored correction of one tensor. `kind` left and right: factors of a product that is added; columns:
    integers that replace the columns from `at` on."""

    kind: str
    q: Tensor  # int8 [n, group]
    scale: Tensor  # float16 [n]
    at: int = 0

    def dequantized(self) -> Tensor:
        return self.q.float() * self.scale.float()[:, None]


@dataclass
class Packed:
    """One tensor as it is stored: integers with one scale per row, or floats as they are; and corrections."""

    name: str
    q: Tensor  # int8 [r, c], or float16/float32 of any shape
    scale: Tensor | None  # float16 [r] for integers
    fixes: Sequence[Fix] = ()

    def dequantized(self) -> Tensor:
        out = self.q.float() if self.scale is None else self.q.float() * self.scale.float()[:, None]
        factors = {fix.kind: fix.dequantized() for fix in self.fixes}
        if "left" in factors:
            out = out + factors["left"].view(out.size(0), -1) @ factors["right"].view(-1, out.size(1))
        for fix in self.fixes:
            if fix.kind == "columns":
                out[:, fix.at : fix.at + fix.q.size(1)] = fix.dequantized()
        return out


def round_to_nearest(weight: Tensor, bits: int, rule: Any = None) -> tuple[Tensor, Tensor]:
    """(q int8 [r,c], scale float16 [r]): per-row clip at the 99.99984th percentile of |w|. At 8 bits this is
    the baseline's quantiser with its floor of 1/127 under the scale; narrower scales have no such floor (at 6
    bits it would give every row below 1.0 the same coarse step). A `rule` chooses the scales itself."""
    qmax = 2 ** (bits - 1) - 1
    if rule is not None:
        scale = rule(weight, bits, None)
        q = torch.round(weight / scale.float()[:, None])
        return torch.clamp(q, -qmax, qmax).to(torch.int8), scale
    clip = torch.quantile(weight.abs(), 0.9999984, dim=1)
    scale = (clip / qmax).clamp_min(1.0 / qmax if bits == 8 else 1e-7).to(torch.float16)
    w = torch.clamp(weight, -clip[:, None], clip[:, None])
    return torch.clamp(torch.round(w / scale.float()[:, None]), -qmax, qmax).to(torch.int8), scale


def num_changed(before: Sequence[Packed], after: Sequence[Packed]) -> int:
    """Tensors that reload with other values."""
    pairs = zip(before, after, strict=True)
    return sum(not torch.equal(a.dequantized(), b.dequantized()) for a, b in pairs)


class RoundToNearest:
    """The baseline's quantiser. It looks at no data."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.hessians: dict[str, Tensor] = {}

    def calibrate(self, model: Any, batches: Iterable[Any]) -> None:
        """Nothing: no batch is read."""

    def quantize(self, name: str, weight: Tensor, bits: int, rule: Any) -> tuple[Tensor, Tensor]:
        return round_to_nearest(weight, bits, rule)


class ZlibCodec:
    """The baseline's codec: zlib, level 9."""

    name = "zlib"

    def compress(self, data: bytes) -> bytes:
        return zlib.compress(data, 9)

    def decompress(self, data: bytes) -> bytes:
        return zlib.decompress(data)


class Remembering:
    """A codec that packs each container once; `made` keeps what became of it, by the container's hash."""

    def __init__(self, codec: Codec, made: dict[bytes, bytes]):
        self.codec = codec
        self.made = made
        self.name = codec.name

    def compress(self, data: bytes) -> bytes:
        key = hashlib.sha256(data).digest()
        if key not in self.made:
            self.made[key] = self.codec.compress(data)
        return self.made[key]

    def decompress(self, data: bytes) -> bytes:
        return self.codec.decompress(data)


def pack(packed: Sequence[Packed], values: Mapping[str, Any], codec: Codec) -> bytes:
    """The artifact's bytes."""
    head: dict[str, Any] = {"values": values, "tensors": []}
    streams: dict[str, list[bytes]] = {kind: [] for kind in KINDS}

    def put(kind: str, tensor: Tensor) -> None:
        streams[kind].append(tensor.contiguous().numpy().tobytes())

    for item in packed:
        kind = str(item.q.dtype).removeprefix("torch.")
        fixes = [[fix.kind, list(fix.q.shape), fix.at] for fix in item.fixes]
        head["tensors"].append([item.name, kind, list(item.q.shape), *([fixes] if fixes else [])])
        put(kind, item.q)
        if item.scale is not None:
            put("scale", item.scale)
        for fix in item.fixes:
            put("fix", fix.q)
            put("fix_scale", fix.scale)
    head_bytes = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    body = b"".join(part for parts in streams.values() for part in parts)
    container = len(head_bytes).to_bytes(4, "little") + head_bytes + body
    return MAGIC + codec.name.encode() + b"\n" + codec.compress(container)


def read_head(container: bytes) -> tuple[dict[str, Any], int]:
    """(head, offset of the first stream)."""
    size = int.from_bytes(container[:4], "little")
    return json.loads(container[4 : 4 + size]), 4 + size


def streams_of(head: Mapping[str, Any]) -> list[tuple[str, str, tuple[int, ...]]]:
    """(kind, tensor's name, shape) of every stream, in the container's order."""
    out: list[tuple[str, str, tuple[int, ...]]] = []
    for kind in KINDS:
        for name, of, sides, *rest in head["tensors"]:
            if of == kind:
                out.append((kind, name, tuple(sides)))
            elif kind == "scale" and of == "int8":
                out.append((kind, name, tuple(sides[:1])))
            elif kind.startswith("fix"):
                for _, of_fix, _ in rest[0] if rest else ():
                    out.append((kind, name, tuple(of_fix if kind == "fix" else of_fix[:1])))
    return out


def stream_dtype(kind: str) -> np.dtype[Any]:
    return np.dtype({"scale": "float16", "fix": "int8", "fix_scale": "float16"}.get(kind, kind))


def container_streams(container: bytes) -> list[tuple[str, str, np.ndarray]]:
    """(kind, tensor's name, read-only array) of every stream. ValueError unless the head describes all
    bytes."""
    head, at = read_head(container)
    out: list[tuple[str, str, np.ndarray]] = []
    for kind, name, sides in streams_of(head):
        count = math.prod(sides)
        dtype = stream_dtype(kind)
        out.append((kind, name, np.frombuffer(container, dtype, count, at).reshape(sides)))
        at += count * dtype.itemsize
    if at != len(container):
        raise ValueError(
            f"The artifact holds {len(container)} bytes, but its head describes {at}. Train again."
        )
    return out


def unpack(artifact: bytes, codecs: Mapping[str, Codec]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(resolved values, dequantised float32 weights). ValueError for anything that is not a whole
    artifact."""
    magic, rest = artifact[: len(MAGIC)], artifact[len(MAGIC) :]
    codec_name, _, body = rest.partition(b"\n")
    if magic != MAGIC or codec_name.decode("ascii", "replace") not in codecs:
        raise ValueError(f"Not an artifact of this trainer: it starts with {artifact[:16]!r}. Train again.")
    container = codecs[codec_name.decode()].decompress(body)
    head, _ = read_head(container)
    found: dict[tuple[str, str], list[Tensor]] = {}
    for kind, name, array in container_streams(container):
        found.setdefault((kind, name), []).append(torch.from_numpy(array.copy()))
    weights = {}
    for name, of, _, *rest in head["tensors"]:
        stored = zip(found.get(("fix", name), []), found.get(("fix_scale", name), []), strict=True)
        told: list[Any] = rest[0] if rest else []
        fixes = [Fix(kind, q, scale, at) for (kind, _, at), (q, scale) in zip(told, stored, strict=True)]
        scale = found.get(("scale", name), [None])[0]
        weights[name] = Packed(name, found[of, name][0], scale, fixes).dequantized()
    return head["values"], weights
