"""The CPU's blocked attention against SDPA in float64, and which lengths get it."""

import pytest
import torch

from techniques.base import Shape
from train_gpt import Rotary
from trainer import attention
from trainer.attention import BLOCKED_TO, blocked, pick_attention, sdpa

CPU = torch.device("cpu")


def rows(t: int, heads: int = 4, kv_heads: int = 2, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(t)
    sizes = (heads, kv_heads, kv_heads, heads)
    return [torch.randn(3, t, n, 8, generator=generator).to(dtype).requires_grad_() for n in sizes]


def results(attend, q, k, v, grad):
    y = attend(q, k, v)
    return [y.detach(), *torch.autograd.grad(y, (q, k, v), grad.detach())]


@pytest.mark.parametrize("t", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_blocked_is_sdpa_and_so_are_its_gradients(t: int, kv_heads: int):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.06)):
        x = rows(t, kv_heads=kv_heads, dtype=dtype)
        exact = [r.detach().double().requires_grad_() for r in x]
        for found, wanted in zip(results(blocked, *x), results(sdpa, *exact), strict=True):
            assert found.dtype is dtype and found.shape == wanted.shape
            torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("t", [1, 16, 64, 100])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_the_last_queries_alone_get_what_they_get_among_all(t: int, kv_heads: int):
    q, k, v, grad = rows(200, kv_heads=kv_heads)
    last = torch.zeros_like(grad)
    last[:, -t:] = grad.detach()[:, -t:]
    y, dq, dk, dv = results(sdpa, q, k, v, last)
    ours = results(blocked, q.detach()[:, -t:].requires_grad_(), k, v, grad[:, -t:])
    for found, wanted in zip(ours, (y[:, -t:], dq[:, -t:], dk, dv), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attend", [blocked, sdpa])
def test_bits_are_repeatable_causal_and_of_one_sequence(attend, dtype: torch.dtype):
    q, k, v, grad = rows(150, dtype=dtype)
    first = results(attend, q, k, v, grad)
    for a, b in zip(first, results(attend, q, k, v, grad), strict=True):
        assert torch.equal(a, b)
    for at in (1, 64, 100, 149):  # later tokens, and every other sequence
        moved = [x.detach().clone() for x in (q, k, v)]
        for x in moved:
            x[0, at:] += 1
            x[1:] -= 1
        assert torch.equal(attend(*moved)[0, :at], first[0][0, :at])
        assert not torch.equal(attend(*moved)[0, at:], first[0][0, at:])


def test_auto_goes_by_dtype_and_length(monkeypatch: pytest.MonkeyPatch):
    taken: list[tuple[str, int]] = []
    for name in ("sdpa", "blocked"):
        monkeypatch.setattr(attention, name, lambda q, k, v, n=name: taken.append((n, q.size(1))))
    told, attend = pick_attention("auto", CPU, torch.bfloat16)
    assert told == f"blocked_to_{BLOCKED_TO}_else_sdpa"
    for t in (1, BLOCKED_TO, BLOCKED_TO + 1):
        attend(*rows(t, dtype=torch.bfloat16)[:3])
    assert taken == [("blocked", 1), ("blocked", BLOCKED_TO), ("sdpa", BLOCKED_TO + 1)]
    assert pick_attention("auto", CPU, torch.float32)[0] == "sdpa"


def test_both_forms_stay_settings():
    assert pick_attention("sdpa", CPU, torch.bfloat16) == ("sdpa", sdpa)
    assert pick_attention("blocked", CPU, torch.float32) == ("blocked", blocked)
    with pytest.raises(ValueError, match="offers: sdpa, blocked"):
        pick_attention("fa3", CPU, torch.bfloat16)


def test_one_graph_holds_it():
    q, k, v, grad = rows(70, dtype=torch.float32)
    graph = torch.compile(blocked, backend="aot_eager", fullgraph=True, dynamic=False)
    for a, b in zip(results(graph, q, k, v, grad), results(blocked, q, k, v, grad), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_positions_are_those_of_the_two_halves_to_the_bit(dtype: torch.dtype):
    rotary = Rotary(Shape(64, 2, 32, 4, 2, 2.0, 200, 200))
    q, k, _, grad = rows(150, dtype=dtype)
    cos = rotary.cos[:150].to(dtype)
    sin = rotary.sin[:150].to(dtype)
    for turned, x in zip(rotary(q, k), (q, k), strict=True):
        a, b = x.chunk(2, dim=-1)
        wanted = torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)
        assert torch.equal(turned, wanted)
        g = grad.detach()[:, :, : x.size(2)]
        assert torch.equal(*(torch.autograd.grad(y, x, g)[0] for y in (turned, wanted)))
