"""The entropy coder: containers and anything else come back; bytes are near the entropy of the classes."""

import json

import numpy as np
import pytest
import torch

from techniques.compression.ans import Ans, Cells, classes_of, levels_of
from techniques.compression.brotli_shuffle import BrotliShuffle
from trainer.artifact import Fix, Packed, ZlibCodec, pack, unpack

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


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 1), (1, 8), (32, 32)])
def test_an_artifact_comes_back_exactly(rows: int, columns: int):
    codec, packed = Ans(Ans.Config(row_classes=rows, column_classes=columns)).codec(), items()
    artifact = pack(packed, {"a": 1}, codec)
    assert artifact == pack(packed, {"a": 1}, codec)
    values, weights = unpack(artifact, {"ans": Ans().codec()})
    assert values == {"a": 1}
    assert all(torch.equal(weights[p.name], p.dequantized()) for p in packed)


@pytest.mark.parametrize("data", [b"", b"a", bytes(5000), json.dumps({"tensors": 3}).encode()])
def test_other_bytes_come_back_too(data: bytes):
    codec = Ans().codec()
    assert codec.decompress(codec.compress(data)) == data


def size(packed: list[Packed], rows: int, columns: int) -> int:
    return len(pack(packed, {}, Ans(Ans.Config(row_classes=rows, column_classes=columns)).codec()))


def entropy_bytes(q: np.ndarray, rows: int, columns: int) -> float:
    """Of every cell of classes under its own histogram, one cell after the other."""
    magnitude, bits = np.abs(q.astype(int)), 0.0
    by_row, by_column = classes_of(magnitude.mean(1), rows), classes_of(magnitude.mean(0), columns)
    for k in range(rows):
        for m in range(columns):
            counts = np.unique(q[by_row == k][:, by_column == m], return_counts=True)[1]
            bits += float(-(counts * np.log2(counts / counts.sum())).sum())
    return bits / 8


def test_bytes_are_near_the_entropy_and_below_the_other_codecs():
    q = integers(512, 512)
    packed = [Packed("a", q, torch.ones(512).half())]
    bound = entropy_bytes(q.numpy(), 8, 1)
    assert bound < size(packed, 8, 1) < 1.01 * bound + 1000  # head, classes of rows, tables
    others = [len(pack(packed, {}, codec)) for codec in (ZlibCodec(), BrotliShuffle().codec())]
    assert size(packed, 8, 1) < 0.985 * min(others)
    assert size(packed, 8, 1) < size(packed, 1, 1)  # rows of unlike spread pay for their own histograms
    assert size(packed, 8, 8) <= size(packed, 8, 1) + 8  # columns are alike here, and stay one class


def test_columns_of_unlike_spread_get_their_own_histograms():
    q = integers(512, 512).T.contiguous()
    packed = [Packed("a", q, torch.ones(512).half())]
    assert size(packed, 1, 8) < 0.985 * size(packed, 1, 1)
    assert Cells(q.numpy(), 8, 8).counts.shape[1] > 1 == Cells(q.numpy(), 8, 8).counts.shape[0]


def test_small_tensors_keep_one_class():
    assert Cells(integers(16, 16).numpy(), 32, 32).counts.shape[:2] == (1, 1)


def test_classes_and_levels():
    q = np.array([[9, -9], [0, 1], [4, 4], [0, 0]], np.int8)
    means = np.abs(q.astype(int)).mean(1)
    assert classes_of(means, 2).tolist() == [1, 0, 1, 0] and classes_of(means, 4).tolist() == [3, 1, 2, 0]
    assert (classes_of(means, 8) // 2).tolist() == classes_of(means, 4).tolist()
    assert levels_of(np.array([200_000, 1, 0, 50_000])).tolist() == [255, 1, 0, 128]
    counts = np.bincount((np.random.default_rng(0).normal(size=100_000) * 6 + 31).astype(int))
    shares, levels = counts / counts.sum(), np.square(levels_of(counts).astype(float))
    seen = counts > 0
    loss = (shares * np.log2(np.where(seen, shares, 1) / np.where(seen, levels / levels.sum(), 1))).sum()
    assert 0 <= loss < 1e-3  # bits a symbol, what a byte a level costs
