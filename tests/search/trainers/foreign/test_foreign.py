"""`search.py --trainer their/train_gpt.py --study theirs.toml` on a real private PostgreSQL: six trials on
two workers, pruned and infeasible ones among them; every misbehaviour in one study; who may join."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.search.db_helpers import first_line, hold, kill
from tests.search.fake_studies import FINISHED, ROOT, caddie, clear, read_trials, states
from tests.search.foreign_studies import SCORE, SCRIPT, begin, enqueue, make_theirs, write_foreign

pytestmark = pytest.mark.slow
CODE = SCRIPT.stat().st_size
SIX = """
[fixed]
MAX_WALLCLOCK_SECONDS = 0
STEP_MS = 5
[space]
NUM_LAYERS = { low = 2, high = 12 }
MATRIX_LR = { low = 0.001, high = 1.0, log = true }
TTT_ENABLED = { gate = true }
TTT_LR = { low = 0.0001, high = 0.1, log = true, when = "TTT_ENABLED" }
[sampler]
kind = "tpe"  # every trial is enqueued, and it starts a second sooner
[pruning]
min_trials = 6
agreement = 0.0
confidence = 0.9
spare = 0.0
from = 0.25
"""
FAULTS = ("none", "nan", "oom", "bad_value", "nothing", "no_score", "garbage", "flood", "silent", "forks")
ALL = """
silent_seconds = 20
max_output_bytes = 3_000_000
{score}
[fixed]
ITERATIONS = 8
PIDS = "{pids}"
[space]
FAULT = {{ choices = {faults} }}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    make_theirs(folder)
    folder.chmod(0o755)
    holder = hold(folder / ".caddie", 900.0)  # the server stays up between the commands
    try:
        first_line(holder)
        yield folder
    finally:
        kill(holder)
        clear(folder)


def test_trials_on_two_workers_with_pruning_and_limits(home: Path) -> None:
    script = home / "theirs" / "train_gpt.py"
    study = write_foreign(home, "six", 'warmdown = "WARMDOWN_ITERS"\n' + SCORE + SIX, limit=8_500 + CODE)
    study.write_text(study.read_text().replace("MAX_WALL", "WARMDOWN_ITERS = 10\nMAX_WALL"))
    study.write_text(study.read_text().replace('script = "theirs/train_gpt.py"\n', ""))  # --trainer gives it
    words = [f"--trainer={script}", f"--study={study}", f"--home={home}", "--workers=2"]
    begin(study, home, script)
    good = {"NUM_LAYERS": 8, "MATRIX_LR": 0.05, "TTT_ENABLED": True, "TTT_LR": 0.003}
    big = {"NUM_LAYERS": 12, "MATRIX_LR": 0.05, "TTT_ENABLED": False}
    bad = {"NUM_LAYERS": 8, "MATRIX_LR": 1.0, "TTT_ENABLED": False}
    rates = (0.03, 0.08, 0.02, 0.12, 0.04)
    enqueue(study, home, json.dumps([good, big, *(good | {"MATRIX_LR": rate} for rate in rates)]))
    ran = caddie(*words, "--trials=7")
    assert ran.returncode == 0 and "baseline: val_bpb" in ran.stdout, ran.stderr + ran.stdout
    assert (
        "baseline: the script as it is, run 2 times at once, as trials will run …\nbaseline: val"
        in ran.stdout
    )
    enqueue(study, home, json.dumps([bad]))
    ran = caddie(*words, "--trials=9")
    assert ran.returncode == 0, ran.stderr
    trials = [t for t in read_trials(study, home) if t["state"] in FINISHED]
    first, second, eighth = trials[0], trials[1], trials[7]
    assert len(trials) == 9 and {t["state"] for t in trials[:7]} == {"COMPLETE"}
    assert second["constraints"]["bytes"] == pytest.approx((12_000 + CODE) / (8_500 + CODE) - 1)
    assert eighth["state"] == "PRUNED" and "of the budget leads to" in eighth["attrs"]["reason"]
    assert first["attrs"]["techniques"] == ["TTT_ENABLED"] and first["attrs"]["legality"] == "not known"
    assert all(t["constraints"]["run"] == -1.0 for t in trials[:8])
    assert "FAULT" not in first["attrs"]["config"]["environment"]
    assert "TTT_ENABLED=1" in ran.stdout and "Infeasible: " in ran.stdout
    exported = caddie("export", "--trial=0", f"--to={home / 'x'}", f"--study={study}", f"--home={home}")
    assert exported.returncode == 2 and "search.py show" in exported.stderr
    script.write_text(script.read_text() + "# another version\n")
    refused = caddie(*words, "--trials=10")
    assert refused.returncode == 2 and "run the same code" in refused.stderr and "--mixed" in refused.stderr
    enqueue(study, home, json.dumps([good | {"NUM_LAYERS": 9}]))
    mixed = caddie(*words, "--trials=10", "--mixed")
    assert mixed.returncode == 0 and "The code changed" in mixed.stdout, mixed.stderr


def test_every_misbehaviour_is_one_labelled_trial_of_a_readable_study(home: Path) -> None:
    faults = [*FAULTS, "crash", "killed"]
    text = ALL.format(score=SCORE, pids=home / "pids", faults=json.dumps(faults))
    study = write_foreign(home, "faults", text)
    ran = caddie(f"--study={study}", f"--home={home}", f"--trials={len(faults)}", "--workers=2")
    assert ran.returncode == 0, ran.stderr + ran.stdout
    trials = read_trials(study, home)
    assert states(trials) == {
        "COMPLETE": 2,
        "PRUNED": 10,
        "FAIL": 6,
    }  # two faults were tried three times more
    labels = {
        t["attrs"]["config"]["environment"]["FAULT"]: t["attrs"].get("reason", "").partition(":")[0]
        for t in trials
        if t["state"] in FINISHED
    }
    assert labels == {
        "none": "",
        "forks": "",
        "nan": "diverged",
        "oom": "out of memory",
        "bad_value": "crash",
        "nothing": "no score",
        "no_score": "no score",
        "garbage": "no score",
        "flood": "flood",
        "silent": "silent",
        "crash": "crashed 4 times",
        "killed": "crashed 4 times",
    }
    assert {t["constraints"]["run"] for t in trials if t["state"] == "PRUNED"} == {1.0}
    told = caddie("status", f"--study={study}", f"--home={home}").stdout
    assert "12 trials done" in told and "3 × no score" in told
    study.write_text(study.read_text().replace('"killed"', '"hung"'))
    edited = caddie("status", f"--study={study}", f"--home={home}")  # readable, as it was begun
    said = " ".join(edited.stdout.split())
    assert edited.returncode == 0 and "was edited since" in said and "12 trials done" in said, edited.stderr
    on = caddie(f"--study={study}", f"--home={home}", "--trials=13", "--workers=1")
    assert on.returncode == 2 and "trainer.variables.FAULT" in on.stderr, on.stderr


def test_a_script_that_does_not_run_is_told_before_any_trial(home: Path) -> None:
    study = write_foreign(
        home,
        "unnamed",
        'score = ["nobody"]\n[fixed]\nTTT_ENABLED = 1\n[space]\nNUM_LAYERS = { low = 2, high = 4 }\n',
    )
    ran = caddie(f"--study={study}", f"--home={home}", "--trials=2", "--workers=1")
    assert ran.returncode == 2 and "none of 'nobody'" in ran.stderr and "legal_ttt_exact" in ran.stderr
    assert read_trials(study, home) == []


def test_a_foreign_script_needs_a_study_of_its_own(home: Path) -> None:
    ran = caddie(f"--trainer={home / 'theirs' / 'train_gpt.py'}", f"--home={home}")
    assert ran.returncode == 2 and "search.py scan" in ran.stderr


@pytest.mark.long
def test_the_guide_says_what_happens(tmp_path: Path) -> None:
    """Every command of docs/any_trainer.md, and every line that it shows, numbers aside."""
    script = make_theirs(tmp_path)
    script.parent.rename(tmp_path / "their")
    commands: list[tuple[list[str], list[str]]] = []
    for line in (ROOT / "docs" / "any_trainer.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("    $ python search.py "):
            commands.append((line.split()[3:], []))
        elif line.startswith("    ") and commands:
            commands[-1][1].append(line.strip())
        elif commands:
            break
    assert [words[0] for words, _ in commands] == ["scan", "--study", "status"]
    try:
        for words, lines in commands:
            ran = caddie(*words, cwd=tmp_path)
            assert ran.returncode == 0, ran.stderr
            for line in lines:
                assert without_numbers(line) in without_numbers(ran.stdout), f"{line}\n{ran.stdout}"
    finally:
        clear(tmp_path)


def without_numbers(text: str) -> str:
    return " ".join(re.sub(r"\d[\d,.]*", "#", text).split())
