"""Bits of stored integers: against rounded normal weights, the codecs, and the trainer's choice of bits."""

from __future__ import annotations

import lzma
import zlib
from collections import Counter
from typing import Any

import brotli  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
import pytest
import zstandard

import train_gpt
from search.costs.bills import (
    ENTROPIES,
    K_TIMES,
    OVERHEAD,
    Rounded,
    gaussian_bits,
    plain_entropy,
    pruned,
    stored_tensors,
)
from techniques import catalog
from techniques.base import claims
from techniques.config import resolve
from techniques.quantization.sdclip import MULTIPLES
from trainer.artifact import RoundToNearest
from trainer.seams import Seams

RNG = np.random.default_rng(0)


def entropy_of(q: np.ndarray) -> float:
    share = np.unique(q, return_counts=True)[1] / q.size
    return float(-(share * np.log2(share)).sum())


@pytest.mark.parametrize(("bits", "columns"), [(8, 512), (6, 512), (5, 128)])
def test_entropy_is_that_of_a_gaussian_row(bits: int, columns: int) -> None:
    rows = RNG.normal(size=(2000, columns))
    q = np.round(rows / np.abs(rows).max(1, keepdims=True) * (2 ** (bits - 1) - 1))
    assert abs(Rounded(bits, columns, 0.3).entropy() - entropy_of(q)) < 0.15
    assert Rounded(bits, columns, 0.3).sensitivity() == 0.0  # the step is a share of the row


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.25])
def test_under_a_floor_small_weights_take_few_bits(sigma: float) -> None:
    w = RNG.normal(0.0, sigma, (4000, 64))
    step = np.maximum(1.0, np.abs(w).max(1, keepdims=True)) / 127
    told = Rounded(8, 64, sigma, floor=True)
    assert abs(told.entropy() - entropy_of(np.round(w / step))) < 0.06
    wider = entropy_of(np.round(1.1 * w / np.maximum(1.0, 1.1 * np.abs(w).max(1, keepdims=True)) * 127))
    slope = (wider / entropy_of(np.round(w / step)) - 1.0) / 0.1
    assert told.sensitivity() == pytest.approx(slope, abs=0.05)


@pytest.mark.parametrize("sigma", [0.4, 1.2, 3.0, 20.0])
@pytest.mark.parametrize("fraction", [0.0, 0.03, 0.3])
def test_what_is_pruned_takes_fewer_bits(sigma: float, fraction: float) -> None:
    w = RNG.normal(0.0, sigma, 400_000)
    q = np.round(w)
    order = np.argsort(np.abs(q) * 1e9 + np.abs(w))
    order = order[q[order] != 0]
    q[order[: round(fraction * len(order))]] = 0
    assert gaussian_bits(sigma, fraction) == pytest.approx(entropy_of(q), abs=0.03)


def test_pruning_takes_the_least_of_all_matrices() -> None:
    matrices = [Rounded(8, 64, 0.1), Rounded(8, 64, 0.3), Rounded(6, 64, 0.2)]
    elements = [100_000, 300_000, 200_000]
    found = pruned(matrices, elements, 0.1)
    weights = [RNG.normal(0.0, m.sigma, n) for m, n in zip(matrices, elements, strict=True)]
    stored = [np.round(w / m.step) * m.step for w, m in zip(weights, matrices, strict=True)]
    whole = np.sort(np.abs(np.concatenate(stored)))
    whole = whole[whole > 0]
    threshold = whole[round(0.1 * len(whole))]
    for w, one in zip(stored, found, strict=True):
        kept = np.abs(w[w != 0])
        assert one.pruned == pytest.approx((kept < threshold).mean(), abs=0.03)
    ones = np.abs(np.round(weights[2] / matrices[2].step))
    assert matrices[2].ones() == pytest.approx((ones == 1).sum() / (ones > 0).sum(), abs=0.01)


def test_what_changes_bits_tells_them_beforehand() -> None:
    moving = [t for t in catalog.metadata().values() if "tensor_bits" in claims(t)]
    assert len(moving) > 1 and all("planned_bits" in vars(technique) for technique in moving)


def test_a_fit_to_bytes_has_the_range_of_the_technique() -> None:
    assert K_TIMES == MULTIPLES


def test_a_budget_of_bits_is_met_on_the_average() -> None:
    known = catalog.metadata()

    def planned(bits: int, share: float, **more: Any) -> set[tuple[str, float]]:
        told = {"gptq": True, "mixed_bits": True, "mixed_bits.attn_bits": bits, "mixed_bits.mlp_bits": bits}
        told |= {"sensitivity_bits": True, "sensitivity_bits.budget_share": share} | more
        found = stored_tensors(resolve({"file": told}, known))
        return {(t.role, round(b, 1)) for _, t, b in found if t.shape[-1] == 512 and t.role == "attn"}

    at = {b: plain_entropy(512, b) for b in (6, 8)}
    assert planned(8, at[6] / at[8]) == {("attn", 6.0)}
    assert planned(8, 1.1) == {("attn", 8.0)} and planned(5, 0.2) == {("attn", 4.0)}
    assert planned(8, 0.9, **{"layer_bits": True, "layer_bits.bits": 3, "layer_bits.middle": 9}) == {
        ("attn", 3.0)
    }


def test_the_codecs_take_as_much_over_the_entropy_as_the_table_says() -> None:
    packers = {
        "": lambda b: zlib.compress(b, 9),
        "zstd": zstandard.ZstdCompressor(level=22).compress,
        "lzma_xz": lambda b: lzma.compress(b, preset=9),
        "brotli_shuffle": lambda b: brotli.compress(b, quality=11, lgwin=24),
    }
    for sigma in (0.3, 0.45, 0.7, 1.0, 2.5, 5.0, 20.0):
        q = np.round(RNG.normal(0.0, sigma, 1 << 17)).astype(np.int8)
        entropy = entropy_of(q)
        for name, packed in packers.items():
            said = np.interp(entropy, ENTROPIES, OVERHEAD[name])
            assert 8.0 * len(packed(q.tobytes())) / q.size / entropy == pytest.approx(said, rel=0.045), name


@pytest.mark.parametrize(
    "settings",
    [
        {"mixed_bits": True, "mixed_bits.attn_bits": 5, "layer_bits": True, "layer_bits.bits": 4},
        {"layer_bits": True, "layer_bits.layers": "0,2", "bare_layers": True, "bare_layers.first_n": 1},
        {"mixed_bits": True, "mixed_bits.embed_bits": 16, "factored_embedding": True, "bigram_hash": True},
        {"untie_mlp": True, "depth_recurrence": True, "attention_gate": True, "value_embedding": True},
    ],
)
def test_bits_are_those_of_the_trainer(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every matrix that is stored as integers."""
    tiny = {"num_layers": 4, "model_dim": 32, "num_heads": 2, "num_kv_heads": 1, "quantize_min_numel": 512}
    tiny |= {"factored_embedding.dim": 16, "layer_bits.middle": 2, "device": "cpu", "num_threads": 1}
    on = {name for name, value in settings.items() if value is True}
    file = {k: v for k, v in tiny.items() if "." not in k or k.partition(".")[0] in on} | settings
    run = resolve({"file": file}, catalog.runtime())
    seen = Counter[tuple[tuple[int, ...], int]]()
    plain = RoundToNearest.quantize

    def spy(self: RoundToNearest, name: str, weight: Any, bits: int, rule: Any) -> Any:
        seen[tuple(weight.shape), bits] += 1
        return plain(self, name, weight, bits, rule)

    monkeypatch.setattr(RoundToNearest, "quantize", spy)
    seams = Seams(run)
    model = train_gpt.build_model(run, seams=seams)
    train_gpt.quantize({n: p.detach() for n, p in model.named_parameters()}, model, seams, ())
    assert Counter((t.shape, bits) for _, t, bits in stored_tensors(run) if bits) == seen
