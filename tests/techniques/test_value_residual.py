"""Value residual: v_l holds layer 0's raw values, in three ways."""

import pytest
import torch

from techniques.attention.value_residual import VALUE_RESIDUAL_MODES, ValueResidual
from techniques.base import Shape
from tests.techniques.model_rig import build, copy_shared, some_ids

ON = {"value_residual": True}
BESIDE = {"value_embedding": True, "value_embedding.last_n": 3, "value_embedding.dim": 8}
SHAPE = Shape(64, 3, 32, 4, 2, 2.0, 16, 16)


def attended_values(model) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """(raw projections, values that were attended to, value_embedding's addition) of every layer."""
    raw, attended, extra = [], [], []
    for block in model.blocks:
        block.attn.c_v.register_forward_hook(lambda _m, _a, out: raw.append(out.detach()))
        block.attn.attend.register_forward_pre_hook(lambda _m, args: attended.append(args[2].detach()))
    model.shared["value_embedding"].register_forward_hook(lambda _m, _a, out: extra.append(out.detach()))
    model.hidden(some_ids())
    return raw, attended, extra[0]


@pytest.mark.parametrize("mode", VALUE_RESIDUAL_MODES)
def test_mixes_layer_0s_raw_values_behind_the_value_embedding(mode: str):
    model = build({**ON, **BESIDE, "value_residual.mode": mode, "value_residual.alpha_init": -0.7})
    raw, attended, extra = attended_values(model)
    for layer, block in enumerate(model.blocks):
        steps = block.attn.values.steps
        v = raw[layer] + steps["value_embedding"].strength.detach() * extra
        if layer:
            w = steps["value_residual"].weight.detach()
            g = 1 / (1 + torch.exp(-w))
            if mode == "add":
                v = v + g * raw[0]
            elif mode == "interp":
                v = (1 - g) * v + g * raw[0]
            else:
                v = w[0] * raw[0] + w[1] * v
        torch.testing.assert_close(attended[layer].flatten(2), v)


@pytest.mark.parametrize("mode", ["add", "interp"])
def test_a_share_of_zero_is_the_plain_model(mode: str):
    model = build({**ON, "value_residual.mode": mode})
    plain = build({})
    copy_shared(model, plain)
    ids = some_ids()
    assert not torch.equal(model.hidden(ids), plain.hidden(ids))
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "value_residual" in n:
                p.fill_(-1e9)
    assert torch.equal(model.hidden(ids), plain.hidden(ids))


def test_every_layers_gradient_reaches_the_first_value_projection():
    for layer in (1, 2):
        for settings, reached in ((ON, True), ({}, False)):
            model = build(settings, move=False)  # output projections are zero: nothing else reaches layer 0
            with torch.no_grad():
                model.blocks[layer].attn.proj.weight.normal_()
            model.hidden(some_ids()).square().mul(torch.arange(32.0)).sum().backward()
            assert bool(model.blocks[0].attn.c_v.weight.grad.any()) == reached


@pytest.mark.parametrize(
    ("mode", "alpha", "first"),
    [("add", 0.0, 0.0), ("lambda", 0.0, [0.5, 0.5]), ("interp", -1.5, -1.5)],
)
def test_published_first_values_and_cost(mode: str, alpha: float, first):
    technique = ValueResidual(ValueResidual.Config(mode=mode, alpha_init=alpha))
    parts = [technique.values(SHAPE, layer) for layer in range(3)]
    params = [p for part in parts[1:] for p in part.parameters()]  # type: ignore[union-attr]
    for p in params:
        torch.testing.assert_close(p.detach(), torch.tensor(first))
    assert [tuple(p.shape) for p in params] == [t.shape for t in technique.cost(SHAPE).tensors]
    with pytest.raises(ValueError, match="two layers"):
        technique.check(Shape(64, 1, 32, 4, 2, 2.0, 16, 16))


def test_a_looped_first_layer_keeps_the_values_of_its_first_pass():
    loop = {"depth_recurrence": True, "depth_recurrence.start": 0, "depth_recurrence.end": 0}
    model = build({**ON, **loop})
    kept = []
    model.blocks[2].attn.values.steps["value_residual"].register_forward_pre_hook(
        lambda _m, args: kept.append(args[1]["value_residual"])
    )
    raw: list[torch.Tensor] = []
    model.blocks[0].attn.c_v.register_forward_hook(lambda _m, _a, out: raw.append(out))
    model.hidden(some_ids())
    assert len(raw) == 3 and torch.equal(kept[0].flatten(2), raw[0])
