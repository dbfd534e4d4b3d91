"""A small real study from a clean folder: real trainer, real text, private PostgreSQL, two workers, six
trials."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from corpus.build import build
from corpus.export import Target
from search.study.limits import CONSTRAINTS
from tests.search.db_helpers import server_place
from tests.search.fake_studies import FINISHED, caddie, clear, processes, read_trials, wait_for

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow

STUDY = """
[study]
name = "tiny"
question = "does the whole path work?"
preset = "laptop"
track = "record"
num_reports = 4
[limits]
artifact_bytes = 1_000_000
train_seconds = 60.0
eval_seconds = 60.0
[fixed]
data_path = "{data}"
tokenizer_path = "{tokenizer}"
vocab_size = {vocab}
num_layers = 2
model_dim = 32
num_heads = 2
num_kv_heads = 2
train_seq_len = 64
train_batch_tokens = 512
iterations = 30
warmdown_iters = 10
val_tokens = 2048
val_batch_size = 2048
report_tokens = 512
[techniques]
leaky_relu2 = "free"
xsa = "free"
others = "off"
[space]
matrix_lr = {{ low = 0.01, high = 0.1, log = true }}
"""
VOCAB = 512


def servers(home: Path) -> list[str]:
    """Processes of this study's database, wherever root keeps it."""
    return processes(str(server_place(home)))


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """The study over a corpus that the product builds from a few of Python's own sources."""
    text = tmp_path / "text.txt"
    modules = (argparse, ast, inspect, textwrap, subprocess, json, re, shlex)
    text.write_text("\n\n".join(inspect.getsource(module) for module in modules))
    target = Target(tmp_path / "data", "tiny", VOCAB)
    build(target, [text])
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY.format(data=target.folder, tokenizer=target.tokenizer_path, vocab=VOCAB))
    return path


def test_six_trials_from_a_clean_folder(study_file: Path, tmp_path: Path) -> None:
    options = [f"--study={study_file}", f"--home={tmp_path}"]
    ran = caddie("--trials=6", "--workers=2", *options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "6 of 6 trials done" in ran.stdout and "bits/byte" in ran.stdout
    assert "not a claim" in ran.stdout  # the warning beside the leaderboard

    trials = read_trials(study_file, tmp_path)
    assert not [t for t in trials if t["state"] in ("RUNNING", "WAITING")]
    finished = [t for t in trials if t["state"] in FINISHED]
    assert len(finished) == 6
    assert len({t["attrs"]["hash"] for t in finished}) == 6  # no configuration twice
    for trial in trials:
        assert set(trial["constraints"]) == set(CONSTRAINTS), trial["number"]
        assert trial["attrs"]["worker"] and trial["attrs"]["config"]
    complete = [t for t in trials if t["state"] == "COMPLETE"]
    assert complete and all(t["attrs"]["artifact_bytes"] > 0 for t in complete)
    check_best_repeats(ran.stdout, complete)
    check_bytes(complete, tmp_path / "exported", options)

    again = caddie("--trials=6", *options)
    assert again.returncode == 0 and "Nothing to do" in again.stdout and "Best: #" in again.stdout
    assert caddie("status", *options).returncode == 0
    wait_for(lambda: not servers(tmp_path), 20)  # the database stops with its last user
    clear(tmp_path)


def check_bytes(complete: list[dict[str, Any]], folder: Path, options: list[str]) -> None:
    """What the study counted is, to the byte, what is exported: the script, and the model that it packs."""
    for trial in complete:
        to = folder / str(trial["number"])
        ran = caddie("export", f"--trial={trial['number']}", f"--to={to}", *options)
        assert ran.returncode == 0, ran.stderr
        alone = [sys.executable, "-I", "train_gpt.py"]
        ran = subprocess.run(alone, cwd=to, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert {p.name for p in to.iterdir()} == {"train_gpt.py", "artifact.bin", "train.log"}
        script = (to / "train_gpt.py").stat().st_size
        model = (to / "artifact.bin").stat().st_size
        assert (trial["attrs"]["code_bytes"], trial["attrs"]["artifact_bytes"]) == (script, script + model)


LAPTOP = """
num_layers = { low = 2, high = 4 }
model_dim = { low = 48, high = 80, step = 16 }
"bigram_hash.rows" = { low = 512, high = 8192, log = true }
"score_first_ttt.chunk_tokens" = { choices = [256, 512] }
"gptq.calib_batches" = { low = 1, high = 4 }
"""


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_twelve_random_configurations_take_the_bytes_that_the_study_counted(
    study_file: Path, tmp_path: Path
) -> None:
    """Of the laptop study's space, every technique free."""
    head = study_file.read_text().partition("[techniques]")[0]
    head = re.sub(r"(num_layers|model_dim) = \d+\n", "", head).replace("iterations = 30", "iterations = 12")
    study_file.write_text(f'{head}[techniques]\nothers = "free"\n[space]\n{LAPTOP}')
    options = [f"--study={study_file}", f"--home={tmp_path}"]
    ran = caddie("--trials=12", "--workers=2", "--sampler=random", *options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    ended = [t for t in read_trials(study_file, tmp_path) if "code_bytes" in t["attrs"]]
    assert len(ended) >= 8 and len({tuple(t["attrs"]["techniques"]) for t in ended}) > 6
    check_bytes(ended, tmp_path / "exported", options)
    clear(tmp_path)


def check_best_repeats(printed: str, complete: list[dict[str, Any]]) -> None:
    """The printed line trains the best configuration again, to the same score on the same machine."""
    command = re.search(r"^  (python train_gpt\.py .+)$", printed, re.MULTILINE)
    assert command is not None, printed
    words = shlex.split(command[1])
    out = Path(words[-1]).parent / "again"
    ran = subprocess.run(
        [sys.executable, *words[1:], f"--out_dir={out}"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    best = min(t["value"] for t in complete)
    assert json.loads((out / "result.json").read_text())["val_bpb"] == pytest.approx(best, abs=1e-6)
