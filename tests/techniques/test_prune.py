"""Pruning zeroes what it says it does, never grows the file, and aims at decimal bytes."""

import functools
import itertools
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from techniques import _quant
from techniques._quant import FINE_BYTES, PACKINGS, ByteSearch
from techniques.base import Shape
from techniques.compression.brotli_shuffle import BrotliShuffleCodec
from techniques.config import resolve, stage_keys
from techniques.quantization import prune
from techniques.quantization.prune import Prune, pruned
from trainer.artifact import Packed, ZlibCodec, pack, round_to_nearest


def items(rows: int = 64) -> list[Packed]:
    g = torch.Generator().manual_seed(0)
    out = [Packed("floats", torch.randn(4, 4, generator=torch.Generator().manual_seed(1)), None)]
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
        assert facts["packings"] <= _quant.TRIES
        touched = [(p.q != a.q, p.q) for p, a in zip(before[1:], after[1:], strict=True)]
        assert all(bool((q[moved].abs() == 1).all()) for moved, q in touched)
    facts.clear()
    loose = Prune(Prune.Config(target_bytes=start)).correct(before, export)
    assert facts["newly_zeroed"] == 0 and facts["packings"] == 1 and "finding" not in facts
    assert all(torch.equal(a.q, b.q) for a, b in zip(loose, before, strict=True))
    Prune(Prune.Config(target_bytes=1200)).correct(before, export)
    assert not facts["fits"] and facts["newly_zeroed"] == facts["candidates"]
    assert f"got 1,200 and {facts['bytes_after']:,}. Raise target_bytes" in facts["finding"]


@pytest.mark.parametrize("codec", [ZlibCodec(), BrotliShuffleCodec(1, 11)], ids=["zlib", "brotli"])
def test_few_packings_find_what_trying_many_counts_finds(codec: Any, monkeypatch: pytest.MonkeyPatch):
    """Beyond the least that fits, only counts that spare less than the slack and one jump of the codec."""
    monkeypatch.setattr(_quant, "CHEAP_BYTES", 0)  # as if this file were a large one
    before, facts, apart = items(rows=256), {}, 128
    candidates = prune.Candidates(before, True)

    def size_of(packed: list[Packed]) -> int:
        return 1000 + len(pack(packed, {}, codec))

    export = SimpleNamespace(bytes=size_of, note=lambda **f: facts.update(f))
    sizes = {n: size_of(candidates.pruned(n)) for n in range(0, candidates.total, apart)}
    first, *_, final = sizes.values()
    jump = max(abs(a - b) for a, b in itertools.pairwise(sizes.values()))
    for share in (0.15, 0.5, 0.85):
        target = round(first - share * (first - final))
        Prune(Prune.Config(target_bytes=target)).correct(before, export)
        found = facts["newly_zeroed"]
        assert facts["packings"] <= PACKINGS and facts["bytes_after"] <= target
        assert facts["bytes_after"] == size_of(candidates.pruned(found))
        least = min(n for n, size in sizes.items() if size <= target)
        spared = max(n for n, size in sizes.items() if size >= target - FINE_BYTES - jump)
        assert least - apart <= found <= spared + apart, (share, least, found, spared)


def test_few_packings_find_the_count_and_the_estimate_is_the_entropy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_quant, "CHEAP_BYTES", 0)  # as if this file were a large one
    facts: dict[str, Any] = {}
    before, export = items(rows=1024), exported(facts)
    start = export.bytes(before)
    for share in (0.99, 0.93):
        target = round(share * start)
        Prune(Prune.Config(target_bytes=target)).correct(before, export)
        assert 0 <= target - facts["bytes_after"] <= FINE_BYTES and facts["packings"] <= PACKINGS
        assert abs(facts["estimated_bytes"] - facts["bytes_after"]) < 0.002 * target
    candidates = prune.Candidates(before, True)
    model = prune.EntropyOfCount(candidates)
    for count in (0, 1000, candidates.total):
        bits = 0.0
        for item in candidates.pruned(count)[1:]:
            counts = torch.unique(item.q, return_counts=True)[1].double()
            bits -= float((counts * (counts / counts.sum()).log2()).sum())
        assert model.bytes(count) == pytest.approx(bits / 8)


def test_few_packings_come_near_a_size_where_the_codec_jumps(monkeypatch: pytest.MonkeyPatch):
    """Brotli's bytes jump by hundreds here, and fall by half of what entropy says, then by twice as much."""
    monkeypatch.setattr(_quant, "CHEAP_BYTES", 0)  # as if this file were a large one
    size_of = functools.cache(lambda count: 1000 + len(pack(candidates.pruned(count), {}, codec)))
    candidates = prune.Candidates(items(rows=1024), True)
    codec = BrotliShuffleCodec(1, 11)
    for share, spared in ((0.4, 0.01), (0.5, 0.0005), (0.85, 0.0005), (0.9, 0.01), (0.95, 0.03)):
        target = round(size_of(0) - share * (size_of(0) - size_of(candidates.total)))
        search = ByteSearch(
            target, candidates.total, prune.EntropyOfCount(candidates).bytes, size_of, {0: size_of(0)}
        )
        found = search.run()
        assert 0 <= target - search.sizes[found] <= spared * target, search.sizes
        assert len(search.sizes) <= PACKINGS


def searched(
    target: int, last: int, real: Callable[[int], int], guess: Callable[[int], float], start: int = 0
) -> tuple[int, ByteSearch]:
    """The step found, and the search; no step is packed twice."""
    packed: list[int] = []

    def measure(step: int) -> int:
        assert 0 <= step <= last and step not in packed and step != start
        packed.append(step)
        return real(step)

    search = ByteSearch(target, last, guess, measure, {start: real(start)})
    found = search.run()
    assert search.sizes[found] == real(found)
    return found, search


@pytest.mark.parametrize("seed", range(40))
def test_whatever_the_codec_a_file_that_fits_is_found_if_there_is_one(seed: int):
    """Codecs that save more or less than the estimate, unevenly, with jumps up to the slack."""
    draw = random.Random(seed)
    last, rate, bend = draw.randrange(1, 200_000), draw.uniform(0.7, 1.4), draw.uniform(0.8, 1.2)
    whole, jumps = draw.randrange(100_000, 10_000_000), draw.choice((0, 8))

    def guess(step: int) -> float:
        return whole * (1 - 0.2 * (step / last) ** bend)

    def real(step: int) -> int:
        noise = random.Random(step * 1000 + seed).uniform(-jumps, jumps)
        return round(1.05 * whole - rate * (whole - guess(step)) * (1 + 0.1 * step / last) + noise)

    for share in (-0.01, 0.0, 0.1, 0.5, 0.9, 1.0):
        target = round(real(0) - share * (real(0) - real(last)))
        start = draw.choice((0, last))
        found, search = searched(target, last, real, guess, start)
        assert real(found) <= target
        assert len(search.sizes) <= PACKINGS, search.sizes
        spare = target - real(found)
        assert found == 0 or spare <= search.slack or spare < real(found - 1) - real(found) + 2 * jumps
    found, search = searched(real(last) - 3 * jumps - 1, last, real, guess)
    assert found == last and not search.facts(found)["fits"] and len(search.sizes) <= 2 * PACKINGS


def test_an_estimate_that_is_wrong_costs_packings_and_no_byte_of_the_target():
    """It says that bytes fall at once; they fall at the end alone."""
    found, search = searched(
        500_000, 4096, lambda s: 1_000_000 - (s**8 // 4096**7) * 200, lambda s: 1e6 - 400 * s
    )
    assert search.sizes[found] <= 500_000 and len(search.sizes) <= 12


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
