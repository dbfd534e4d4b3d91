"""An optional limit, from the study file to every report: `memory_bytes`."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial
from rich.console import Console

from search.common.paths import Folders
from search.report.leaderboard import print_leaderboard
from search.report.status import print_status
from search.report.trial import print_trial
from search.samplers.structured.beliefs import Beliefs
from search.samplers.tpe import ranks_of
from search.session.session import Session
from search.study.limits import CONSTRAINTS, Limits, feasible, set_all, violations
from search.study.load import find_study
from search.study.model import Study, study_hash, study_identity
from search.trainers.process import Outcome
from search.trainers.trainer import trainer_of
from search.workers.record import ended, note
from tests.search.fake_studies import write_study

RESULT: dict[str, Any] = {"val_bpb": 2.0, "artifact_bytes": 9, "train_seconds": 9.0, "eval_seconds": 9.0}
SPACE: dict[str, BaseDistribution] = {"matrix_lr": FloatDistribution(0.01, 0.1)}


def study_of(folder: Path, memory: str) -> Study:
    path = write_study(folder, "memory")
    path.write_text(path.read_text().replace("[limits]\n", f"[limits]\n{memory}\n"))
    return find_study(path)


def run(session: Session, peak_bytes: int | None) -> tuple[FrozenTrial, str]:
    """A trial that a worker recorded, and its note."""
    trial = session.optuna_study.ask(SPACE)
    outcome = Outcome("finished", result=RESULT | {"peak_memory_bytes": peak_bytes})
    limits = session.study.limits
    ended(trial, outcome, limits=limits, hardware="here")
    set_all(trial, violations(outcome.result, limits))
    trial.set_user_attr("config", {"matrix_lr": trial.params["matrix_lr"]})
    text = note(trial, outcome, limits)
    return session.optuna_study.tell(trial, 2.0 - 0.1 * trial.number), text


def printed(show: Any, *arguments: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(console, *arguments)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_off_it_is_nowhere(tmp_path: Path) -> None:
    study = study_of(tmp_path, "")
    assert "memory_bytes" not in study_identity(study)["limits"]
    assert study_hash(study) == study_hash(study_of(tmp_path, "memory_bytes = 0"))
    assert tuple(violations(RESULT | {"peak_memory_bytes": 10**15}, study.limits)) == CONSTRAINTS
    session = Session(study, Folders(tmp_path, "memory"), "", optuna.create_study(), trainer_of(study))
    trial, text = run(session, 10**15)
    assert feasible(trial) and "memory" not in text
    assert not any("memory" in name for name in (*trial.user_attrs, *trial.constraints))
    board = printed(print_leaderboard, session)
    assert "memory, bytes" not in board and "bytes of memory" not in board
    assert "peak memory" not in printed(print_status, session)


def test_on_it_is_part_of_what_the_study_is(tmp_path: Path) -> None:
    study = study_of(tmp_path, "memory_bytes = 2_000_000_000")
    assert study_identity(study)["limits"]["memory_bytes"] == 2_000_000_000
    assert study_hash(study) != study_hash(study_of(tmp_path, ""))
    with pytest.raises(ValueError, match="memory_bytes"):
        study_of(tmp_path, "memory_bytes = -1")


def test_a_violation_is_relative_and_an_unknown_figure_breaks_nothing() -> None:
    limits = dataclasses.replace(Limits(), memory_bytes=1000)
    assert violations({"peak_memory_bytes": 1500}, limits)["memory"] == pytest.approx(0.5)
    assert violations({"peak_memory_bytes": 600}, limits)["memory"] == pytest.approx(-0.4)
    assert (
        violations({"peak_memory_bytes": None}, limits)["memory"] == violations(None, limits)["memory"] == 0
    )


def test_a_trial_over_it_is_infeasible_everywhere(tmp_path: Path) -> None:
    study = study_of(tmp_path, "memory_bytes = 2_000_000_000")
    session = Session(study, Folders(tmp_path, "memory"), "", optuna.create_study(), trainer_of(study))
    good, text = run(session, 1_500_000_000)
    bad, said = run(session, 3_000_000_000)
    assert feasible(good) and not feasible(bad)
    assert bad.user_attrs["violation_memory"] == 0.5  # for the dashboard's table
    told = "peak memory, 3,000,000,000 of 2,000,000,000 bytes"
    assert bad.user_attrs["over_limit"] == told
    first = "**over a limit: peak memory 3,000,000,000 bytes of 2,000,000,000**"
    assert said.splitlines()[0] == first
    assert "over_limit" not in good.user_attrs and "over a limit" not in text
    assert told in " ".join(printed(print_trial, session, 1).split())
    assert "| peak memory, bytes | 1,500,000,000 | 2,000,000,000 |" in text
    board = printed(print_leaderboard, session)
    assert "1 feasible trial;" in board and "2,000,000,000 bytes of memory" in board
    assert "memory, bytes" in board and "3,000,000,000" in board
    assert "over a limit: 1 × peak memory (#1: 3,000,000,000 of 2" in printed(print_status, session)
    assert "3,000,000,000 bytes (limit 2,000,000,000)" in printed(print_trial, session, 1)
    assert "memory +0.500" in printed(print_trial, session, 1)


def test_both_samplers_learn_it(tmp_path: Path) -> None:
    study = study_of(tmp_path, "memory_bytes = 2_000_000_000")
    session = Session(study, Folders(tmp_path, "memory"), "", optuna.create_study(), trainer_of(study))
    trials = [run(session, 1_500_000_000 + 200_000_000 * k)[0] for k in range(8)]
    beliefs = Beliefs(SPACE, {})
    beliefs.learn(trials)
    assert set(beliefs.constraints) == {"memory"}
    assert ranks_of(trials[0], 1.0) < ranks_of(trials[7], 1.0)  # although its value is better
    assert trials[7].value is not None and trials[0].value is not None and trials[7].value < trials[0].value


def test_a_trial_shows_the_peak_of_each_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(tmp_path, "")
    session = Session(study, Folders(tmp_path, "memory"), "", optuna.create_study(), trainer_of(study))
    peaks = {"train": 512_300_000, "evaluate": 1_300_000_000}
    for number, anew in enumerate((True, False)):
        monkeypatch.setitem(RESULT, "stage_memory", peaks)
        monkeypatch.setitem(RESULT, "stage_memory_counts_anew", anew)
        run(session, 1_300_000_000)
        shown = " ".join(printed(print_trial, session, number).split())
        since = "within each stage" if anew else "the process's up to each stage's end"
        assert f"train 512 MB, evaluate 1,300 MB ({since})" in shown
    for name in ("stage_memory", "stage_memory_counts_anew"):
        monkeypatch.delitem(RESULT, name)
    run(session, 1)
    assert "peak memory" not in printed(print_trial, session, 2)
