"""Studies whose space is used up: none twice, no trial lost, exit status 0; and replicates after that."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.search.fake_studies import (
    begin,
    caddie,
    pids,
    read_trials,
    search,
    states,
    wait_for,
    workers_of,
    write_study,
)
from tests.search.foreign_studies import enqueue, make_theirs, write_foreign

pytestmark = pytest.mark.slow
RANGES = (
    "matrix_lr = { low = 0.01, high = 0.1, log = true }\nscalar_lr = { low = 0.01, high = 0.1, log = true }"
)
SIX = "matrix_lr = { choices = [0.02, 0.05, 0.08] }\nscalar_lr = { choices = [0.02, 0.05] }"
USED_UP = "The space is used up: all 6 configurations were tried; the study ends with 6 of 20 trials."


def finite_study(home: Path, name: str, mode: str) -> Path:
    """Six configurations."""
    path = write_study(home, name, mode)
    text = path.read_text()
    assert RANGES in text
    path.write_text(text.replace(RANGES, SIX))
    return path


def again(study: Path, replicates: int) -> None:
    """The study with so many runs of each configuration."""
    text = study.read_text().replace("[sampler]", f"[sampler]\nreplicates = {replicates}")
    study.write_text(text)


def configurations(trials: list[dict[str, Any]]) -> Counter[str]:
    return Counter(json.dumps(t["params"], sort_keys=True) for t in trials)


def test_four_workers_run_six_configurations_once_each_and_then_replicates(home: Path) -> None:
    study = finite_study(home, "six", "ok@1.0")
    ran = caddie(*search(study, home, 20, 4), FAKE_NOISE="0.01")
    assert ran.returncode == 0, ran.stderr
    assert USED_UP in ran.stdout and f"`replicates = 4` under [sampler] in {study}" in ran.stdout
    trials = read_trials(study, home)
    assert states(trials) == {"COMPLETE": 6} and set(configurations(trials).values()) == {1}
    again(study, 3)
    ran = caddie(*search(study, home, 30, 3), FAKE_NOISE="0.01")
    assert ran.returncode == 0, ran.stderr
    assert "those that kept the limits on 3 seeds each; the study ends with 18 of 30 trials" in ran.stdout
    trials = read_trials(study, home)
    assert states(trials) == {"COMPLETE": 18} and set(configurations(trials).values()) == {3}
    runs = [(json.dumps(t["params"], sort_keys=True), t["attrs"]["config"].get("seed")) for t in trials]
    assert len(set(runs)) == 18
    assert len({seed for _, seed in runs}) == 3  # the study's own, and the same two for every configuration
    assert not any("duplicate" in t["attrs"].get("rejections", {}) for t in trials[6:])
    assert "(3 seeds), first run" in ran.stdout and "six: 6 feasible trials" in ran.stdout


def test_a_killed_workers_trial_is_run_before_the_study_ends(home: Path) -> None:
    study = finite_study(home, "killed", "ok@4.0")
    session = begin(*search(study, home, 20, 3))
    wait_for(lambda: len(pids(home, "killed")) == 3)
    os.kill(workers_of("killed")[0], signal.SIGKILL)
    told, errors = session.communicate(timeout=120)
    assert session.returncode == 0 and USED_UP in told, errors
    trials = read_trials(study, home)
    assert states(trials) == {"COMPLETE": 6, "FAIL": 1}
    assert set(configurations([t for t in trials if t["state"] == "COMPLETE"]).values()) == {1}


def test_a_foreign_study_that_fixes_everything_else(home: Path) -> None:
    make_theirs(home)
    space = "\n[fixed]\nSTEP_MS = 20\n[space]\nTTT_ENABLED = { gate = true }\n"
    space += (
        'NUM_LAYERS = { low = 8, high = 9 }\nTTT_LR = { choices = [0.001, 0.003], when = "TTT_ENABLED" }\n'
    )
    study = write_foreign(home, "theirs", space)
    words = ["--trials=2100", "--workers=2", f"--study={study}", f"--home={home}"]
    ran = caddie(*words)
    assert ran.returncode == 0, ran.stderr
    assert "all 6 configurations were tried; the study ends with 6 of 2100 trials" in ran.stdout
    trials = read_trials(study, home)
    assert states(trials) == {"COMPLETE": 6} and set(configurations(trials).values()) == {1}
    again_text = '\nseed = "SEED"\n[sampler]\nreplicates = 2\n[fixed]'
    study.write_text(study.read_text().replace("\n[fixed]", again_text))
    enqueue(study, home, '[{"TTT_ENABLED": true}]')  # in part, and all that it leaves open was tried
    ran = caddie(*words)
    assert ran.returncode == 0 and "ends with 12 of 2100 trials" in ran.stdout, ran.stderr
    told = read_trials(study, home)
    assert states(told) == {"COMPLETE": 12, "FAIL": 1}
    trials = [t for t in told if t["state"] == "COMPLETE"]
    assert set(configurations(trials).values()) == {2}
    seeds = [t["attrs"]["config"]["environment"].get("SEED") for t in trials]
    assert seeds[:6] == [None] * 6 and len(set(seeds[6:])) == 1 and seeds[6] is not None
