"""SDClip's scales row by row, in both quantisers, and what k and λ do to size and error."""

import math
import zlib
from typing import Any

import pytest
import torch

import train_gpt
from techniques import _quant
from techniques._quant import FINE_BYTES, PACKINGS, TRIES
from techniques.base import Unavailable
from techniques.config import resolve, stage_keys
from techniques.quantization.gptq import Gptq
from techniques.quantization.mixed_bits import MixedBits
from techniques.quantization.prune import Prune
from techniques.quantization.sdclip import STEPS_A_DOUBLING, SdClip, sd_scales
from tests.techniques.evaluation_rig import TINY, tiny_model, tiny_tokens
from tests.techniques.test_gptq import correlated
from trainer.artifact import ZlibCodec, pack, round_to_nearest
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


TARGETED = {"sdclip": True, "mixed_bits": True, "mixed_bits.attn_bits": 6, "mixed_bits.mlp_bits": 6}


def fitted(
    monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[list[Any], Seams, dict[str, torch.Tensor]]:
    """The tiny model's export under these settings and a script of no bytes; its weights."""
    monkeypatch.setattr(train_gpt, "submitted_script", lambda _resolved: b"")
    known = {"sdclip": SdClip, "mixed_bits": MixedBits, "gptq": Gptq, "prune": Prune}
    model = tiny_model()
    layer = TINY | TARGETED | {"quantize_min_numel": 1} | settings
    seams = Seams(resolve({"file": layer}, known))
    g = torch.Generator().manual_seed(5)
    trained = {n: p.detach() + 0.1 * torch.randn(p.shape, generator=g) for n, p in model.named_parameters()}
    tokens = tiny_tokens(64)[:64].view(2, 32).long()
    packed, _ = train_gpt.quantize(trained, model, seams, iter([(tokens, tokens)] * 2))
    return packed, seams, trained


def size_of(packed: list[Any], seams: Seams) -> int:
    return len(pack(packed, seams.resolved.head(), seams.codec()))


def bytes_under(
    monkeypatch: pytest.MonkeyPatch, multiple: float, target: int = 99_999, **settings: Any
) -> int:
    """Of the file with every k multiplied, when nothing is fitted to the target that its head tells."""
    with monkeypatch.context() as patch:
        patch.setattr(SdClip, "multiple", multiple)
        patch.setattr(SdClip, "fit", lambda _self, packed, *_: packed)
        packed, seams, _ = fitted(patch, **{"sdclip.target_bytes": target}, **settings)
        return size_of(packed, seams)


@pytest.mark.parametrize("most", [PACKINGS, TRIES], ids=["as if large", "small"])
@pytest.mark.parametrize("more", [{}, {"gptq": True, "gptq.calib_batches": 2}], ids=["plain", "gptq"])
def test_k_comes_to_a_size_as_when_every_multiple_is_tried(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], most: int
) -> None:
    monkeypatch.setattr(_quant, "TRIES", most)
    multiples = [2 ** (i / 8) for i in range(-6, 17)]
    sizes = [bytes_under(monkeypatch, m, **more) for m in multiples]
    for target in (sizes[2] + 3, sizes[6] - 40, sizes[14] + 20):
        packed, seams, _ = fitted(monkeypatch, **more, **{"sdclip.target_bytes": target})
        facts = seams.audit.report()["sdclip"]
        made = len(seams.made)
        assert facts["fits"] and facts["packings"] == made <= most
        assert size_of(packed, seams) == facts["bytes_after"] <= target and len(seams.made) == made
        assert facts["verdict"] == "active" and abs(facts["estimated_bytes"] - target) < 0.05 * target
        assert bytes_under(monkeypatch, facts["fit_multiple"], target, **more) == facts["bytes_after"]
        least = min(m for m, size in zip(multiples, sizes, strict=True) if size <= target)
        assert facts["fit_multiple"] < 1.03 * least, (target, facts, least)
        assert target - facts["bytes_after"] <= 3 * FINE_BYTES
        if most > PACKINGS and made < most:  # nothing but the edge ended it
            finer = facts["fit_multiple"] * 2 ** (-1 / STEPS_A_DOUBLING)
            assert bytes_under(monkeypatch, finer, target, **more) > target
        assert seams.techniques["sdclip"].multiple == 1.0  # type: ignore[attr-defined]


def test_the_report_is_of_the_attempt_that_is_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of one behind it that did not fit."""
    more = {"prune": True, "prune.fraction": 0.05, "gptq": True, "gptq.calib_batches": 2}
    late = 0
    for target in range(10_700, 11_100, 40):
        packed, seams, _ = fitted(monkeypatch, **more, **{"sdclip.target_bytes": target})
        told = seams.audit.report()
        late += [*seams.made.values()][-1] != pack(packed, seams.resolved.head(), ZlibCodec())
        assert told["prune"]["bytes_after"] == told["sdclip"]["bytes_after"] == size_of(packed, seams)
    assert late


def test_bytes_that_are_left_buy_no_clip_that_errs_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def error(packed: list[Any], trained: dict[str, torch.Tensor]) -> float:
        return sum(float((p.dequantized() - trained[p.name]).square().sum()) for p in packed)

    packed, seams, trained = fitted(monkeypatch, **{"sdclip.target_bytes": 10**7})
    facts = seams.audit.report()["sdclip"]
    assert facts["fit_multiple"] < 1 and facts["packings"] == 2 and facts["fits"]
    wide = fitted(monkeypatch)[0]
    narrow = fitted(
        monkeypatch, **{f"sdclip.{n}_k": 0.6 * 12.85 * facts["fit_multiple"] for n in ("attn", "mlp")}
    )[0]
    matrices = [[p for p in found if ".blocks." in f".{p.name}"] for found in (packed, wide, narrow)]
    ours, wider, narrower = (error(found, trained) for found in matrices)
    assert ours < wider and ours < narrower


def test_a_size_out_of_reach_is_told_and_two_that_aim_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, seams, _ = fitted(monkeypatch, **{"sdclip.target_bytes": 500})
    facts = seams.audit.report()["sdclip"]
    assert not facts["fits"] and facts["fit_multiple"] == 16.0
    found = [line for line in seams.audit.findings() if line.startswith("sdclip: target_bytes must be")]
    assert len(found) == 1 and f"got 500 and {facts['bytes_after']:,}. Raise target_bytes" in found[0]
    both = {"prune": True, "prune.target_bytes": 9000, "sdclip.target_bytes": 9000}
    with pytest.raises(ValueError, match="prune and sdclip are set"):
        fitted(monkeypatch, **both)


def test_the_size_is_part_of_what_is_stored() -> None:
    known = {"sdclip": SdClip}
    one, other = (
        resolve({"file": {"sdclip": True, "sdclip.target_bytes": 9000, "val_batch_size": size}}, known)
        for size in (1 << 15, 1 << 16)
    )
    keys = [stage_keys(resolved, {"": "c"}, "d")["quantize"] for resolved in (one, other)]
    assert keys[0] != keys[1]
