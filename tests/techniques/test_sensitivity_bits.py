"""Bits go where they save the most error, within the budget; the export stores what was chosen."""

import itertools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import train_gpt
from techniques._quant import round_rows
from techniques.base import Shape
from techniques.config import resolve
from techniques.quantization.gptq import Gptq
from techniques.quantization.late_qat import LateQat
from techniques.quantization.mixed_bits import MixedBits
from techniques.quantization.sensitivity_bits import SensitivityBits, by_trace, entropy_bytes, spend
from tests.techniques.evaluation_rig import TINY, tiny_model, tiny_tokens
from tests.techniques.test_gptq import correlated, weights
from trainer.seams import Seams

KNOWN = {t.name: t for t in (Gptq, MixedBits, SensitivityBits, LateQat)}


def allotted(facts: dict[str, Any], **settings: Any) -> tuple[dict[str, int], Any]:
    sizes = {"a": (40, 24, 5.0), "b": (24, 24, 1.0), "c": (60, 16, 0.1), "d": (16, 24, 1.0)}
    export = SimpleNamespace(
        weights={n: weights(r, c, seed=i) for i, (n, (r, c, _)) in enumerate(sizes.items())},
        hessians={n: correlated(c, seed=i) * s for i, (n, (_, c, s)) in enumerate(sizes.items())},
        roles=dict.fromkeys("abcd", "mlp") | {"e": "mlp", "f": "embed"},
        note=lambda **f: facts.update(f),
    )
    for name, noise in (("a", 9.0), ("c", 0.0)):  # one outlier a row makes rounding coarse
        export.weights[name][:, 0] += noise
    export.weights |= {"e": weights(8, 8), "f": weights(8, 8)}
    export.hessians["f"] = correlated(8)
    bits = dict.fromkeys("abcdef", 6)
    return SensitivityBits(SensitivityBits.Config(**settings)).tensor_bits(bits, export), export


def test_the_budget_holds_and_is_nearly_spent():
    for share in (0.8, 1.0, 1.1):
        facts: dict[str, Any] = {}
        bits, export = allotted(facts, budget_share=share)
        at_six = sum(entropy_bytes(plain(export.weights[n], 6)) for n in "abcd")
        taken = sum(entropy_bytes(plain(export.weights[n], bits[n])) for n in "abcd")
        assert taken <= share * at_six * (1 + 1e-9) and taken > 0.9 * share * at_six
        assert facts["entropy_bytes"] == pytest.approx(taken)
        assert bits["e"] == bits["f"] == 6  # no Hessian; the embedding
    assert sum(facts["matrices_by_bits"].values()) == 4


def plain(w: torch.Tensor, bits: int) -> torch.Tensor:
    return round_rows(w, (w.abs().amax(1) / (2 ** (bits - 1) - 1)).half(), bits)


def total_error(bits: Mapping[str, int], export: Any) -> float:
    total = 0.0
    for name in "abcd":
        w, h = export.weights[name].double(), export.hessians[name].double()
        q = plain(export.weights[name], bits[name])
        scale = (export.weights[name].abs().amax(1) / (2 ** (bits[name] - 1) - 1)).half().double()
        e = w - q.double() * scale[:, None]
        lost, whole = (sum(float(row @ h @ row) for row in rows) for rows in (e, w))
        total += w.numel() * lost / whole
    return total


def test_it_is_near_the_best_of_all_choices_and_better_than_equal_bits():
    bits, export = allotted({}, low=5, high=7)
    budget = sum(entropy_bytes(plain(export.weights[n], 6)) for n in "abcd")
    best = min(
        total_error(choice, export)
        for numbers in itertools.product((5, 6, 7), repeat=4)
        if sum(entropy_bytes(plain(export.weights[n], b)) for n, b in zip("abcd", numbers, strict=True))
        <= budget
        for choice in [dict(zip("abcd", numbers, strict=True))]
    )
    assert total_error(bits, export) <= 1.3 * best
    assert total_error(bits, export) < total_error(dict.fromkeys("abcd", 6), export)


def test_steps_and_ranks_by_hand():
    costs = [{4: 8.0, 5: 2.0, 6: 0.5}, {4: 1.0, 5: 0.9, 6: 0.8}]
    sizes = [{4: 10.0, 5: 12.0, 6: 14.0}, {4: 10.0, 5: 12.0, 6: 14.0}]
    assert [spend(costs, sizes, b) for b in (20.0, 22.0, 24.0, 26.5)] == [[4, 4], [5, 4], [6, 4], [6, 5]]
    assert [by_trace([1.0, 3.0], sizes, b) for b in (23.0, 24.0, 28.0)] == [[4, 4], [4, 6], [6, 6]]


def test_traces_rank_the_matrices():
    bits, _ = allotted({}, measure="trace", low=5, high=6, budget_share=0.93)
    assert bits["a"] == 6 and bits["c"] == 5  # the largest and the smallest inputs


def test_the_export_stores_what_was_chosen():
    settings = {"sensitivity_bits": True, "sensitivity_bits.low": 3, "gptq": True, "gptq.calib_batches": 2}
    settings |= {"quantize_min_numel": 1, "mixed_bits": True, "gptq.block_size": 16}
    settings |= {"sensitivity_bits.budget_share": 0.9}  # too little for 6 bits everywhere: it must choose
    resolved, model = resolve({"file": TINY | settings}, KNOWN), tiny_model()
    tokens = tiny_tokens(64)[:64].view(2, 32).long()
    trained, seams = {n: p.detach().clone() for n, p in model.named_parameters()}, Seams(resolved)
    packed, _ = train_gpt.quantize(trained, model, seams, iter([(tokens, tokens)] * 2))
    facts = seams.audit.report()["sensitivity_bits"]
    assert facts["verdict"] == "active" and len(facts["matrices_by_bits"]) > 1
    used = {
        p.name: int(p.q.abs().max()) for p in packed if p.scale is not None and p.name.startswith("blocks")
    }
    for bits, count in facts["matrices_by_bits"].items():
        low = 2 ** (bits - 2)  # above what one bit fewer could hold
        assert sum(low <= m < 2 * low for m in used.values()) == count


def test_settings_that_choose_nothing_and_late_qat_are_refused():
    with pytest.raises(ValueError, match=r"sensitivity_bits\.low"):
        SensitivityBits(SensitivityBits.Config(low=6, high=6)).check(Shape(64, 2, 32, 4, 2, 2.0, 32, 32))
    with pytest.raises(ValueError, match="bits of a role"):
        resolve({"file": TINY | dict.fromkeys(("late_qat", "sensitivity_bits", "gptq"), True)}, KNOWN)
