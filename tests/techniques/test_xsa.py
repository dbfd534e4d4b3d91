"""XSA against the explicit loop over heads."""

import pytest
import torch

from techniques.attention.xsa import Xsa, remove_own_value
from techniques.base import Shape

SHAPE = Shape(64, 4, 32, 4, 2, 2.0, 16, 16)


def slow(y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    out = y.clone()
    group = y.size(2) // v.size(2)
    for b in range(y.size(0)):
        for t in range(y.size(1)):
            for h in range(y.size(2)):
                own = v[b, t, h // group]
                norm = own.norm()
                if norm > 0:
                    out[b, t, h] -= (y[b, t, h] @ own) / norm**2 * own
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_equals_the_loop_and_is_orthogonal_to_the_own_value(kv_heads: int):
    torch.manual_seed(0)
    y, v = torch.randn(2, 5, 4, 8, dtype=torch.float64), torch.randn(2, 5, kv_heads, 8, dtype=torch.float64)
    out = remove_own_value(y, v, y)
    torch.testing.assert_close(out, slow(y, v))
    own = v.repeat_interleave(4 // kv_heads, 2)
    assert ((out * own).sum(-1).abs() <= 1e-12 * out.norm(dim=-1) * own.norm(dim=-1) + 1e-14).all()
    torch.testing.assert_close(remove_own_value(out, v, y), out)


def test_zero_values_change_nothing_and_a_first_token_becomes_zero():
    y, v = torch.randn(1, 1, 4, 8), torch.zeros(1, 1, 4, 8)
    assert torch.equal(remove_own_value(y, v, y), y)
    assert remove_own_value(y, y, y).abs().max() < 1e-6  # there attention returns the own value


def test_enters_the_last_layers_only():
    technique = Xsa(Xsa.Config(last_n=2))
    assert [technique.attn_out(SHAPE, i) is not None for i in range(4)] == [False, False, True, True]
    with pytest.raises(ValueError, match="at most num_layers"):
        Xsa(Xsa.Config(last_n=5)).check(SHAPE)
