"""LN scale: both normed inputs of block l are divided by √(l+1)."""

import math
from typing import Any

import pytest
import torch

import train_gpt
from techniques.base import Shape
from techniques.block.ln_scale import LnScale, LnScaleBy
from techniques.config import resolve

TINY = {"num_layers": 4, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 64}
TINY |= {"train_seq_len": 16, "train_batch_tokens": 128, "compute_dtype": "float32", "device": "cpu"}


def test_factors_enter_both_norms_and_add_no_parameters():
    model = train_gpt.build_model(resolve({"file": TINY | {"ln_scale": True}}, {"ln_scale": LnScale}))
    plain = train_gpt.build_model(resolve({"file": TINY}, {"ln_scale": LnScale}))
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    x = torch.randn(2, 5, 32)
    blocks: list[Any] = list(model.blocks)
    for layer, block in enumerate(blocks):
        seen = []
        for part in (block.attn.c_q, block.mlp.fc):
            part.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0]))
        block(x, x, {})
        expected = x / x.square().mean(-1, keepdim=True).add(torch.finfo(torch.float32).eps).sqrt()
        for n in seen:  # zero output projections: the MLP's input is the attention's
            torch.testing.assert_close(n, expected / math.sqrt(layer + 1))
        assert len(seen) == 2


def test_the_first_layer_is_not_entered_and_one_layer_is_refused():
    shape = Shape(64, 1, 32, 4, 2, 2.0, 16, 16)
    assert LnScale().norm(shape, 0) is None
    n = torch.ones(1, 1, 32)
    assert torch.equal(LnScaleBy(4**-0.5)(n), n / 2)
    with pytest.raises(ValueError, match="two layers"):
        LnScale().check(shape)
