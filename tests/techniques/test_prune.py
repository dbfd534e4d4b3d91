"""Pruning zeroes what it says it does, never grows the file, and aims at decimal bytes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from techniques.base import Shape
from techniques.config import resolve, stage_keys
from techniques.quantization import prune
from techniques.quantization.prune import Prune, pruned
from trainer.artifact import Packed, ZlibCodec, pack, round_to_nearest


def items(rows: int = 64) -> list[Packed]:
    g = torch.Generator().manual_seed(0)
    out = [Packed("floats", torch.randn(4, 4), None)]
    for name, spread in (("a", 1.0), ("b", 0.1)):
        out.append(Packed(name, *round_to_nearest(torch.randn(rows, 32, generator=g) * spread, 3)))
    return out


def exported(facts: dict[str, Any]) -> Any:
    return SimpleNamespace(
        bytes=lambda packed: 1000 + len(pack(packed, {}, ZlibCodec())), note=lambda **f: facts.update(f)
    )


def nonzero(packed: list[Packed]) -> int:
    return sum(int((p.q != 0).sum()) for p in packed if p.scale is not None)


@pytest.mark.parametrize("settings", [{"fraction": 0.1}, {"target_bytes": 1}])
def test_a_model_without_integers_stays_as_it_is(settings: dict[str, Any]):
    floats = items()[:1]
    assert Prune(Prune.Config(**settings)).correct(floats, exported({})) == floats


def test_the_fraction_is_of_the_nonzero_and_the_cheapest_fall():
    before, facts = items(), {}
    after = Prune(Prune.Config(fraction=0.1)).correct(before, exported(facts))
    assert facts["newly_zeroed"] == nonzero(before) - nonzero(after) == round(0.1 * nonzero(before)) > 0
    assert facts["bytes_after"] < facts["bytes_before"] and torch.equal(after[0].q, before[0].q)
    fell = [p.dequantized()[(p.q != 0) & (a.q == 0)].abs() for p, a in zip(before, after, strict=True)]
    kept = [a.dequantized()[a.q != 0].abs() for a in after[1:]]
    assert float(torch.cat(fell[1:]).max()) <= float(torch.cat(kept).min()) + 1e-6
    assert nonzero(before) == nonzero(items())  # what was given stays


def test_bytes_come_down_to_the_target_with_the_fewest_ones():
    facts: dict[str, Any] = {}
    before, export = items(), exported(facts)
    start = export.bytes(before)
    for saving in (40, 200):
        after = Prune(Prune.Config(target_bytes=start - saving)).correct(before, export)
        count = facts["newly_zeroed"]
        assert facts["fits"] and export.bytes(after) == facts["bytes_after"] <= start - saving
        assert export.bytes(pruned(before, count - 1, True)) > start - saving  # the edge
        touched = [(p.q != a.q, p.q) for p, a in zip(before[1:], after[1:], strict=True)]
        assert all(bool((q[moved].abs() == 1).all()) for moved, q in touched)
    loose = Prune(Prune.Config(target_bytes=start)).correct(before, export)
    assert facts["newly_zeroed"] == 0 and all(
        torch.equal(a.q, b.q) for a, b in zip(loose, before, strict=True)
    )
    Prune(Prune.Config(target_bytes=1200)).correct(before, export)
    assert not facts["fits"] and facts["newly_zeroed"] == facts["candidates"]


def test_few_packings_find_the_count_and_the_estimate_is_the_entropy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prune, "PRUNE_SLACK", 1000)  # this file is small
    facts: dict[str, Any] = {}
    before, export = items(rows=1024), exported(facts)
    start = export.bytes(before)
    for share in (0.99, 0.93):
        Prune(Prune.Config(target_bytes=round(share * start))).correct(before, export)
        spare = round(share * start) - facts["bytes_after"]
        assert 0 <= spare <= share * start / 1000 and facts["packings"] <= 7
    candidates = prune.Candidates(before, True)
    model = prune.EntropyOfCount(candidates)
    for count in (0, 1000, candidates.total):
        bits = 0.0
        for item in candidates.pruned(count)[1:]:
            counts = torch.unique(item.q, return_counts=True)[1].double()
            bits -= float((counts * (counts / counts.sum()).log2()).sum())
        assert model.bytes(count) == pytest.approx(bits / 8)
    half = (model.bytes(0) + model.bytes(candidates.total)) / 2
    count = model.count_for(half)
    assert model.bytes(count) <= half < model.bytes(count - 1)


def test_a_file_that_would_grow_stays():
    before, facts = items(), {}
    sizes = iter([100, 200])
    export = SimpleNamespace(bytes=lambda _packed: next(sizes), note=lambda **f: facts.update(f))
    assert Prune().correct(before, export) is before and facts["newly_zeroed"] == 0


def test_the_published_threshold_is_zero_and_prunes_nothing():
    """PR #569: the 2 % quantile of |q| is 0, because more than 2 % are zero already; ours is not fooled."""
    before = items()
    magnitudes = torch.cat([p.q.abs().flatten() for p in before[1:]]).float()
    assert float((magnitudes == 0).float().mean()) > 0.02 and float(magnitudes.quantile(0.02)) == 0.0
    assert nonzero(Prune(Prune.Config(fraction=0.02)).correct(before, exported({}))) < nonzero(before)


def test_nothing_to_do_is_an_error():
    with pytest.raises(ValueError, match="zeroes nothing"):
        Prune(Prune.Config(fraction=0.0)).check(Shape(64, 2, 32, 4, 2, 2.0, 32, 32))


@pytest.mark.parametrize(("field", "value", "aims"), [("fraction", 0.1, False), ("target_bytes", 9000, True)])
def test_only_a_target_makes_the_stored_tensors_depend_on_the_whole_script(
    field: str, value: float, aims: bool
) -> None:
    """The script says the evaluation's settings too, so its bytes follow them."""
    one, other = (
        resolve({"file": {"prune": True, f"prune.{field}": value, "val_batch_size": size}}, {"prune": Prune})
        for size in (1 << 15, 1 << 16)
    )
    assert one.techniques["prune"].aims_at_bytes is aims
    keys = [stage_keys(resolved, {"": "c"}, "d")["quantize"] for resolved in (one, other)]
    assert (keys[0] != keys[1]) is aims
