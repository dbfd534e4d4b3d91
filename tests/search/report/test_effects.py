"""Effects against the truth of simulated studies, and what `search.py effects` prints."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from benchmarks.effects import check, random_trials, true_pairs
from benchmarks.simulator import Instance
from search.common.attributes import REPORTS
from search.common.paths import Folders
from search.report.effects import LEAST, find_effects, print_effects
from search.session.session import Session
from search.study.load import find_study
from search.trainers.trainer import trainer_of
from tests.search.fake_studies import ROOT, clear, write_study

BASE = Instance(1)


def test_intervals_hold_and_no_sign_is_wrong() -> None:
    checks = [check(one, random_trials(one, 150)) for one in (BASE, Instance(2))]
    inside, told = sum(c.inside for c in checks), sum(c.count for c in checks)
    assert told == 50 and inside >= 0.9 * told
    assert sum(c.sure for c in checks) >= 20 and sum(c.wrong for c in checks) == 0


def test_a_study_without_effects_shows_none() -> None:
    instance = Instance(1, "null")
    found = find_effects(random_trials(instance, 150))
    assert sum(e.verdict != "not told" for e in found.techniques) <= 1 and not found.pairs


def test_a_clash_is_found() -> None:
    instance = Instance(22)
    found = find_effects(random_trials(instance, 300))
    truth = true_pairs(instance)
    pair, coefficient = max(truth.items(), key=lambda item: abs(item[1]))
    told = {frozenset(e.name.split(" × ")): e for e in found.pairs}
    assert 0.5 < told[pair].mean / coefficient < 1.5  # shrunk
    assert sum(name in truth for name in told) >= 0.75 * len(told)


def test_a_numbers_best_place_is_found() -> None:
    """One number with a curve, one without, a gate, and noise."""
    rng, study = np.random.default_rng(0), optuna.create_study()
    dists = {
        "lr": optuna.distributions.FloatDistribution(0.001, 0.1, log=True),
        "idle": optuna.distributions.IntDistribution(1, 9),
        "gate": optuna.distributions.CategoricalDistribution((False, True)),
    }
    for _ in range(60):
        params = {
            "lr": float(10 ** rng.uniform(-3, -1)),
            "idle": int(rng.integers(1, 10)),
            "gate": bool(rng.random() < 0.5),
        }
        value = 2.0 + (np.log10(params["lr"]) + 1.4) ** 2 - 0.1 * params["gate"] + rng.normal(0, 0.02)
        study.add_trial(create_trial(value=float(value), params=params, distributions=dists))
    found = find_effects(study.trials)
    (gate,), numbers = found.techniques, {e.name.split()[0]: e for e in found.numbers}
    assert (
        gate.verdict == "helps"
        and abs(gate.mean + 0.1) < 0.03
        and gate.trials == sum(t.params["gate"] for t in study.trials)
    )
    best = float(numbers["lr"].name.split(" → ")[1])
    assert 0.02 < best < 0.08 and numbers["lr"].verdict == "helps" and numbers["idle"].verdict == "not told"
    assert 0.01 < found.noise_sd < 0.04


def test_a_pair_of_choices_says_which() -> None:
    """Only codec = b and the gate together lower the value."""
    rng = np.random.default_rng(0)
    dists: dict[str, BaseDistribution] = {
        "codec": optuna.distributions.CategoricalDistribution(("a", "b", "c")),
        "gate": optuna.distributions.CategoricalDistribution((False, True)),
    }
    study = optuna.create_study()
    for _ in range(80):
        params = {"codec": str(rng.choice(["a", "b", "c"])), "gate": bool(rng.random() < 0.5)}
        value = 2.0 - (params == {"codec": "b", "gate": True}) + float(rng.normal(0, 0.02))
        study.add_trial(create_trial(value=value, params=params, distributions=dists))
    told = {e.name: e.mean for e in find_effects(study.trials).pairs}
    assert min(told, key=lambda name: told[name]) == "gate × codec = b"


def printed(session: Session, width: int = 160, **options: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_effects(console, session, **options)
    return console.file.getvalue()  # type: ignore[attr-defined]


def session_of(folder: Path, trials: Sequence[FrozenTrial]) -> Session:
    stored = optuna.create_study()
    stored.add_trials(list(trials))
    study = find_study(write_study(folder, "told"))
    return Session(study, Folders(folder, "told"), "", stored, trainer_of(study))


def test_what_a_person_reads(tmp_path: Path) -> None:
    trials = [*random_trials(BASE, 80), create_trial(state=TrialState.FAIL)]
    session = session_of(tmp_path, trials)
    text = printed(session, top=3)
    assert "newest 80 complete trials" in text and "technique on, against off" in text
    assert "less sure (--top)" in text and "helps" in text and "several seeds" in text
    narrow = printed(session, width=80, top=100).splitlines()
    found = find_effects(trials[:80])
    names = {effect.name.split()[0] for effect in [*found.techniques, *found.numbers]}
    rows = [line for line in narrow if "│" in line]
    assert names <= {line.split()[0] for line in rows}, "every name is whole"
    assert "helps" in "".join(rows) and max(map(len, rows)) <= 80


def test_early_against_final_is_told_of_the_pruners_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest feasible ones, however long ago that was."""
    kept = {"bytes": -0.1, "train": -0.1, "eval": -0.1, "run": -1.0}
    old = [
        create_trial(
            value=1.1 + k / 1000, constraints=kept, user_attrs={REPORTS: [[0.5, 1.2 + k / 1000, 1.0]]}
        )
        for k in range(30)
    ]
    monkeypatch.setattr("search.report.effects.LARGEST", 40)
    text = printed(session_of(tmp_path, [*old, *random_trials(BASE, 40)]), top=1)
    assert "newest 40 complete trials" in text and "BPB at 50% of 30 trials" in text


def test_too_few_trials_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"at least {LEAST} complete trials, but this study has 5"):
        printed(session_of(tmp_path, random_trials(BASE, 5)))


def test_what_does_not_vary_is_not_told() -> None:
    """A gate that no trial had on, a trial without a finite value; and a study in which nothing varies."""
    dists = {
        "gate": optuna.distributions.CategoricalDistribution((False, True)),
        "lr": optuna.distributions.FloatDistribution(0.0, 1.0),
    }
    study = optuna.create_study()
    for k in range(30):
        value = float("inf") if k == 7 else 2.0 + k / 100
        study.add_trial(create_trial(value=value, params={"gate": False, "lr": k / 30}, distributions=dists))
    found = find_effects(study.trials)
    assert found.techniques == () and found.trials == 29 and found.numbers[0].verdict == "helps"
    still = optuna.create_study()
    for _ in range(LEAST):
        still.add_trial(create_trial(value=2.0, params={"gate": True}, distributions={"gate": dists["gate"]}))
    with pytest.raises(ValueError, match="nothing does"):
        find_effects(still.trials)


STORED = """
import sys
from pathlib import Path
from rich.console import Console
from benchmarks.scale import fill, study_file
from search.report.effects import print_effects
from search.session.session import open_session, read_session
from search.study.load import find_study
home = Path(sys.argv[1])
study = find_study(study_file(home))
fill(open_session(study, home=home, storage=None, environ={}), 30)
session = read_session(study, home=home, storage=None, environ={}, brief=True)
assert not any(t.params for t in session.optuna_study.get_trials(deepcopy=False))
print_effects(Console(width=160), session, top=4)
"""


@pytest.mark.slow
def test_parameters_of_a_stored_study_are_read(tmp_path: Path) -> None:
    """From PostgreSQL, for the newest trials; commands that only read leave them there otherwise."""
    tmp_path.chmod(0o755)
    try:
        told = subprocess.run(
            [sys.executable, "-c", STORED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
        )
        assert told.returncode == 0, told.stderr
        assert "newest 30 complete trials" in told.stdout and "less sure (--top)" in told.stdout
    finally:
        clear(tmp_path)
