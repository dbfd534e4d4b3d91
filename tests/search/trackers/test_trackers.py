"""Trials in MLflow and Weights & Biases, without a network; a tracker that fails fails no trial."""

from __future__ import annotations

import datetime
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.common.paths import Folders
from search.trackers.facts import facts_of
from search.trackers.feed import DEATHS, Feed, check_trackers
from search.trackers.files import FACTS, files_of, is_told, points_of
from tests.conftest import ROOT
from tests.search.fake_studies import caddie, clear, read_trials, search, states, write_study
from tests.search.report.test_report import GOOD

# a library of that name: it writes what it was told, and raises while a file says so
FAKE = """
import json, os
from pathlib import Path
HERE = Path(os.environ["FAKE_TRACKER"])
class Run:
    def __init__(self, **told):
        self.told, self.summary = told, {}
    def log(self, values, step): ...
    def log_artifact(self, artifact): ...
    def finish(self, exit_code):
        with (HERE / "told").open("a") as file:
            file.write(json.dumps([self.told["name"], exit_code, self.summary["val_bpb"]]) + "\\n")
class Artifact:
    def __init__(self, *names, **more): ...
    def add_file(self, path): ...
def Settings(**more): ...
def init(**told):
    if (HERE / "down").exists():
        raise RuntimeError("no network")
    return Run(**told)
"""


def trial_in(folders: Folders, number: int, value: float | None = 2.5, **attrs: Any) -> FrozenTrial:
    """A finished trial, with the files of its run."""
    folder = folders.trial(number)
    folder.mkdir(parents=True)
    (folder / "resolved.json").write_text('{"values": {"matrix_lr": 0.02, "xsa": true}}')
    (folder / "result.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    lines = ['{"step": 1, "train_loss": 6.9}', '{"step": 2, "train_loss": 6.5, "val_bpb": 2.9}', '{"step": 3']
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    state = TrialState.PRUNED if value is None else TrialState.COMPLETE
    more = {"techniques": ["xsa"], "legality": "legal-if-timed", "artifact_bytes": 300_000}
    more |= {"train_seconds": math.nan, "inactive": {"xsa": "inactive"}, "findings": ["look at it"]}
    trial = create_trial(state=state, value=value, constraints=GOOD, user_attrs=more | attrs)
    trial.number = number
    trial.datetime_start = datetime.datetime(2026, 11, 1, 9, 0)
    trial.datetime_complete = datetime.datetime(2026, 11, 1, 9, 1)
    return trial


def test_what_is_told_of_a_trial(tmp_path: Path) -> None:
    """Settings, figures and constraints as numbers, state, legality and findings in words."""
    folders = Folders(tmp_path, "told")
    facts = facts_of("told", trial_in(folders, 0), folders.trial(0))
    json.dumps(facts, allow_nan=False)
    assert facts["settings"] == {"matrix_lr": 0.02, "xsa": True} and facts["ended_s"] - facts["began_s"] == 60
    assert facts["figures"]["val_bpb"] == 2.5 and facts["figures"]["constraint/bytes"] == -0.1
    assert "train_seconds" not in facts["figures"] and facts["findings"] == ["look at it"]
    assert (facts["texts"]["state"], facts["texts"]["legality"]) == ("feasible", "legal-if-timed")
    pruned = facts_of("told", trial_in(folders, 1, None), folders.trial(1))
    assert pruned["texts"]["state"] == "pruned" and "val_bpb" not in pruned["figures"]
    assert [step for step, _ in points_of(folders.trial(0))] == [1, 2]
    assert [path.name for path in files_of(folders.trial(0))] == ["result.json", "config.json"]
    (folders.trial(1) / "resolved.json").write_text("[]")  # of another trainer
    assert facts_of("told", trial_in(folders, 2, 2.0, config={"A": "1"}), tmp_path)["settings"] == {"A": "1"}


def test_a_tracker_that_is_not_installed_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_trackers(())
    with pytest.raises(ValueError, match=r"wandb is not installed.*pip install 'caddie\[wandb\]'"):
        check_trackers(("wandb",))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a library called wandb."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "wandb.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    monkeypatch.setenv("FAKE_TRACKER", str(tmp_path))
    return tmp_path


def told_of(folder: Path) -> list[list[Any]]:
    path = folder / "told"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_what_failed_is_told_once_and_tried_again(fake: Path) -> None:
    """A process that dies loses nothing: the next one gets what it left."""
    complaints = list[str]()
    folders = Folders(fake, "told")
    feed = Feed("wandb", folders, complaints.append)
    (fake / "down").touch()
    for number in range(2):
        feed.tell(trial_in(folders, number))
        assert feed.process is not None
        feed.process.wait(60)
    feed.tell(trial_in(folders, 2))
    assert feed.process is not None
    feed.process.wait(60)
    (fake / "down").unlink()
    feed.tell(trial_in(folders, 3))
    feed.close(wait=True)
    assert [name for name, *_ in told_of(fake)] == ["#0", "#1", "#2", "#3"]
    assert len(complaints) == 1 and "wandb: RuntimeError: no network" in complaints[0]
    assert all(is_told("wandb", folders.trial(n)) for n in range(4)) and feed.deaths == 3 <= DEATHS


def test_an_interrupted_trial_is_not_told(fake: Path) -> None:
    folders = Folders(fake, "told")
    feed = Feed("wandb", folders, pytest.fail)
    trial = trial_in(folders, 0)
    trial.state = TrialState.FAIL
    feed.tell(trial)
    assert feed.process is None and not (folders.trial(0) / FACTS).exists()


@pytest.mark.slow
def test_a_study_with_a_tracker_that_is_down(fake: Path) -> None:
    """Every trial ends as it would, and the launcher says it."""
    study = write_study(fake, "tracked")
    study.write_text(study.read_text().replace('track = "open"', 'track = "open"\ntrackers = ["wandb"]'))
    (fake / "down").touch()
    try:
        ran = caddie(*search(study, fake, 2, 1), PYTHONPATH=os.environ["PYTHONPATH"])
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert states(read_trials(study, fake)) == {"COMPLETE": 2}
        assert "A tracker fails: wandb: RuntimeError: no network" in " ".join(ran.stdout.split())
        (fake / "down").unlink()
        ran = caddie(*search(study, fake, 3, 1), PYTHONPATH=os.environ["PYTHONPATH"])
        assert "A tracker fails" not in ran.stdout and [n for n, *_ in told_of(fake)] == ["#2"], ran.stderr
    finally:
        clear(fake)


def run_tracker(name: str, folders: Folders, numbers: range, **env: str) -> None:
    for number in numbers:
        folder = folders.trial(number)
        facts = facts_of(folders.study, trial_in(folders, number), folder)
        (folder / FACTS).write_text(json.dumps(facts))
    lines = "".join(f"{folders.trial(number)}\n" for number in numbers)
    words = [sys.executable, "-m", "search.trackers", str(folders.runs), name]
    subprocess.run(words, input=lines, text=True, check=True, cwd=ROOT, env={**os.environ, **env})


def test_mlflow_keeps_trials_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings, metrics over steps, files, constraints and legality; told again, a trial is there once."""
    mlflow: Any = importlib.import_module("mlflow")
    folders = Folders(tmp_path, "told")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    run_tracker("mlflow", folders, range(2))
    (folders.trial(1) / "tracked.mlflow").unlink()
    words = [sys.executable, "-m", "search.trackers", str(folders.runs), "mlflow"]
    subprocess.run(words, input=f"{folders.trial(1)}\n", text=True, check=True, cwd=ROOT)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient((folders.runs / "mlflow").as_uri())
    runs = client.search_runs([client.get_experiment_by_name("told").experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["#0", "#1"]
    one = runs[0]
    assert one.data.params["matrix_lr"] == "0.02" and one.data.metrics["constraint/bytes"] == -0.1
    assert one.data.metrics["val_bpb"] == 2.5 and one.data.tags["legality"] == "legal-if-timed"
    steps = [m.step for m in client.get_metric_history(one.info.run_id, "train_loss")]
    assert steps == [1, 2]
    assert {f.path for f in client.list_artifacts(one.info.run_id)} == {"result.json", "config.json"}


def test_wandb_keeps_trials_offline(tmp_path: Path) -> None:
    folders = Folders(tmp_path, "told")
    run_tracker("wandb", folders, range(2), WANDB_MODE="offline", WANDB_DATA_DIR=str(tmp_path))
    found = sorted((folders.runs / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name.split("-")[1] for path in found] == ["0", "1"]
    assert all(b"legal-if-timed" in path.read_bytes() for path in found)
    assert all(b"constraint/bytes" in path.read_bytes() for path in found)
    for word in (b"matrix_lr", b"train_loss", b"result.json", b"config.json"):  # settings, curve, files
        assert all(word in path.read_bytes() for path in found), word
