"""XSA against the explicit loop over heads."""

import pytest
import torch

from techniques.attention.xsa import GatedOwnValue, Xsa, remove_own_value
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
    assert (
        remove_own_value(y, y, y).abs().max() < 1e-6
    )  # at the first token attention returns the token's own value


def test_enters_the_last_layers_only():
    technique = Xsa(Xsa.Config(last_n=2))
    assert [technique.attn_out(SHAPE, i) is not None for i in range(4)] == [False, False, True, True]
    with pytest.raises(ValueError, match="at most num_layers"):
        Xsa(Xsa.Config(last_n=5)).check(SHAPE)


@pytest.mark.parametrize(("mode", "first"), [("gate", 0.0), ("residual", 1.0)])
def test_a_gate_a_head_scales_what_is_taken_off(mode: str, first: float):
    technique = Xsa(Xsa.Config(last_n=3, mode=mode))
    part = technique.attn_out(SHAPE, 3)
    assert isinstance(part, GatedOwnValue) and technique.attn_out(SHAPE, 0) is None
    assert technique.cost(SHAPE).params == 3 * SHAPE.num_heads
    torch.manual_seed(0)
    y, v = torch.randn(2, 5, 4, 8, dtype=torch.float64), torch.randn(2, 5, 2, 8, dtype=torch.float64)
    at_first = y if mode == "gate" else slow(y, v)
    torch.testing.assert_close(part(y, v, y), at_first)
    with torch.no_grad():
        part.alpha.copy_(torch.tensor([0.5, -1.0, 2.0, 0.1]))
    share = (first + part.alpha.double().tanh()).view(1, 1, 4, 1)
    torch.testing.assert_close(part(y, v, y), y - share * (y - slow(y, v)), atol=1e-6, rtol=1e-6)
    part(y, v, y).square().sum().backward()
    assert part.alpha.grad is not None and bool(part.alpha.grad.ne(0).all())
