"""SmearGate's three variants against the explicit loop over positions."""

import pytest
import torch

from techniques.base import Shape
from techniques.embedding.smear_gate import SMEAR_MODES, SmearGate

SHAPE = Shape(64, 3, 32, 4, 2, 2.0, 16, 16)


def build(mode: str, *, move: bool):
    technique = SmearGate(SmearGate.Config(mode=mode, window=5))
    module = technique.embed_in(SHAPE) or technique.embed_out(SHAPE)
    assert module is not None
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * move)
    return module.double()


def slow(module, mode: str, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for b in range(x.size(0)):
        for t in range(x.size(1)):
            before = x[b, t - 1] if t else torch.zeros_like(x[b, t])
            if mode == "input_gate":
                gate = module.strength * torch.sigmoid(module.weight @ x[b, t, : module.window])
                out[b, t] = x[b, t] + (0 if ids[b, t] == 1 else gate * before)
            else:
                g = torch.sigmoid(module.gate)
                out[b, t] = (
                    g * x[b, t] + (1 - g) * before if mode == "previous" else (1 - g) * x[b, t] + g * before
                )
    return out


@pytest.mark.parametrize("mode", SMEAR_MODES)
def test_equals_the_loop_and_each_position_sees_itself_and_the_one_before(mode: str):
    torch.manual_seed(0)
    module, x = build(mode, move=True), torch.randn(2, 8, 32, dtype=torch.float64)
    ids = torch.randint(0, 4, (2, 8))  # BOS (1) is frequent
    out = module(x, ids)
    torch.testing.assert_close(out, slow(module, mode, x, ids))
    for t in range(8):
        other = x.clone()
        other[:, t] += 1.0
        same = (module(other, ids) == out).all(-1)
        assert same[:, :t].all() and same[:, t + 2 :].all() and not same[:, t].any()


def test_first_values_are_the_published_ones():
    x, ids = torch.randn(1, 6, 32, dtype=torch.float64), torch.full((1, 6), 7)
    before = torch.cat((torch.zeros(1, 1, 32), x[:, :-1]), 1)
    torch.testing.assert_close(build("average", move=False)(x, ids), (x + before) / 2)
    own = 1 / (1 + torch.e**-3.0)
    torch.testing.assert_close(build("previous", move=False)(x, ids), own * x + (1 - own) * before)
    assert torch.equal(build("input_gate", move=False)(x, ids), x)


def test_with_the_mask_a_document_never_reaches_the_next_one():
    torch.manual_seed(0)
    module, x = build("input_gate", move=True), torch.randn(1, 8, 32, dtype=torch.float64)
    ids = torch.tensor([[1, 9, 9, 9, 1, 9, 9, 9]])
    other = x.clone()
    other[:, :4] = torch.randn(1, 4, 32, dtype=torch.float64)
    assert torch.equal(module(x, ids)[:, 4:], module(other, ids)[:, 4:])
    ids[0, 4] = 9  # no BOS: now it does
    assert not torch.equal(module(x, ids)[:, 4], module(other, ids)[:, 4])


def test_gradient_reaches_every_parameter_of_the_identity_start():
    torch.manual_seed(0)
    module, x = build("input_gate", move=False), torch.randn(2, 8, 32, dtype=torch.float64)
    ids = torch.full((2, 8), 7)
    module(x, ids).pow(3).sum().backward()
    with torch.no_grad():  # one step of gradient descent: the strength moves first, then the weight can
        for p in module.parameters():
            assert p.grad is not None
            p.sub_(0.1 * p.grad)
    module.zero_grad()
    module(x, ids).pow(3).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("mode", SMEAR_MODES)
def test_one_seam_per_mode_and_exact_cost(mode: str):
    technique = SmearGate(SmearGate.Config(mode=mode))
    parts = [m for m in (technique.embed_in(SHAPE), technique.embed_out(SHAPE)) if m is not None]
    assert len(parts) == 1 and (technique.embed_out(SHAPE) is not None) == (mode == "average")
    got = [(p.role, tuple(p.shape)) for p in parts[0].parameters()]  # type: ignore[attr-defined]
    assert got == [(t.role, t.shape) for t in technique.cost(SHAPE).tensors]
    assert technique.cost(SHAPE).params == (13 if mode == "input_gate" else 32)


def test_a_window_wider_than_the_model_is_refused():
    with pytest.raises(ValueError, match="at most model_dim"):
        SmearGate(SmearGate.Config(mode="input_gate", window=33)).check(SHAPE)
