"""Techniques that remember of their run what no byte of the artifact holds."""

from __future__ import annotations

import zlib
from typing import Any

import torch

from techniques.base import Shape, Technique

WORDS: dict[str, bytes] = {}


class Dictionary:
    """zlib that begins with bytes that it has seen: where they stand in no file, nobody can read it."""

    name = "dictionary"

    def compress(self, data: bytes) -> bytes:
        words = WORDS.setdefault(self.name, data[-2048:])
        packer = zlib.compressobj(9, zdict=words)
        return packer.compress(data) + packer.flush()

    def decompress(self, data: bytes) -> bytes:
        reader = zlib.decompressobj(zdict=WORDS.get(self.name, b""))
        return reader.decompress(data) + reader.flush()


class PlantedDictionary(Technique):
    name = "planted_dictionary"
    stage = "pack"

    def codec(self) -> Dictionary:
        return Dictionary()


class Shift(torch.nn.Module):
    def __init__(self, owner: Any):
        super().__init__()
        self.owner = owner

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return x + self.owner.lost.get("tok_emb", torch.zeros(()))[ids].to(x.dtype) if self.owner.lost else x


class PlantedShift(Technique):
    """What rounding takes off the embedding is added again, from memory."""

    name = "planted_shift"

    def __init__(self, config: Any = None):
        super().__init__(config)
        self.lost: dict[str, torch.Tensor] = {}

    def embed_in(self, shape: Shape) -> Shift:
        return Shift(self)

    def correct(self, packed: Any, export: Any) -> Any:
        self.lost |= {item.name: export.weights[item.name] - item.dequantized() for item in packed}
        return packed
