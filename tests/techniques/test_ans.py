"""The entropy coder: containers and anything else come back; bytes are near the entropy of the classes."""

import json

import numpy as np
import pytest
import torch

from techniques._artifact import Fix, Packed, ZlibCodec, pack, unpack
from techniques.compression.ans import Ans, histogram, row_classes_of
from techniques.compression.brotli_shuffle import BrotliShuffle

G = torch.Generator().manual_seed(0)


def integers(rows: int, columns: int, spread: float = 5.0) -> torch.Tensor:
    wide = torch.rand(rows, 1, generator=G).add(0.3)
    return (torch.randn(rows, columns, generator=G) * spread * wide).round().clamp(-31, 31).to(torch.int8)


def items() -> list[Packed]:
    fix = Fix("columns", integers(8, 4), torch.rand(8, generator=G).half(), 3)
    return [
        Packed("a", integers(300, 200), torch.rand(300, generator=G).half()),
        Packed("scalar", torch.tensor(1.5), None),
        Packed("constant", torch.full((7, 9), -31, dtype=torch.int8), torch.ones(7).half()),
        Packed("b", integers(8, 50, 40.0), torch.rand(8, generator=G).half(), (fix,)),
        Packed("one", torch.tensor([[3]], dtype=torch.int8), torch.ones(1).half()),
        Packed("halves", torch.randn(5, 6, generator=G).half(), None),
    ]


@pytest.mark.parametrize("row_classes", [1, 3, 64])
def test_an_artifact_comes_back_exactly(row_classes: int):
    codec, packed = Ans(Ans.Config(row_classes=row_classes)).codec(), items()
    artifact = pack(packed, {"a": 1}, codec)
    assert artifact == pack(packed, {"a": 1}, codec)
    values, weights = unpack(artifact, {"ans": Ans().codec()})
    assert values == {"a": 1}
    assert all(torch.equal(weights[p.name], p.dequantized()) for p in packed)


@pytest.mark.parametrize("data", [b"", b"a", bytes(5000), json.dumps({"tensors": 3}).encode()])
def test_other_bytes_come_back_too(data: bytes):
    codec = Ans().codec()
    assert codec.decompress(codec.compress(data)) == data


def test_bytes_are_near_the_entropy_and_below_the_other_codecs():
    q = integers(512, 512)
    packed = [Packed("a", q, torch.ones(512).half())]
    classes, bits = row_classes_of(q.numpy(), 8), 0.0
    for k in range(8):
        counts = np.unique(q.numpy()[classes == k], return_counts=True)[1]
        bits += float(-(counts * np.log2(counts / counts.sum())).sum())
    size = len(pack(packed, {}, Ans(Ans.Config(row_classes=8)).codec()))
    assert bits / 8 < size < 1.01 * bits / 8 + 700  # head and tables
    others = [len(pack(packed, {}, codec)) for codec in (ZlibCodec(), BrotliShuffle().codec())]
    assert size < 0.985 * min(others)
    one_class = len(pack(packed, {}, Ans(Ans.Config(row_classes=1)).codec()))
    assert size < one_class  # rows of unlike spread pay for their own histograms


def test_classes_and_counts():
    q = np.array([[9, -9], [0, 1], [4, 4], [0, 0]], np.int8)
    assert row_classes_of(q, 2).tolist() == [1, 0, 1, 0] and row_classes_of(q, 9).tolist() == [3, 1, 2, 0]
    counts = histogram(np.array([0] * 200_000 + [1]), 0, 3)
    assert counts.tolist() == [65535, 1, 0]
