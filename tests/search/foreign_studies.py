"""A foreign script in a folder of its own and studies that drive it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from search.space.foreign import ForeignSpace
from search.space.native import build_space
from search.study.load import load_study
from search.study.model import Study
from search.trainers.process import Job, Outcome, run_trainer, trainer_environment
from search.trainers.trainer import trainer_of
from tests.search.fake_studies import ROOT

SCRIPT = Path(__file__).with_name("foreign_train.py")
HEAD = """
[study]
name = "{name}"
num_reports = 8
timeout_seconds = 60.0
[limits]
artifact_bytes = {limit}
train_seconds = 600
eval_seconds = 600
[trainer]
script = "theirs/train_gpt.py"
"""
SCORE = 'score = ["legal_ttt_exact", "final_int8_zlib_roundtrip_exact"]\n'
ENQUEUE = """
import json, sys
from pathlib import Path
from search.session.session import read_session
from search.study.load import find_study
session = read_session(find_study(Path(sys.argv[1])), home=Path(sys.argv[2]), storage=None, environ={})
for params in json.loads(sys.argv[3]):
    session.optuna_study.enqueue_trial(params)
"""


BEGIN = """
import sys
from pathlib import Path
from search.session.session import open_session
from search.study.load import find_study
from search.trainers.trainer import trainer_of
study, home, script = (Path(word) for word in sys.argv[1:])
found = find_study(study)
open_session(found, home=home, storage=None, environ={}, trainer=trainer_of(found, script))
"""


def begin(study: Path, home: Path, script: Path) -> None:
    """Stores a study without a trial, so that configurations can be queued."""
    command = [sys.executable, "-c", BEGIN, str(study), str(home), str(script)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)


def make_theirs(home: Path) -> Path:
    """The script as its author has it: beside its data, with outputs of an earlier run."""
    folder = home / "theirs"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "corpus.txt").write_text("a text\n")
    (folder / "logs").mkdir()
    (folder / "logs" / "old.txt").write_text("step:1/1 val_bpb:0.1\n")
    (folder / "final_model.ptz").write_bytes(b"old")
    shutil.copyfile(SCRIPT, folder / "train_gpt.py")
    return folder / "train_gpt.py"


def write_foreign(home: Path, name: str, text: str, limit: int = 16_000_000) -> Path:
    path = home / f"{name}.toml"
    path.write_text(HEAD.format(name=name, limit=limit) + text)
    return path


def foreign_study(home: Path, text: str, limit: int = 16_000_000) -> Study:
    """The study of these tables, its script there."""
    if not (home / "theirs").exists():
        make_theirs(home)
    study = load_study(write_foreign(home, "unit", text, limit), {})
    trainer_of(study).check()
    return study


def space_of(study: Study) -> ForeignSpace:
    """Its space."""
    space = build_space(study, {})
    assert isinstance(space, ForeignSpace)
    return space


def run_one(
    study: Study, params: dict[str, Any], folder: Path, timeout_s: float = 60.0, **more: Any
) -> Outcome:
    """One configuration through the adapter, as a worker runs it, without a database."""
    trainer, shell = trainer_of(study), dict(more.pop("shell", {}))
    environment = trainer_environment(shell, strip=trainer.hidden(), num_threads=1)
    config = trainer.complete(space_of(study).config(params))
    job = Job(folder, config, environment, timeout_s=timeout_s, command=trainer.command())
    return run_trainer(job, on_report=more.pop("on_report", lambda record, reports: None), **more)


def enqueue(study: Path, home: Path, params: str) -> None:
    """Queues configurations (JSON) of a study that was begun."""
    command = [sys.executable, "-c", ENQUEUE, str(study), str(home), params]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
