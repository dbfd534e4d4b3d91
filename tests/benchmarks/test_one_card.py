"""The plan of one card's minutes: what it would run; at toy size it runs, a script's log beside ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.trainer import one_card
from corpus import embedded
from search.common.paths import ROOT

THEIRS = """
import os, time
for step in range(1, 5):
    print(f"step:{step}/{os.environ['ITERATIONS']} train_loss:6.9 step_avg:8.00ms", flush=True)
time.sleep(60)  # its evaluation
"""


def test_the_plan_keeps_its_minutes_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--data",
        "data/datasets/books_sp1024",
        "--data-8192",
        "d/books_sp8192_caseops",
        "--plan",
        "--out",
        str(tmp_path),
    ]
    assert one_card.main([*words, "--public", "pr549=python3 their.py"]) == 0
    said = capsys.readouterr().out
    heads = [line for line in said.splitlines() if " at most " in line]
    assert [line.partition(":")[0] for line in heads] == ["steps", "search", "pr1855", "attention", "scorers"]
    assert 700 <= sum(float(line.split()[-2]) for line in heads) <= 720 + len(heads)
    assert "--preset=pr1855" in said and "books_8192_caseops_bpe.model" in said
    assert "ITERATIONS=30" in said and said.count("their.py") == 1
    assert not (tmp_path / "results.json").exists()


def test_a_step_is_read_and_a_failure_is_told(tmp_path: Path) -> None:
    assert one_card.last_step(tmp_path, "step:9/30 a:1 step_avg:3.00ms\nstep:10/30 a:1 step_avg:2.50ms") == {
        "ms_per_step": 2.5,
        "steps": 10,
    }
    run = one_card.Run("no", (sys.executable, "-c", "raise SystemExit('no card')"), one_card.last_step)
    assert "exit status 1: no card" in one_card.ran(run, tmp_path / "no", 20)["failed"]
    slow = one_card.Run("slow", (sys.executable, "-c", "import time; time.sleep(60)"), one_card.last_step)
    assert one_card.ran(slow, tmp_path / "slow", 1.0)["failed"] == "not done after 1 s"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_at_toy_size_it_runs_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "their.py"
    script.write_text(THEIRS)
    embedded.ensure(ROOT / "data", "sp1024")
    data = ROOT / "data/datasets/embedded_sp1024"
    words = ["--toy", "--data", str(data), "--out", str(tmp_path / "out"), "--minutes", "6"]
    status = one_card.main([*words, "--public", f"pr549={sys.executable} {script}"])
    said = capsys.readouterr().out
    assert status == 0, said
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    names = ["naive", "pr549", "public pr549", "search", "pr1855", "scorer banded", "scorer sliding_window"]
    assert list(found) == names and found["public pr549"]["ms_per_step"] == 8.0
    assert found["public pr549"]["wall_s"] < 20, "ended behind its last step"
    assert "ours / public: " in said and found["scorer banded"]["protocol"] == "banded"
