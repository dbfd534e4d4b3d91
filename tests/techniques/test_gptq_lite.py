"""GPTQ-lite against the loop over percentiles, rows and elements."""

import math

import pytest
import torch

from techniques._quant import CLIP_PERCENTILES, clip_scales, quantize_lite, rows_at_floor
from techniques.quantization.gptq_lite import GptqLite


def heavy(rows: int = 6, columns: int = 400, seed: int = 0) -> torch.Tensor:
    """Rows with outliers: a clip below the maximum pays."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=g) * torch.rand(rows, columns, generator=g).pow(-0.3)


def slow_quantile(values: list[float], p: float) -> float:
    values = sorted(values)
    at = p * (len(values) - 1)
    low = math.floor(at)
    return values[low] + (values[min(low + 1, len(values) - 1)] - values[low]) * (at - low)


def mean_squared_error(w: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> float:
    return float((w - q.float() * scale.float()[:, None]).double().square().mean())


def slow(w: torch.Tensor, bits: int, floor: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    qmax, best = 2 ** (bits - 1) - 1, None
    for p in (0.999, 0.9995, 0.9999, 0.99999, 1.0):
        q, scales = torch.zeros_like(w, dtype=torch.int8), []
        for i, row in enumerate(w.tolist()):
            s = max(slow_quantile([abs(x) for x in row], p) / qmax, floor)
            s = float(torch.tensor(s).half())
            scales.append(s)
            q[i] = torch.tensor([max(-qmax, min(qmax, round(x / s))) for x in row])
        scale = torch.tensor(scales).half()
        error = mean_squared_error(w, q, scale)
        if best is None or error < best[2]:
            best = (q, scale, error)
    return best


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("floor", ["tiny", "published"])
def test_equals_the_loop(bits: int, floor: str):
    w = heavy()
    q, scale = GptqLite(GptqLite.Config(scale_floor=floor)).quantizer().quantize("w", w, bits)
    slow_q, slow_scale, error = slow(w, bits, 1e-7 if floor == "tiny" else 1 / (2 ** (bits - 1) - 1))
    assert torch.equal(scale, slow_scale) and q.dtype is torch.int8 and scale.dtype is torch.float16
    assert int((q != slow_q).sum()) == 0
    assert mean_squared_error(w, q, scale) == pytest.approx(error)


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
def test_never_worse_than_the_rows_maximum_and_often_better(size: int):
    better = 0
    for seed in range(5):
        for bits in (4, 5, 6, 8):
            w = heavy(seed=seed) * size
            qmax = 2 ** (bits - 1) - 1
            s = (w.abs().amax(1) / qmax).half()
            plain = (w / s.float()[:, None]).round().clamp(-qmax, qmax).to(torch.int8)
            ours, theirs = (
                mean_squared_error(w, *quantize_lite(w, bits, "tiny")),
                mean_squared_error(w, plain, s),
            )
            assert ours <= theirs
            better += ours < 0.99 * theirs
    assert better >= 5


def test_the_published_floor_makes_the_search_a_no_op_for_small_rows():
    w = heavy() * 0.02
    assert w.abs().max() < 1.0
    scales = clip_scales(w, 6, "published")
    assert bool((scales == scales[0, 0]).all()) and float(scales[0, 0]) == pytest.approx(1 / 31, rel=1e-3)
    assert (
        rows_at_floor(scales[0], 6, "published") == 6
        and rows_at_floor(clip_scales(w, 6, "tiny")[0], 6, "tiny") == 0
    )
    assert mean_squared_error(w, *quantize_lite(w, 6, "tiny")) < mean_squared_error(
        w, *quantize_lite(w, 6, "published")
    )


def test_zero_rows_large_matrices_and_calibration():
    quantizer = GptqLite().quantizer()
    quantizer.calibrate(None, iter(()))
    w = torch.cat((torch.zeros(1, 64), torch.ones(2, 64)))
    q, scale = quantizer.quantize("w", w, 6)
    assert not q[0].any() and float(scale[0]) > 0 and quantizer.facts == {"rows_at_floor": 1}
    torch.testing.assert_close(q.float() * scale.float()[:, None], w, atol=1e-3, rtol=1e-3)
    assert CLIP_PERCENTILES[-1] == 1.0
    tall = torch.zeros(2**19, 33)  # more elements than torch.quantile takes at once
    assert clip_scales(tall, 8, "tiny").shape == (5, 2**19)
