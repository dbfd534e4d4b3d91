"""LQER's factors by hand, fewer errors on every corrected matrix, and an artifact that brings them back."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from search.costs.bills import model_bill
from techniques.config import resolve
from techniques.quantization.lqer import Lqer, low_rank_fixes
from trainer.artifact import Packed, ZlibCodec, pack, round_to_nearest, unpack


def matrices() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    sizes = {"a": (24, 64, 1.0), "b": (64, 32, 3.0), "c": (16, 32, 0.1)}
    return {n: torch.randn(r, c, generator=g) * s for n, (r, c, s) in sizes.items()}


def corrected(weights: dict[str, torch.Tensor], facts: dict[str, Any], **settings: Any):
    packed = [Packed(n, *round_to_nearest(w, 4)) for n, w in weights.items()]
    packed.append(Packed("half", torch.randn(4, 4).half(), None))
    export = SimpleNamespace(
        weights=weights | {"half": packed[-1].q.float()},
        roles=dict.fromkeys([*weights, "half"], "mlp"),
        note=lambda **f: facts.update(f),
    )
    return packed, Lqer(Lqer.Config(**({"group": 32} | settings))).correct(packed, export)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_every_corrected_matrix_comes_nearer_and_the_worst_are_chosen(rank: int):
    weights, facts = matrices(), {}
    before, after = corrected(weights, facts, tensors=2, rank=rank)
    errors = {p.name: float((weights[p.name] - p.dequantized()).norm()) for p in before[:3]}
    worst = sorted(errors, key=lambda n: -errors[n])[:2]
    for item in after[:3]:
        left = float((weights[item.name] - item.dequantized()).norm())
        if item.name in facts["error_left"]:
            assert item.name in worst and left < errors[item.name]
        else:
            assert left == errors[item.name] and not item.fixes
    assert len(facts["error_left"]) + facts["rejected"] == 2 and facts["error_left"]


def test_factors_equal_the_formula():
    error = matrices()["a"]
    left, right = low_rank_fixes(error, 4, 32)
    u, s, v = torch.svd(error.double())
    sign = torch.sign((u[:, :4] * s[:4]).float() * left.dequantized().view(24, 4)).sum(0).sign()
    a, b = (u[:, :4] * s[:4]).float() * sign, v[:, :4].T.float() * sign[:, None]
    step = float(left.scale[0])
    assert step == pytest.approx(float(a.abs().max()) / 1.5, rel=1e-3)
    assert set(left.q.unique().tolist()) <= {-2, -1, 0, 1} and set(right.q.unique().tolist()) <= set(
        range(-8, 8)
    )
    torch.testing.assert_close(
        left.dequantized().view(24, 4), (a / step).round().clamp(-2, 1) * step, atol=1e-2, rtol=0
    )
    assert right.q.shape == (8, 32)
    assert float((right.dequantized().view(4, 64) - b).abs().max()) <= float(right.scale.max()) * 0.501


def test_a_correction_that_does_not_help_is_left_out():
    weights = {"a": torch.zeros(16, 32)}
    facts: dict[str, Any] = {}
    _, after = corrected(weights, facts)
    assert facts["rejected"] == 1 and not after[0].fixes


def test_the_artifact_brings_the_corrections_back():
    _, after = corrected(matrices(), {})
    _, loaded = unpack(pack(after, {}, ZlibCodec()), {"zlib": ZlibCodec()})
    assert any(item.fixes for item in after)
    assert all(torch.equal(loaded[item.name], item.dequantized()) for item in after)


@pytest.mark.parametrize(
    ("columns", "rank", "group", "whole"), [(9, 1, 4, 3), (48, 2, 64, 48), (7, 1, 64, 7)]
)
def test_groups_are_whole(columns: int, rank: int, group: int, whole: int):
    error = torch.randn(8, columns, generator=torch.Generator().manual_seed(columns))
    right = low_rank_fixes(error, rank, group)[1]
    assert right.q.shape == (rank * columns // whole, whole) and right.scale.numel() == len(right.q)
    v = torch.linalg.svd(error.double(), full_matrices=False)[2][:rank].float()
    far = (right.dequantized().view(rank, columns) - v).abs().max()
    assert far <= right.scale.float().max() * (0.5 + 7.5 * 2**-11)  # the largest is 7.5 of a float16 scale


def test_the_preflight_knows_its_bytes_which_are_near_those_stored():
    shape = {"num_layers": 2, "model_dim": 64, "num_heads": 4, "vocab_size": 260, "train_batch_tokens": 8192}
    on = {"lqer": True, "lqer.rank": 4, "lqer.tensors": 1, "lqer.group": 32}
    off, run = (resolve({"file": shape | more}, {"lqer": Lqer}) for more in ({}, on))
    told = Lqer(Lqer.Config(tensors=1, group=32)).cost(run.shape()).artifact_bytes
    assert model_bill(run).total - model_bill(off).total == pytest.approx(told) and told > 0
    left, right = low_rank_fixes(torch.randn(260, 64), 4, 32)  # the embedding is the largest
    bits = 2 * left.q.numel() + 4 * right.q.numel() + 16 * (left.scale.numel() + right.scale.numel())
    assert told == pytest.approx(bits / 8)
