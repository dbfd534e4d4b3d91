"""Bits by role, and what they mean for the stored integers."""

import pytest
import torch

from techniques.base import ROLES
from techniques.config import resolve
from techniques.quantization.mixed_bits import MixedBits
from tests.techniques.evaluation_rig import TINY, tiny_model


def test_every_role_has_its_own_bits():
    technique = MixedBits(MixedBits.Config(attn_bits=4, mlp_bits=5, embed_bits=7, matrix_bits=6))
    expected = {"attn": 4, "mlp": 5, "embed": 7, "head": 7, "matrix": 6}
    assert {role: technique.bits(role) for role in ROLES} == dict.fromkeys(ROLES) | expected
    assert [MixedBits().bits(r) for r in ("attn", "mlp", "embed", "matrix")] == [6, 6, 8, 6]


def test_stored_integers_use_them_and_reload_exactly():
    from train_gpt import ZlibCodec, pack, quantize, unpack
    from trainer.seams import Seams

    known = {"mixed_bits": MixedBits}
    settings = {
        "mixed_bits": True,
        "mixed_bits.attn_bits": 4,
        "mixed_bits.mlp_bits": 5,
        "quantize_min_numel": 1,
    }
    resolved, model = resolve({"file": TINY | settings}, known), tiny_model()
    weights, seams = {n: p.detach().clone() for n, p in model.named_parameters()}, Seams(resolved)
    packed, _ = quantize(weights, model, seams, iter(()))
    bits = {"attn": 4, "mlp": 5, "embed": 8}
    for item, p in zip(packed, model.parameters(), strict=True):
        if item.scale is not None:
            qmax, s = 2 ** (bits[p.role] - 1) - 1, item.scale.float()[:, None]
            assert int(item.q.abs().max()) <= qmax
            inside = weights[item.name].abs() <= s * qmax
            error = (weights[item.name] - item.dequantized()).abs()
            assert (error <= s / 2 * (1 + 1e-5))[inside].all()
    _, loaded = unpack(pack(packed, resolved.values, ZlibCodec()), {"zlib": ZlibCodec()})
    assert all(torch.equal(loaded[item.name], item.dequantized()) for item in packed)
    assert seams.audit.report()["mixed_bits"]["verdict"] == "active"


def test_bits_outside_the_choices_are_refused():
    with pytest.raises(ValueError, match=r"mixed_bits\.attn_bits"):
        resolve({"file": {"mixed_bits": True, "mixed_bits.attn_bits": 3}}, {"mixed_bits": MixedBits})


def test_sixteen_bits_keep_the_embedding_as_float16():
    from train_gpt import quantize
    from trainer.seams import Seams

    settings = {"mixed_bits": True, "mixed_bits.embed_bits": 16, "quantize_min_numel": 1}
    resolved, model = resolve({"file": TINY | settings}, {"mixed_bits": MixedBits}), tiny_model()
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    packed, _ = quantize(weights, model, Seams(resolved), iter(()))
    stored = {item.name: item for item in packed}
    assert stored["tok_emb"].scale is None and stored["tok_emb"].q.dtype is torch.float16
    assert stored["blocks.0.mlp.fc.weight"].q.dtype is torch.int8
