"""The cost model replayed over a finished study, and what the commands tell of it."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import create_trial
from rich.console import Console

from search.common.paths import Folders
from search.costs.bills import eval_bill, model_bill, num_params, steps_bill
from search.costs.preflight import Pair, Preflight, errors_of
from search.report.costs import accuracy_of, prediction_summary, print_costs, windows_of
from search.session.session import Session
from search.study.load import find_study
from search.trainers.trainer import trainer_of
from tests.search.fake_studies import write_study
from tests.search.fakes import make_study
from tests.search.replay import Measured, read_trials, replay


@pytest.fixture(scope="module")
def trials() -> list[Measured]:
    return read_trials()


@pytest.fixture(scope="module")
def replayed(trials: list[Measured], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Pair]]:
    return replay(Preflight(make_study(tmp_path_factory.mktemp("study")), prior={}), trials[:110])


def test_parameters_are_those_of_the_trainer(trials: list[Measured]):
    for trial in trials:
        if trial.result is not None:
            assert num_params(trial.resolved) == trial.result["params"]


def test_learning_makes_bytes_more_exact(replayed: dict[str, list[Pair]]):
    first, last = (accuracy_of(part) for part in (replayed["bytes"][:20], replayed["bytes"][-50:]))
    assert last.mean_absolute < 0.018 < first.mean_absolute < 0.05  # from the first trial on
    assert abs(last.bias) < 0.016


def test_learning_makes_seconds_as_exact_as_the_machine_is(replayed: dict[str, list[Pair]]):
    for name in ("train", "eval"):
        first, last = (accuracy_of(part) for part in (replayed[name][:20], replayed[name][-50:]))
        assert last.mean_absolute < 0.13 < first.mean_absolute
        assert abs(last.bias) < 0.06


def test_bounds_hold_as_often_as_they_say(replayed: dict[str, list[Pair]]):
    for name, pairs in replayed.items():
        assert 0.93 < accuracy_of(pairs).coverage <= 1.0, name
        assert accuracy_of(pairs[:20]).coverage >= 0.85, name
    worth = np.median([p.upper / p.predicted for p in replayed["bytes"][-50:]])
    assert worth < 1.04  # and says something


def test_an_ask_learns_in_milliseconds(trials: list[Measured], tmp_path: Path):
    preflight = Preflight(make_study(tmp_path))
    known = [(t.resolved, t.result) for t in trials if t.result is not None]
    preflight.learn(known[:-5])
    preflight.rejection(known[-1][0])
    seconds: list[float] = []
    for resolved, result in known[-5:]:
        began = time.process_time()
        preflight.learn([(resolved, result)])
        preflight.rejection(resolved)
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.2  # the least of five: other work on the machine only adds


def test_bills_grow_with_what_they_count(trials: list[Measured]):
    resolved = trials[0].resolved
    assert steps_bill(resolved, 20).total == pytest.approx(20 * steps_bill(resolved, 1).total)
    assert model_bill(resolved).total > num_params(resolved) / 4
    dearest = max(trials, key=lambda t: eval_bill(t.resolved).total)
    assert "sliding_window" in dearest.resolved.techniques or "score_first_ttt" in dearest.resolved.techniques


def test_accuracy_is_of_relative_errors():
    pairs = [Pair(100.0, 110.0, 105.0), Pair(100.0, 110.0, 85.0), Pair(100.0, 110.0, 120.0)]
    told = accuracy_of(pairs)
    assert told.count == 3 and told.mean_absolute == pytest.approx(0.4 / 3)
    assert told.bias == pytest.approx(0.1 / 3) and told.coverage == pytest.approx(2 / 3)
    counts = {name: len(part) for name, part in windows_of(pairs * 15).items()}
    assert counts == {"first 20": 20, "last 20": 20, "all": 45}
    assert list(windows_of(pairs * 6)) == ["all"]  # three equal rows tell nothing
    attrs = {"preflight": {"artifact_bytes": 100.0, "artifact_bytes_upper": 110.0}, "artifact_bytes": 104}
    assert errors_of(attrs) == {"bytes": 0.04}
    assert prediction_summary(attrs, "artifact_bytes") == ", predicted 100, at most 110, error +4.0%"
    assert prediction_summary(attrs, "eval_seconds") == ""


def test_costs_prints_every_limit(tmp_path: Path):
    stored, console = optuna.create_study(), Console(file=io.StringIO(), width=160)
    study = find_study(write_study(tmp_path, "told"))
    session = Session(study, Folders(tmp_path, "told"), "", stored, trainer_of(study))
    print_costs(console, session)
    assert "No trial with a prediction" in console.file.getvalue()  # type: ignore[attr-defined]
    for k in range(25):
        predicted = {"artifact_bytes": 1000.0, "artifact_bytes_upper": 1100.0, "eval_seconds": 2.0}
        attrs = {"preflight": predicted, "artifact_bytes": 1000 + 10 * k, "eval_seconds": 1.0}
        stored.add_trial(create_trial(value=1.0, user_attrs=attrs))
    print_costs(console, session)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "bytes" in text and "first 20" in text and "last 20" in text and "-50.0%" in text
    mean = np.mean([0.01 * k for k in range(25)])
    assert f"{mean:+.1%}" in text and f"{11 / 25:.1%}" in text
