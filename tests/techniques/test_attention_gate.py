"""Attention gates: one per head and token, four published variants."""

import math

import pytest
import torch

from techniques.attention.attention_gate import ATTENTION_GATE_MODES, AttentionGate
from techniques.base import Shape
from tests.techniques.model_rig import build, some_ids

SHAPE = Shape(64, 3, 32, 4, 2, 2.0, 16, 16)


def module_of(mode: str, **more):
    technique = AttentionGate(AttentionGate.Config(mode=mode, **{"window": 5, **more}))
    return technique, technique.attn_out(SHAPE, 0)


@pytest.mark.parametrize("mode", ATTENTION_GATE_MODES)
def test_equals_the_loop_over_heads_and_positions(mode: str):
    torch.manual_seed(0)
    _, module = module_of(mode, kappa=0.7)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p))
    y, v, n = torch.randn(2, 6, 4, 8), torch.randn(2, 6, 2, 8), torch.randn(2, 6, 32)
    out, w, bias = module(y, v, n), module.weight.detach(), torch.zeros(4)
    if module.bias is not None:
        bias = module.bias.detach()
    for b in range(2):
        for t in range(6):
            for h in range(4):
                z = float(w[h] @ n[b, t, : w.size(1)])
                z = z + float(bias[h]) if mode == "bias" else z
                gate = 1 / (1 + math.exp(-(0.7 * z if mode == "sparse" else z)))
                gate = 2 * gate if mode == "out" else gate
                torch.testing.assert_close(out[b, t, h], gate * y[b, t, h], rtol=1e-5, atol=1e-6)
    assert w.size(1) == (5 if mode in ("out", "sparse") else 32)


def test_first_values_are_the_published_ones():
    y, n = torch.randn(2, 6, 4, 8), torch.randn(2, 6, 32)
    assert torch.equal(module_of("out")[1](y, y, n), y)
    assert torch.equal(module_of("sparse")[1](y, y, n), 0.5 * y)
    torch.testing.assert_close(module_of("bias")[1](y, y, n), y / (1 + math.exp(-4.0)))
    torch.manual_seed(0)
    gated = module_of("gated")[1]
    assert float(gated.weight.detach().std()) == pytest.approx(0.005, rel=0.2)
    torch.testing.assert_close(gated(y, y, n), 0.5 * y, rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("mode", "params"), [("out", 1056), ("sparse", 1056), ("gated", 45_056), ("bias", 45_144)]
)
def test_exact_cost_at_full_size(mode: str, params: int):
    full = Shape(8192, 11, 512, 8, 4, 4.0, 2048, 2048)
    technique = AttentionGate(AttentionGate.Config(mode=mode))
    assert technique.cost(full).params == params
    built = [p for layer in range(11) for p in technique.attn_out(full, layer).parameters()]
    assert [(p.role, tuple(p.shape)) for p in built] == [  # type: ignore[attr-defined]
        (t.role, t.shape) for t in technique.cost(full).tensors
    ]


def test_gates_what_xsa_left_and_reads_the_normed_input():
    model = build({"attention_gate": True, "xsa": True, "xsa.last_n": 3, "ln_scale": True})
    chain = model.blocks[1].attn.attn_out
    assert list(chain.steps) == ["xsa", "attention_gate"]
    read, normed = [], []
    chain.steps["attention_gate"].register_forward_pre_hook(lambda _m, args: read.append(args[2]))
    model.blocks[1].attn.c_q.register_forward_pre_hook(lambda _m, args: normed.append(args[0]))
    model.hidden(some_ids())
    assert torch.equal(read[0], normed[0])


def test_a_window_wider_than_the_model_is_refused():
    with pytest.raises(ValueError, match="at most model_dim"):
        module_of("sparse", window=33)[0].check(SHAPE)
    module_of("gated", window=33)[0].check(SHAPE)  # which never reads it
