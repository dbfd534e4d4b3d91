"""The suite's command: its table, exit status and JSON, its pairs, and what two ranks are held to."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import validate
from conformance import ranks, suite
from conformance.lab import SEQ_LEN, Violation, write_corpus
from corpus.dataset import open_dataset
from techniques import catalog


def test_an_unknown_name_is_an_error_with_the_nearest_known_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert validate.main(["smear_gat"]) == 2
    assert "Did you mean 'smear_gate'?" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert validate.main(["xsa", "--device", "cuda"]) == 2
    assert "Use --device cpu" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_checks_a_technique_and_tells_all_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    table = tmp_path / "found.csv"
    assert validate.main(["xsa", "--json", str(out), "--csv", str(table), "--workers", "1"]) == 0
    (row,) = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    assert (row["technique"], row["status"], row["params_added"]) == ("xsa", "passed", "0")
    found = json.loads(out.read_text(encoding="utf-8"))["techniques"]["xsa"]
    status = {o["check"]: o["status"] for o in found["outcomes"]}
    assert set(status) == {*suite.CHECK_NAMES, "two ranks"}
    assert {"causality", "compiled", "two ranks", "reload", "off"} <= {
        c for c in status if status[c] == "passed"
    }
    assert found["params_added"] == 0 and found["activity"] == "active"
    assert "xsa" in capsys.readouterr().out


def test_a_failure_is_exit_status_1_with_its_reason_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = suite.Report("xsa")
    report.add("causality", "failed", "token 3\n  moved")
    monkeypatch.setattr(validate, "check_techniques", lambda *_a, **_k: {"xsa": report})
    assert validate.main(["xsa"]) == 1
    assert "xsa: causality: token 3 moved" in capsys.readouterr().out.splitlines()


def test_a_crash_is_a_failed_check_and_not_the_end_of_the_suite() -> None:
    def crash() -> None:
        raise KeyError("lost")

    report = suite.Report("some")
    suite.examine(report, "causality", crash)
    assert report.failures == ["causality: KeyError: 'lost'"] and report.status == "failed"


TRACE: dict[str, Any] = {
    "losses": [5.0, 4.0],
    "val_bpb": 3.0,
    "read": [{"train": ["a", "b", "c", "d"], "quantize": ["e", "f"]}],
    "held": 1,
    "tensors": {"w": [0.5, 0.25]},
}
READ = [{"train": ["a", "c"], "quantize": ["e"]}, {"train": ["d", "b"], "quantize": ["f"]}]
TWO = {**TRACE, "read": READ}


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (None, "hung or died"),
        ({"error": "ValueError: no"}, "ValueError: no"),
        ({**TWO, "losses": [5.0, 4.1]}, "loss at step 2"),
        ({**TWO, "val_bpb": 1.5}, "score is 3.00000 in one process, 1.50000 on two ranks"),
        ({**TWO, "held": 2}, "hold different weights"),
        ({**TWO, "read": [READ[0], {**READ[1], "quantize": ["e"]}]}, "quantize: both ranks read the same 1"),
        ({**TWO, "read": [READ[0], {**READ[1], "quantize": ["g"]}]}, "and not the one process' 2"),
        ({**TWO, "tensors": {"w": [0.5, 0.35]}}, "w is stored 0.1 of its norm away"),
    ],
)
def test_two_ranks_that_differ_are_caught(told: dict[str, Any] | None, reason: str) -> None:
    with pytest.raises(Violation, match=reason):
        ranks.compare(TRACE, told)


def test_two_ranks_that_agree_pass() -> None:
    ranks.compare(TRACE, TWO)


def test_pairs_are_those_that_no_slot_and_no_conflict_keeps_apart() -> None:
    pairs = suite.legal_pairs(["sliding_window", "slot", "smear_gate", "xsa"])
    assert ("smear_gate", "xsa") in pairs and ("sliding_window", "slot") not in pairs
    shelf = catalog.metadata()
    assert len(suite.legal_pairs(shelf)) < len(shelf) * (len(shelf) - 1) / 2


def test_a_pair_builds_and_is_causal(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path)
    assert suite.check_pair(("smear_gate", "xsa"), folder=str(folder), device="cpu") == ""


def test_the_bench_s_corpus_is_the_same_everywhere(tmp_path: Path) -> None:
    one, two = write_corpus(tmp_path / "one"), write_corpus(tmp_path / "two")
    ids = {open_dataset(folder, vocab_size=260, seq_len=SEQ_LEN).data_id for folder in (one, two)}
    assert len(ids) == 1


def test_a_report_travels_as_json() -> None:
    report = suite.Report("xsa", params_added=3)
    report.add("off", "passed", "", 0.5)
    told = json.loads(json.dumps(report.as_json()))
    assert told["status"] == "passed" and told["outcomes"] == [dataclasses.asdict(report.outcomes[0])]
