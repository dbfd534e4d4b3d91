"""The MLP's gate, and gates that read queries: formulas written out."""

import math

import pytest
import torch

from techniques.attention.attention_gate import AttentionGate
from techniques.base import Shape
from techniques.block.mlp_gate import MlpGate
from tests.techniques.model_rig import build, some_ids

SHAPE = Shape(64, 3, 32, 4, 2, 2.0, 16, 16)


@pytest.mark.parametrize("leaky", [False, True])
def test_the_mlps_gate_is_a_number_a_token(leaky: bool):
    technique = MlpGate(MlpGate.Config(window=5))
    module, n = technique.norm(SHAPE, 0), torch.randn(2, 6, 32)
    torch.testing.assert_close(module(n, {}, "mlp"), n)
    mlp = build({"leaky_relu2": leaky}).blocks[0].mlp
    with torch.no_grad():
        module.weight.normal_()
    assert module(n, {}, "attn") is n
    out = mlp(module(n, {}, "mlp"))
    for b in range(2):
        for t in range(6):
            gate = 2 / (1 + math.exp(-float(module.weight[0].detach() @ n[b, t, :5])))
            torch.testing.assert_close(out[b, t], gate * mlp(n[b, t]), rtol=1e-4, atol=1e-5)
    assert technique.cost(SHAPE).params == 15
    with pytest.raises(ValueError, match=r"mlp_gate\.window"):
        MlpGate(MlpGate.Config(window=33)).check(SHAPE)


def test_a_gate_from_the_queries_reads_the_projection_before_its_norm():
    model = build({"attention_gate": True, "attention_gate.source": "q", "attention_gate.window": 5})
    block, seen = model.blocks[1], []
    gate = block.attn.attn_out.steps["attention_gate"]
    handle = gate.register_forward_hook(lambda _m, args, out: seen.append((args, out)))
    projected = []
    other = block.attn.c_q.register_forward_hook(lambda _m, _a, out: projected.append(out))
    model.hidden(some_ids())
    handle.remove()
    other.remove()
    (y, _, n, _), out = seen[0]
    z = projected[0][..., :5] @ gate.weight.T
    torch.testing.assert_close(out, y * (2 * torch.sigmoid(z)).unsqueeze(-1), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(projected[0], n)
    assert AttentionGate(AttentionGate.Config(source="q")).cost(SHAPE) == AttentionGate().cost(SHAPE)
