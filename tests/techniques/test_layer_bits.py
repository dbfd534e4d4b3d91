"""Bits by layer."""

import pytest

from techniques.quantization.layer_bits import LayerBits


class Export:
    def __init__(self):
        self.roles = {
            f"blocks.{i}.{n}": r for i in range(5) for n, r in (("attn.c_q.weight", "attn"), ("x", "matrix"))
        }
        self.roles["tok_emb"] = "embed"
        self.facts = {}

    def note(self, **facts):
        self.facts |= facts


@pytest.mark.parametrize(
    ("settings", "layers"), [({"middle": 1}, {2}), ({"middle": 3}, {1, 2, 3}), ({"layers": "0, 4"}, {0, 4})]
)
def test_the_matrices_of_the_layers_named(settings: dict, layers: set[int]):
    export = Export()
    bits = dict.fromkeys(export.roles, 8)
    found = LayerBits(LayerBits.Config(bits=5, **settings)).tensor_bits(bits, export)
    own = {f"blocks.{i}.attn.c_q.weight" for i in layers}
    assert found == {n: 5 if n in own else 8 for n in bits} and export.facts == {"matrices": len(own)}


@pytest.mark.parametrize("settings", [{"middle": 6}, {"layers": "5"}, {"layers": "a"}, {"layers": ","}])
def test_no_layer_of_the_model(settings: dict):
    with pytest.raises(ValueError, match="layer_bits"):
        LayerBits(LayerBits.Config(**settings)).chosen(5)
