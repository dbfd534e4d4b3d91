"""Gates as int8: 1 % at most, gates only, and fewer bytes."""

from types import SimpleNamespace

import torch

from techniques.quantization.quant_gate import QuantGate
from trainer.artifact import Packed


def test_gates_become_integers_within_one_percent_and_nothing_else_does():
    g = torch.Generator().manual_seed(0)
    weights = {n: torch.randn(8, 12, generator=g) for n in ("gate", "skip", "embedding")}
    weights |= {"vector": torch.randn(96, generator=g), "tiny": torch.randn(2, 2, generator=g)}
    roles = {"gate": "gate", "skip": "scalar", "embedding": "embed", "vector": "gate", "tiny": "gate"}
    packed = [Packed(n, w.half() if roles[n] != "scalar" else w, None) for n, w in weights.items()]
    out = QuantGate().correct(packed, SimpleNamespace(weights=weights, roles=roles))
    assert all(a is b for a, b in zip(packed[1:], out[1:], strict=True))
    stored, w = out[0], weights["gate"]
    assert stored.q.dtype is torch.int8 and stored.scale is not None and stored.scale.dtype is torch.float16
    top = w.abs().amax(1, keepdim=True)
    assert float(((stored.dequantized() - w).abs() / top).max()) < 0.01
    assert float((stored.dequantized() - w).norm() / w.norm()) < 0.01
    assert stored.q.numel() + 2 * stored.scale.numel() < 2 * w.numel()


def test_a_row_of_zeros_survives():
    weights = {"gate": torch.zeros(4, 12)}
    packed = [Packed("gate", weights["gate"].half(), None)]
    export = SimpleNamespace(weights=weights, roles={"gate": "gate"})
    assert not QuantGate().correct(packed, export)[0].dequantized().any()
