"""The shared value embedding against the explicit loop over positions."""

import pytest
import torch

from techniques.base import Shape
from techniques.embedding.value_embedding import ValueEmbedding

SHAPE = Shape(64, 4, 32, 4, 2, 2.0, 16, 16)


def build(*, move: bool):
    technique = ValueEmbedding(ValueEmbedding.Config(dim=6, last_n=2))
    table, add = technique.shared(SHAPE).double(), technique.values(SHAPE, 3)
    assert add is not None
    add = add.double()
    with torch.no_grad():
        for p in [*table.parameters(), *add.parameters()]:
            p.add_(torch.randn_like(p) * move)
    return table, add


def test_equals_the_loop():
    torch.manual_seed(0)
    table, add = build(move=True)
    ids, x0 = torch.randint(0, 64, (2, 5)), torch.randn(2, 5, 32, dtype=torch.float64)
    v = torch.randn(2, 5, 2, 8, dtype=torch.float64)
    out, expected = add(v, {"value_embedding": table(x0, ids)}), v.clone()
    for b in range(2):
        for t in range(5):
            token = table.proj @ table.table[ids[b, t]]  # [K·Dh]
            expected[b, t] += add.strength * table.scale * token.view(2, 8)
    torch.testing.assert_close(out, expected)


def test_a_strength_of_zero_is_the_plain_model_and_the_start_is_small_but_not_zero():
    torch.manual_seed(0)
    table, add = build(move=False)
    ids, x0 = torch.randint(0, 64, (2, 5)), torch.randn(2, 5, 32, dtype=torch.float64)
    v, shared = torch.randn(2, 5, 2, 8, dtype=torch.float64), {"value_embedding": table(x0, ids).detach()}
    norms = shared["value_embedding"].norm(dim=-1) / (0.1 * 0.01 * 6**0.5)  # orthogonal columns keep the norm
    assert 0.2 < float(norms.min()) and float(norms.max()) < 3
    assert not torch.equal(add(v, shared), v)
    with torch.no_grad():
        add.strength.zero_()
    assert torch.equal(add(v, shared), v)


def test_every_parameter_has_a_gradient_at_the_first_step():
    torch.manual_seed(0)
    table, add = build(move=False)
    ids, x0 = torch.randint(0, 64, (2, 5)), torch.randn(2, 5, 32, dtype=torch.float64)
    v = torch.randn(2, 5, 2, 8, dtype=torch.float64)
    add(v, {"value_embedding": table(x0, ids)}).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in [*table.parameters(), *add.parameters()])


def test_cost_is_exact_and_only_the_last_layers_are_entered():
    technique = ValueEmbedding()
    shape = Shape(1024, 11, 512, 8, 4, 3.0, 2048, 2048)
    layers = [technique.values(shape, i) for i in range(11)]
    assert [part is not None for part in layers] == [False] * 9 + [True] * 2
    modules = [technique.shared(shape), *(part for part in layers if part is not None)]
    assert [(p.role, tuple(p.shape)) for m in modules for p in m.parameters()] == [
        (t.role, t.shape) for t in technique.cost(shape).tensors
    ]
    assert technique.cost(shape).params == 163_843
    with pytest.raises(ValueError, match="at most num_layers"):
        ValueEmbedding(ValueEmbedding.Config(last_n=5)).check(SHAPE)
