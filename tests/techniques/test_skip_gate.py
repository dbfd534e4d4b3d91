"""Skip gates: a blend of the stream and each skip; skips come back last in, first out."""

import pytest
import torch

from techniques.base import Shape
from techniques.block.skip_gate import SkipGate, SkipGates
from tests.techniques.model_rig import build, settle, some_ids, streams

FIVE = {"num_layers": 5}


def test_equals_the_formula_dimension_by_dimension():
    torch.manual_seed(0)
    module = SkipGates(3, 8)
    with torch.no_grad():
        module.gates.normal_()
    x, skip, w = torch.randn(2, 4, 8), torch.randn(2, 4, 8), torch.randn(8)
    out = module(x, skip, w, 1)
    for d in range(8):
        g = 1 / (1 + torch.exp(-module.gates[1, d].detach()))
        torch.testing.assert_close(out[..., d], g * x[..., d] + (1 - g) * w[d] * skip[..., d])
    half = SkipGates(3, 8)(x, skip, torch.ones(8), 0)
    torch.testing.assert_close(half, 0.5 * x + 0.5 * skip)


@pytest.mark.parametrize("layers", [4, 5])
@pytest.mark.parametrize("settings", [{}, {"skip_gate": True}])
def test_skips_are_last_in_first_out_and_as_many_as_the_shorter_half(layers: int, settings: dict):
    model = build({"num_layers": layers, **settings})
    taken: list[tuple[torch.Tensor, int]] = []
    model.skip.register_forward_pre_hook(lambda _m, args: taken.append((args[1], args[3])))
    out = [after for _, _, after in streams(model, some_ids())]
    assert [j for _, j in taken] == [0, 1] and len(taken) == min(layers // 2, layers - layers // 2)
    assert torch.equal(taken[0][0], out[1]) and torch.equal(taken[1][0], out[0])


def test_wide_open_gates_equal_a_model_without_skips():
    gated, none = build({**FIVE, "skip_gate": True}), build({**FIVE, "unet_skips": False})
    copy_shared_but_skips(gated, none)
    with torch.no_grad():
        gated.skip.steps["skip_gate"].gates.fill_(1e9)
    ids = some_ids()
    assert torch.equal(gated.hidden(ids), none.hidden(ids))
    assert none.skip_weights.numel() == 0


def copy_shared_but_skips(source, target) -> None:
    own = {n: p for n, p in source.named_parameters() if n != "skip_weights"}
    with torch.no_grad():
        for n, p in target.named_parameters():
            if n in own:
                p.copy_(own[n])


def test_no_skips_equal_zero_skip_weights():
    none, zero = build({**FIVE, "unet_skips": False}), build(FIVE)
    copy_shared_but_skips(none, zero)
    with torch.no_grad():
        zero.skip_weights.zero_()
    ids = some_ids()
    torch.testing.assert_close(none.hidden(ids), zero.hidden(ids))


def test_cost_with_and_without_loops_and_refusals():
    assert SkipGate().cost(Shape(64, 11, 32, 4, 2, 2.0, 16, 16)).params == 5 * 32
    looped = settle(
        {"num_layers": 11, "skip_gate": True, "depth_recurrence": True, "depth_recurrence.start": 4}
    )
    assert looped.shape().num_skips == 7
    assert looped.techniques["skip_gate"].cost(looped.shape()).params == 7 * 32
    for settings in ({"num_layers": 1}, {"unet_skips": False}):
        with pytest.raises(ValueError, match="needs a skip"):
            settle({**settings, "skip_gate": True})
