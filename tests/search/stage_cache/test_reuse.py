"""Stages taken over from the cache: the same bits as a recomputation, judged by the seconds they took."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest

from search.common.options import WorkerSpec
from search.common.paths import Folders
from search.stage_cache import addresses as identity
from search.stage_cache.addresses import DataId, Ground, addresses, code_of, machine_id
from search.stage_cache.reuse import FILES, REPLAYED, Reuse, check_cache, open_reuse, parse_bytes
from search.stage_cache.store import Limits as Room
from search.stage_cache.store import Store
from search.study.limits import Limits, violations
from search.trainers.files import Record
from search.trainers.process import Job, Outcome, run_trainer, trainer_environment
from search.workers.record import replayed_facts, stage_facts
from techniques import catalog
from techniques.config import Resolved, resolve, stage_keys
from tests.conftest import ROOT, warm_trainers

GROUND = Ground(1, 1, {})


def quiet(record: Record, reports: tuple[Record, ...]) -> None:
    return None


class Bench:
    """Real trainer runs of one tiny configuration, with or without the cache."""

    def __init__(self, root: Path, settings: dict[str, str]):
        self.root, self.settings = root, settings
        self.reuse = Reuse(Store(root / "cache", Room(10**9, keep_free_bytes=0)), GROUND)
        self.environment = trainer_environment(os.environ, strip=frozenset(), num_threads=1)

    def resolved(self, **changes: Any) -> Resolved:
        return resolve({"file": {**self.settings, **changes}}, catalog.metadata())

    def run(self, name: str, *, cached: bool, **changes: Any) -> Outcome:
        at = self.reuse.addresses(self.resolved(**changes))
        assert at.keys() == FILES.keys()
        job = Job(
            self.root / name,
            {**self.settings, **changes},
            self.environment,
            timeout_s=240.0,
            fill=(lambda folder: self.reuse.fill(folder, at)) if cached else None,
            warm=warm_trainers(),
        )
        outcome = run_trainer(job, on_report=quiet)
        if cached:
            self.reuse.keep(job.folder, at)
        assert outcome.kind == "finished", outcome.reason
        return outcome


@pytest.fixture(scope="module")
def bench(tiny_data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    from tests.conftest import TINY_MODEL

    return Bench(tmp_path_factory.mktemp("bench"), {**TINY_MODEL, **tiny_data, "num_reports": "3"})


DOWNSTREAM = {"gptq": True, "sliding_window": True, "sliding_window.stride": 16, "zstd": True}


@pytest.fixture(scope="module")
def runs(bench: Bench) -> dict[str, Outcome]:
    return {
        "first": bench.run("first", cached=True),
        "alone": bench.run("alone", cached=False, **DOWNSTREAM),
        "reused": bench.run("reused", cached=True, **DOWNSTREAM),
        "again": bench.run("again", cached=True, **DOWNSTREAM),
    }


def bits(outcome: Outcome) -> dict[str, Any]:
    """All of a result that is no second."""
    assert outcome.result is not None
    kept = {k: v for k, v in outcome.result.items() if "seconds" not in k and k not in ("run_id", "reused")}
    kept.pop("peak_memory_bytes")
    assert kept.pop("stage_memory").keys() == {"data", "train", "quantize", "pack", "evaluate"}
    kept["reads"] = sorted(  # the ledger, less its seconds
        (r["stage"], r["reader"], r["split"], r["reads"], r["tokens"]) for r in kept["reads"]
    )
    kept["activity"] = {
        name: {k: v for k, v in facts.items() if not k.endswith("_s")}
        for name, facts in kept["activity"].items()
    }
    return kept


def test_a_hit_gives_the_bits_of_a_recomputation(runs: dict[str, Outcome]) -> None:
    results = {name: outcome.result or {} for name, outcome in runs.items()}
    assert [results[n]["reused"] for n in ("first", "alone", "reused", "again")] == [
        [],
        [],
        ["train"],
        ["train", "quantize", "pack", "evaluate"],
    ]
    assert len(results["alone"]["sha256"]) == 64
    assert results["alone"]["sha256"] != results["first"]["sha256"]
    assert bits(runs["reused"]) == bits(runs["alone"])
    assert bits(runs["again"]) == bits(runs["alone"])


def test_limits_judge_the_recorded_seconds(runs: dict[str, Outcome]) -> None:
    first, reused, again = (runs[n].result or {} for n in ("first", "reused", "again"))
    trained_s = first["stage_seconds"]["train"]["timed"]
    assert trained_s > 0 and reused["stage_seconds"]["train"] == first["stage_seconds"]["train"]
    assert reused["train_seconds"] >= trained_s  # and the calibration, which ran
    assert again["train_seconds"] == reused["train_seconds"]
    assert again["eval_seconds"] == reused["eval_seconds"] > 0
    tight = Limits(artifact_bytes=10**9, train_seconds=trained_s / 2, eval_seconds=again["eval_seconds"] / 2)
    found = violations(again, tight)
    assert found["train"] >= 1.0 - 1e-9 and found["eval"] == pytest.approx(1.0)


def test_reports_come_with_the_training(runs: dict[str, Outcome]) -> None:
    first = [(r["progress"], r["val_bpb"]) for r in runs["first"].reports]
    for name in ("reused", "again"):
        assert all(r[REPLAYED] for r in runs[name].reports)
        assert [(r["progress"], r["val_bpb"]) for r in runs[name].reports] == first
    assert len(first) == 2 and not any(REPLAYED in r for r in runs["first"].reports)


def test_a_trial_tells_what_it_saved(runs: dict[str, Outcome]) -> None:
    result = runs["reused"].result or {}
    facts = stage_facts(result, spent_s=runs["reused"].process_s)
    assert facts["reused"] == ["train"] and facts["spent_s"] == round(runs["reused"].process_s, 3)
    assert facts["saved_s"] == round(result["stage_seconds"]["train"]["true"], 3) > 0
    none = stage_facts(runs["first"].result or {}, spent_s=1.0)
    assert none["reused"] == [] and none["saved_s"] == 0.0


def test_a_trainer_that_knows_better_trains_anew(bench: Bench, runs: dict[str, Outcome]) -> None:
    """The address finds, the trainer's own key decides: here another code left the record."""
    name = f"average-{bench.reuse.addresses(bench.resolved())['average']}"
    (folder := bench.root / "old").mkdir()
    assert bench.reuse.store.fetch(name, folder) is not None
    record = json.loads((folder / "stage_average.json").read_text())
    (folder / "stage_average.json").write_text(json.dumps(record | {"key": "0" * 16}))
    other = Reuse(Store(bench.root / "stale", Room(10**9, keep_free_bytes=0)), GROUND)
    assert other.store.put(
        name, [folder / n for n in (*FILES["average"], "reports.jsonl")], {"key": "0" * 16}
    )
    mine, bench.reuse = bench.reuse, other
    try:
        outcome = bench.run("stale-run", cached=True)
    finally:
        bench.reuse = mine
    assert (outcome.result or {})["reused"] == [] and bits(outcome) == bits(runs["first"])
    assert not any(REPLAYED in r for r in outcome.reports) and len(outcome.reports) == 2
    facts = other.store.facts(name)
    assert facts is not None and facts["key"] == record["key"]  # replaced by what is right now


# -- without a trainer


def left_by(folder: Path, *, keys: dict[str, str], stages: tuple[str, ...] = ("average",)) -> None:
    """What a trainer leaves that was killed behind some stage."""
    folder.mkdir(parents=True)
    (folder / "resolved.json").write_text(json.dumps({"stage_keys": keys}))
    (folder / "metrics.jsonl").write_text(
        '{"kind": "train"}\n{"kind": "report", "progress": 0.5, "val_bpb": 3.0, "elapsed_s": 4.0}\n'
    )
    for stage in stages:
        for name in FILES[stage]:
            key = keys[Path(name).stem.removeprefix("stage_")] if name.endswith(".json") else ""
            text = json.dumps({"key": key, "sha256": "s"}) if key else "bytes"
            (folder / name).write_text(text)


@pytest.fixture
def small(tmp_path: Path) -> Reuse:
    return Reuse(Store(tmp_path / "cache", Room(10**9, keep_free_bytes=0)), GROUND)


AT = {"average": "a", "pack": "p", "evaluate": "e"}
KEYS = {"average": "ka", "pack": "kp", "evaluate": "ke"}


def test_what_a_crashed_trainer_finished_is_kept(small: Reuse, tmp_path: Path) -> None:
    left_by(tmp_path / "0", keys=KEYS)
    (tmp_path / "0" / "stage_pack.json").write_text('{"key": "kp"}')  # no artifact: it was not finished
    small.keep(tmp_path / "0", AT)
    assert small.store.has("average-a") and not small.store.has("pack-p")
    (tmp_path / "1").mkdir()
    reports = small.fill(tmp_path / "1", AT)
    assert [r["val_bpb"] for r in reports] == [3.0]
    assert {p.name for p in (tmp_path / "1").iterdir()} == {*FILES["average"], "reports.jsonl"}


def test_a_crashed_trial_goes_on_and_after_a_second_crash_starts_anew(
    small: Reuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trial 0 was killed with its worker; 1 takes its weights over and crashes; 2 trusts nothing old."""
    folders, study = Folders(tmp_path, "s"), optuna.create_study()
    monkeypatch.setattr(small, "addresses", lambda _: AT)
    resolved = resolve({}, catalog.metadata())
    left_by(folders.trial(0), keys=KEYS)
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    for number, history in ((1, [0]), (2, [0, 1])):
        attrs: dict[str, Any] = {"retry_history": history}
        study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.WAITING, system_attrs=attrs))
        trial = study.ask()
        assert trial.number == number
        folder = folders.trial(number)
        with small.around(trial, resolved, folders) as fill:
            folder.mkdir()
            assert bool(fill(folder)) == (number == 1) == (folder / "weights.pt").exists()
            shutil.rmtree(folder)
            left_by(folder, keys=KEYS)
            (folder / "weights.pt").write_text(f"from trial {number}")
    (tmp_path / "3").mkdir()
    small.fill(tmp_path / "3", AT)
    assert (tmp_path / "3" / "weights.pt").read_text() == "from trial 2"


def test_only_what_the_trainer_would_take_is_kept(small: Reuse, tmp_path: Path) -> None:
    left_by(tmp_path / "0", keys=KEYS, stages=("average", "pack", "evaluate"))
    (tmp_path / "0" / "resolved.json").write_text(json.dumps({"stage_keys": KEYS | {"average": "other"}}))
    small.keep(tmp_path / "0", AT)
    assert not small.store.has("average-a") and small.store.has("pack-p") and small.store.has("evaluate-e")
    left_by(tmp_path / "1", keys=KEYS, stages=())
    (tmp_path / "1" / "resolved.json").unlink()
    small.keep(tmp_path / "1", AT)  # no trainer got as far as its settings
    small.keep(tmp_path / "0", {})  # no address: no cache
    assert not small.store.has("average-a")


def test_recorded_reports_prune_before_a_trainer_starts(tmp_path: Path) -> None:
    points = [{"kind": "report", "progress": k / 4, "val_bpb": 3.0, "elapsed_s": 10.0 * k} for k in (1, 2, 3)]
    seen: list[float] = []

    def judge(record: Record, reports: tuple[Record, ...]) -> str | None:
        seen.append(record["progress"])
        return "worse" if record["progress"] >= 0.5 else None

    job = Job(
        tmp_path / "0", {}, {}, timeout_s=1.0, command=("/does/not/exist",), fill=lambda _: tuple(points)
    )
    outcome = run_trainer(job, on_report=judge)
    assert (outcome.kind, outcome.reason, outcome.process_s) == ("pruned", "worse", 0.0)
    assert seen == [0.25, 0.5] and len(outcome.reports) == 2
    assert not (tmp_path / "0" / "console.log").exists()
    facts = replayed_facts(outcome.reports)
    assert facts["saved_s"] == 20.0 and facts["reused"] == ["train"]


# -- addresses


LAPTOP = {"preset": {}, "file": {"iterations": 5, "max_wallclock_seconds": 0.0}}


def test_an_address_changes_with_all_that_a_result_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    known = catalog.metadata()
    plain = resolve(LAPTOP, known)
    machine: dict[str, Any] = {"cpu": "x", "threads": 1}

    def at(data: str = "d", more: dict[str, Any] | None = None, **changes: Any) -> dict[str, str]:
        resolved = resolve({"file": {**LAPTOP["file"], **changes}}, known)
        return addresses(resolved, data=data, machine=machine | (more or {}))

    base = at()
    upstream = [at("e"), at(more={"threads": 2}), at(more={"torch": "2"}), at(seed=7), at(iterations=6)]
    upstream += [
        at(max_wallclock_seconds=9.0),
        at(num_reports=2),
        at(report_tokens=99),
        at(xsa=True),
        at(ema=True),
    ]
    for other in upstream:
        assert all(other[stage] != base[stage] for stage in base)
    quantised, packed, scored = at(gptq=True), at(zstd=True), at(val_tokens=5)
    assert quantised["average"] == packed["average"] == scored["average"] == base["average"]
    assert quantised["pack"] != base["pack"] != packed["pack"] and scored["pack"] == base["pack"]
    assert len({d["evaluate"] for d in (base, quantised, packed, scored)}) == 4
    monkeypatch.setattr(identity, "FORMAT", identity.FORMAT + 1)
    assert addresses(plain, data="d", machine=machine)["average"] != base["average"]


def test_late_qat_trains_on_what_later_stages_store() -> None:
    """Bits are a setting of the stage quantize, and training on quantised weights reads them."""
    known = catalog.metadata()

    def train(**changes: Any) -> str:
        return stage_keys(resolve({"file": changes}, known), {"": "c"}, "d")["train"]

    bits = {"mixed_bits": True}
    assert train() == train(**bits) == train(quantize_min_numel=5)
    assert (
        len({train(late_qat=True), train(late_qat=True, **bits), train(late_qat=True, quantize_min_numel=5)})
        == 3
    )


def test_the_machine_is_part_of_the_trainers_key() -> None:
    resolved = resolve({}, catalog.metadata())
    keys = [stage_keys(resolved, {"": "c"}, "d", {"threads": n}) for n in (1, 2)]
    assert all(keys[0][stage] != keys[1][stage] for stage in keys[0])
    facts = machine_id(resolved, GROUND)
    assert facts["cpu"] and facts["threads"] == 1 and facts["torch"]


def test_other_code_is_another_version(tmp_path: Path) -> None:
    for room in ("trainer", "techniques", "corpus"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "train_gpt.py", tmp_path / "train_gpt.py")
    resolved = resolve({}, catalog.metadata())
    before = code_of(resolved, tmp_path)
    assert before == code_of(resolved, ROOT) != code_of(resolve({"file": {"xsa": True}}, catalog.metadata()))
    with (tmp_path / "trainer" / "muon.py").open("a") as file:
        file.write("\n# edited\n")
    assert code_of(resolved, tmp_path) != before


def test_changed_shards_are_other_data(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "fineweb_train_000000.bin").write_bytes(b"a" * 1000)
    (tmp_path / "tokenizer.model").write_bytes(b"t")
    config = {"data_path": "data", "tokenizer_path": "tokenizer.model"}
    resolved = resolve({"file": config}, catalog.metadata())
    memo = tmp_path / "data.json"
    first = DataId(memo).of(resolved, tmp_path)
    assert DataId(memo).of(resolved, tmp_path) == first  # from the memo
    with (folder / "fineweb_train_000000.bin").open("r+b") as file:  # the same size
        file.seek(990)
        file.write(b"b")
    os.utime(folder / "fineweb_train_000000.bin", ns=(1, 1))
    second = DataId(memo).of(resolved, tmp_path)
    assert second != first
    memo.write_text("nonsense")
    assert DataId(memo).of(resolved, tmp_path) == second
    shutil.rmtree(folder)
    reuse = Reuse(Store(tmp_path / "cache"), GROUND)
    gone = dataclasses.replace(resolved.config, data_path=str(folder))
    assert reuse.addresses(dataclasses.replace(resolved, config=gone)) == {}  # the trainer says why
    assert len(reuse.store.notes) == 1


def test_options(tmp_path: Path) -> None:
    assert (
        parse_bytes("10GB") == 10**10
        and parse_bytes("500 MB") == 5 * 10**8
        and parse_bytes("2e9") == 2 * 10**9
    )
    for bad in ("", "GB", "-1GB", "10GiB", "ten"):
        with pytest.raises(ValueError, match="A size is a positive number"):
            parse_bytes(bad)
    spec = WorkerSpec(tmp_path / "s.toml", tmp_path, 1, cache_size="1GB", cache_shared=str(tmp_path / "s"))
    with pytest.raises(ValueError, match="--cache is off"):
        check_cache(spec)
    with pytest.raises(ValueError, match="A size is a positive number"):
        check_cache(dataclasses.replace(spec, cache_shared="", cache_size="10GiB"))
    on = dataclasses.replace(spec, cache=tmp_path / "c")
    check_cache(on)
    assert not (tmp_path / "c").exists()
    assert open_reuse(dataclasses.replace(spec, cache_shared=""), ranks=1, environ={}) is None
    reuse = open_reuse(on, ranks=1, environ={})
    assert reuse is not None and reuse.remote is not None
    assert reuse.store.root == tmp_path / "c" and reuse.store.limits.max_bytes == 10**9
