"""resid_mix_phase: what early and late blocks read at first."""

import math

import pytest
import torch

from tests.techniques.model_rig import build, settle


@pytest.mark.parametrize("layers", [2, 11])
def test_first_values(layers: int):
    model = build({"num_layers": layers, "resid_mix_phase": True}, move=False)
    for layer, block in enumerate(model.blocks):
        a, b = block.resid_mix.detach()
        expected = 1 / (1 + math.exp(-3 * (layer / (layers - 1) - 0.5)))
        torch.testing.assert_close(a, torch.full((32,), expected))
        torch.testing.assert_close(a + b, torch.ones(32))
    assert float(model.blocks[0].resid_mix.detach()[0, 0]) == pytest.approx(
        0.1824, abs=1e-4
    )  # published 0.18/0.82
    assert float(model.blocks[-1].resid_mix.detach()[0, 0]) == pytest.approx(0.8176, abs=1e-4)


def test_touches_nothing_else_and_needs_two_layers():
    phased = dict(build({"resid_mix_phase": True}, move=False).named_parameters())
    for name, p in build({}, move=False).named_parameters():
        assert torch.equal(p, phased[name]) != name.endswith("resid_mix")
    with pytest.raises(ValueError, match="two layers"):
        settle({"resid_mix_phase": True, "num_layers": 1})
