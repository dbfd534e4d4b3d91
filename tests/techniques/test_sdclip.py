"""SDClip's scales row by row, in both quantisers, and what k and λ do to size and error."""

import math
import zlib

import pytest
import torch

import train_gpt
from techniques.base import Unavailable
from techniques.config import resolve
from techniques.quantization.gptq import Gptq
from techniques.quantization.sdclip import SdClip, sd_scales
from tests.techniques.evaluation_rig import TINY, tiny_model, tiny_tokens
from tests.techniques.test_gptq import correlated
from trainer.artifact import round_to_nearest
from trainer.seams import Seams


def weights(rows: int = 40, columns: int = 256) -> torch.Tensor:
    g = torch.Generator().manual_seed(2)
    return torch.randn(rows, columns, generator=g) * torch.rand(rows, 1, generator=g).add(0.2)


def rule(role: str = "attn", **settings):
    return SdClip(SdClip.Config(**settings)).row_scale(role)


def test_equals_the_formula_row_by_row():
    w = weights(5, 30).double()
    got = sd_scales(w, 6, 12.85, None, 0.3)
    for row, s in zip(w, got, strict=True):
        mean = float(row.mean())
        sd = math.sqrt(sum((float(x) - mean) ** 2 for x in row) / 29)
        assert float(s) == pytest.approx(12.85 * sd / 31, rel=1e-3)


def test_the_hessian_widens_rows_with_large_inputs_and_keeps_their_mean():
    w, h = weights(6, 24), correlated(24)
    h[:8, :8] *= 20.0
    plain, aware = (sd_scales(w, 6, 10.0, h, x).double() for x in (0.0, 0.175))
    r = torch.tensor([sum(abs(float(w[i, j])) * float(h[j, j]) for j in range(24)) for i in range(6)])
    expected = plain * (1 + 0.175 * (r / r.mean() - 1)).double()
    torch.testing.assert_close(aware, expected, rtol=2e-3, atol=1e-6)
    factors = aware / plain
    assert float(factors.mean()) == pytest.approx(1.0, abs=1e-3) and float(factors.std()) > 0.01
    torch.testing.assert_close(sd_scales(w, 6, 10.0, 7.0 * h, 0.175).double(), aware)  # H's unit is nothing


def test_the_clip_is_scale_equivariant_and_the_size_falls_with_k():
    w = weights()
    torch.testing.assert_close(rule()(4 * w, 6, None), 4 * rule()(w, 6, None))
    sizes = []
    for k in (4.0, 8.0, 12.85, 20.0, 30.0):
        q, scale = round_to_nearest(w, 6, rule(attn_k=k))
        inside = (w.abs() <= 31 * scale.float()[:, None]).float().mean()
        assert float(inside) > 0.999 if k >= 8 else True
        sizes.append(len(zlib.compress(q.numpy().tobytes(), 9)))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 1.5 * sizes[-1]
    q, _ = round_to_nearest(w, 6, rule(attn_k=12.85))
    assert int(q.abs().max()) <= 13 and q.float().std() == pytest.approx(2.41, abs=0.05)
    counts = torch.unique(q, return_counts=True)[1] / q.numel()
    assert float(-(counts * counts.log2()).sum()) == pytest.approx(3.33, abs=0.05)


def test_roles_have_their_own_k():
    w, given = weights(), {"attn_k": 8.0, "mlp_k": 9.0, "embed_k": 10.0, "matrix_k": 11.0}
    for role, k in {"attn": 8.0, "mlp": 9.0, "embed": 10.0, "head": 10.0, "matrix": 11.0}.items():
        torch.testing.assert_close(rule(role, **given)(w, 6, None), sd_scales(w, 6, k, None, 0.0))


def test_gptq_rounds_under_these_scales():
    quantizer = Gptq(Gptq.Config(block_size=16)).quantizer()
    w, h = weights(8, 48), correlated(48)
    quantizer.hessians["w"] = h
    for name in ("w", "other"):  # the latter falls back
        q, scale = quantizer.quantize(name, w, 6, rule(attn_k=10.0))
        assert torch.equal(scale, sd_scales(w, 6, 10.0, None, 0.0)) and q.dtype is torch.int8
    quantizer.hessians["bad"] = torch.full((48, 48), torch.nan)
    unknown = quantizer.quantize("bad", w, 6, rule(attn_k=10.0, hessian_lambda=0.2))[1]
    assert torch.equal(unknown, sd_scales(w, 6, 10.0, torch.eye(48), 0.2))
    aware = quantizer.quantize("w", w, 6, rule(attn_k=10.0, hessian_lambda=0.2))[1]
    assert torch.equal(aware, sd_scales(w, 6, 10.0, h, 0.2)) and not torch.equal(aware, scale)


def test_a_lambda_that_nothing_can_serve_is_refused_and_a_constant_row_divides():
    with pytest.raises(Unavailable, match="Turn gptq on"):
        rule(hessian_lambda=0.1)(weights(), 6, None)
    rule("embed", hessian_lambda=0.1)(weights(), 6, None)  # gptq has none for it either
    q, scale = round_to_nearest(torch.full((2, 8), 0.5), 6, rule())
    assert bool((scale > 0).all()) and int(q.abs().max()) == 31


def test_the_exports_scales_are_the_hessian_aware_ones():
    known, model = {"gptq": Gptq, "sdclip": SdClip}, tiny_model()
    settings = {"gptq": True, "gptq.calib_batches": 2, "sdclip": True, "sdclip.hessian_lambda": 0.175}
    resolved = resolve({"file": TINY | settings | {"gptq.embedding": True, "quantize_min_numel": 1}}, known)
    tokens = tiny_tokens(64)[:64].view(2, 32).long()
    trained, seams = {n: p.detach().clone() for n, p in model.named_parameters()}, Seams(resolved)
    packed, _ = train_gpt.quantize(trained, model, seams, iter([(tokens, tokens)] * 2))
    quantizer = Gptq(Gptq.Config(calib_batches=2, embedding=True)).quantizer()
    quantizer.calibrate(model, iter([(tokens, tokens)] * 2))
    assert len(quantizer.hessians) == 13
    for item in packed:
        if item.name in quantizer.hessians:
            k = 20.0 if item.name == "tok_emb" else 12.85
            assert item.scale is not None
            wide = sd_scales(trained[item.name], 8, k, quantizer.hessians[item.name], 0.175)
            assert torch.equal(item.scale, wide)
            assert not torch.equal(wide, sd_scales(trained[item.name], 8, k, None, 0.0))
    assert seams.audit.report()["sdclip"]["verdict"] == "active"
