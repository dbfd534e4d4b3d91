"""The first query gain: every layer is filled, and it multiplies attention scores."""

from typing import Any

import pytest
import torch

import train_gpt
from techniques.attention.qk_gain import QkGain
from techniques.config import resolve

TINY = {"num_layers": 2, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 64}
TINY |= {"train_seq_len": 16, "train_batch_tokens": 128, "compute_dtype": "float32", "device": "cpu"}


def build(**settings) -> train_gpt.GPT:
    return train_gpt.build_model(resolve({"file": TINY | settings}, {"qk_gain": QkGain}))


def scores(model: train_gpt.GPT) -> torch.Tensor:
    """Pre-softmax scores of layer 0, up to 1/√Dh, on a fixed input."""
    seen = []
    block: Any = model.blocks[0]
    attention = block.attn
    del attention.attend  # a module; a function stands in for it
    attention.attend = lambda q, k, v, *_: (seen.append(torch.einsum("bthd,bskd->bhts", q[:, :, ::2], k)), q)[
        1
    ]
    attention(torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(0)), {})
    return seen[0]


def test_fills_every_gain_and_nothing_else():
    plain, model = build(), build(qk_gain=True, **{"qk_gain.init": 4.0})
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, torch.full_like(p, 4.0) if name.endswith("q_gain") else q)
    assert sum(n.endswith("q_gain") for n, _ in model.named_parameters()) == 2


@pytest.mark.parametrize("gain", [1.0, 3.0])
def test_scores_are_proportional_to_the_gain(gain: float):
    plain = scores(build()) / 1.5  # the baseline's gain
    torch.testing.assert_close(scores(build(qk_gain=True, **{"qk_gain.init": gain})), gain * plain)
    torch.testing.assert_close(scores(build(qk_gain=True, **{"qk_gain.init": 2 * gain})), 2 * gain * plain)
