"""BigramHash against the explicit loop; golden parameter counts of the presets that carry it."""

import pytest
import torch
from torch import nn

import train_gpt
from techniques.attention.partial_rope import PartialRope
from techniques.attention.xsa import Xsa
from techniques.base import Shape
from techniques.block.ln_scale import LnScale
from techniques.block.ortho_init import OrthoInit
from techniques.config import resolve
from techniques.embedding.bigram_hash import BigramHash, BigramHashLayer, bigram_rows
from techniques.embedding.smear_gate import SmearGate
from techniques.embedding.value_embedding import ValueEmbedding

SHAPE = Shape(64, 3, 32, 4, 2, 2.0, 16, 16)


def slow_rows(ids: torch.Tensor, rows: int) -> torch.Tensor:
    out = torch.empty_like(ids)
    for b, sequence in enumerate(ids.tolist()):
        for i, token in enumerate(sequence):
            out[b, i] = ((36313 * token) ^ (27191 * sequence[i - 1])) % (rows - 1) if i else rows - 1
    return out


def routed(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(p.role, tuple(p.shape)) for p in module.parameters()]  # type: ignore[attr-defined]


def moved(layer: BigramHashLayer) -> BigramHashLayer:
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.randn_like(p))
    return layer


@pytest.mark.parametrize("rows", [2, 3, 512, 3072])
def test_rows_equal_the_loop_over_every_uint16_token_without_overflow(rows: int):
    ids = torch.randint(0, 65_536, (3, 50), generator=torch.Generator().manual_seed(0))
    ids[0, :4] = torch.tensor([65_535, 0, 65_535, 65_535])
    got = bigram_rows(ids, rows)
    assert torch.equal(got, slow_rows(ids, rows))
    assert torch.equal(got, bigram_rows(ids.to(torch.int32), rows))
    assert 0 <= int(got.min()) and int(got.max()) == rows - 1 and (got[:, 0] == rows - 1).all()
    assert got[:, 1:].max() < max(1, rows - 1)  # the last row is for first positions alone


def test_equals_the_loop_and_leaks_nothing_backwards():
    torch.manual_seed(0)
    layer = moved(BigramHashLayer(61, 5, 8)).double()
    x, ids = torch.randn(2, 7, 8, dtype=torch.float64), torch.randint(0, 64, (2, 7))
    out, expected = layer(x, ids), x.clone()
    for b in range(2):
        for t in range(7):
            expected[b, t] += layer.scale * (layer.proj @ layer.table[slow_rows(ids, 61)[b, t]])
    torch.testing.assert_close(out, expected)
    for t in range(7):
        other = ids.clone()
        other[:, t] = (other[:, t] + 1) % 64
        same = (layer(x, other) == out).all(-1).all(0)
        assert same[:t].all() and same[t + 2 :].all() and (t == 0 or not same[t])


def test_identity_at_init_yet_alive_at_the_first_step():
    torch.manual_seed(0)
    layer = BigramHash(BigramHash.Config(rows=61, dim=16)).embed_in(SHAPE)
    x, ids = torch.randn(2, 16, 32), torch.randint(0, 64, (2, 16))
    out = layer(x, ids)
    assert torch.equal(out, x)
    torch.testing.assert_close(layer.proj.T @ layer.proj, torch.eye(16), atol=1e-5, rtol=0)
    out.square().sum().backward()
    assert layer.table.grad is not None and layer.table.grad.any()
    with torch.no_grad():
        layer.table.sub_(0.1 * layer.table.grad)
    layer.zero_grad()
    layer(x, ids).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


def test_cost_is_exact():
    technique = BigramHash(BigramHash.Config(rows=2048, dim=128))
    shape = Shape(1024, 11, 512, 8, 4, 3.0, 2048, 2048)
    with torch.device("meta"):
        layer = technique.embed_in(shape)
    assert routed(layer) == [(t.role, t.shape) for t in technique.cost(shape).tensors]
    assert technique.cost(shape).params == 2048 * 128 + 128 * 512 + 1 == 327_681


@pytest.mark.parametrize(
    ("rows", "dim", "params"), [(2048, 128, 26_993_756), (1536, 128, 26_928_220), (3072, 112, 27_067_484)]
)
def test_golden_counts_of_pr_414_549_and_1019(rows: int, dim: int, params: int):
    on = (BigramHash, SmearGate, ValueEmbedding, LnScale, PartialRope, Xsa, OrthoInit)
    settings = {"num_layers": 11, "mlp_mult": 3, "train_seq_len": 2048, "train_batch_tokens": 786_432}
    settings |= {t.name: True for t in on} | {"bigram_hash.rows": rows, "bigram_hash.dim": dim}
    resolved = resolve({"file": settings}, {t.name: t for t in on})
    model = train_gpt.build_model(resolved, "meta")
    assert sum(p.numel() for p in model.parameters()) == params
    shape = resolved.config.shape()
    predicted = [
        *shape.tensor_specs(),
        *(x for t in resolved.techniques.values() for x in t.cost(shape).tensors),
    ]
    assert sorted(routed(model)) == sorted((t.role, t.shape) for t in predicted)
