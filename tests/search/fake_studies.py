"""Studies on a fake trainer and a real private database, for the tests of workers and of the command line."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from search.session.session import read_session
from search.study.load import find_study
from tests.conftest import ROOT
from tests.search.db_helpers import alive, server_place, until

FAKE = Path(__file__).parent / "fake_trainer.py"
STUDY = """
[study]
name = "{name}"
preset = "laptop"
track = "open"
num_reports = 4
timeout_seconds = 60.0
[limits]
artifact_bytes = 2_000_000
train_seconds = 100.0
eval_seconds = 100.0
[fixed]
run_id = "{mode}"
[techniques]
others = "off"
[pruning]
min_trials = 100
[sampler]
kind = "tpe"  # processes are what these studies are about, and it starts a second sooner
[space]
matrix_lr = {{ low = 0.01, high = 0.1, log = true }}
scalar_lr = {{ low = 0.01, high = 0.1, log = true }}
"""
# what a reader of trials imports; some of it only where it is first needed
READER = (__name__, "alembic.command", "optuna.storages._rdb.storage", "search.storage.patient")
FINISHED = ("COMPLETE", "PRUNED")


def clear(home: Path) -> None:
    """Waits until the private database has stopped; takes away what root's keeps outside `home`."""
    place = server_place(home)
    wait_for(lambda: not processes(str(place)), 30)
    if place != home / ".caddie":
        shutil.rmtree(place, ignore_errors=True)


def processes(words: str) -> list[str]:
    """Process lines that hold these words."""
    shown = subprocess.run(["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True, check=True)
    return [line for line in shown.stdout.splitlines() if words in line]


def write_study(home: Path, name: str, mode: str = "ok") -> Path:
    path = home / f"{name}.toml"
    path.write_text(STUDY.format(name=name, mode=mode))
    return path


def command(*words: object) -> list[str]:
    return [sys.executable, str(ROOT / "search.py"), *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "CADDIE_STORAGE"} | more


def caddie(*words: object, cwd: Path = Path("/"), **env: str) -> subprocess.CompletedProcess[str]:
    """The command line, to its end."""
    return subprocess.run(
        command(*words), cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=200
    )


def begin(*words: object, **env: str) -> subprocess.Popen[str]:
    """The command line, in the background."""
    return subprocess.Popen(
        command(*words),
        cwd="/",
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_exact(trials: list[dict[str, Any]], finished: int) -> None:
    """Exactly so many finished trials, none running or lost, none twice; what failed was retried once."""
    assert [t["number"] for t in trials] == list(range(len(trials)))
    done = [t for t in trials if t["state"] in FINISHED]
    failed = [t for t in trials if t["state"] == "FAIL" and t["params"]]
    assert len(done) == finished, states(trials)
    assert set(states(trials)) <= {*FINISHED, "FAIL"}, states(trials)
    configurations = [json.dumps(t["params"], sort_keys=True) for t in done]
    assert len(set(configurations)) == finished
    assert all(len(t["constraints"]) == 4 and "overhead" in t["attrs"] for t in done)
    for t in failed:
        again = [r for r in trials if r["retry_of"] == t["number"]]
        assert len(again) == 1 and again[0]["params"] == t["params"] and "outcome" not in t["attrs"]


def search(study: Path, home: Path, trials: int, workers: int) -> list[object]:
    """The words of a run with the fake trainer."""
    words = [f"--trials={trials}", f"--workers={workers}", f"--study={study}", f"--home={home}"]
    return [*words, f"--trainer={FAKE}"]


def read_trials(study: Path, home: Path, **env: str) -> list[dict[str, Any]]:
    """Every trial, read by another process, so that this one claims no server; it is forked from one that has
    the imports, which take a second and more."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(list(READER))
    with ProcessPoolExecutor(1, mp_context=forks) as pool:
        return pool.submit(trials_of, study, home, environment(**env)).result()


def trials_of(study: Path, home: Path, environ: Mapping[str, str]) -> list[dict[str, Any]]:
    session = read_session(find_study(study), home=home, storage=None, environ=environ)
    return [
        {
            "number": t.number,
            "state": t.state.name,
            "value": t.value,
            "constraints": t.constraints,
            "attrs": t.user_attrs,
            "steps": len(t.intermediate_values),
            "params": t.params,
            "retry_of": t.system_attrs.get("retry_of"),
        }
        for t in session.optuna_study.get_trials()
    ]


def states(trials: list[dict[str, Any]]) -> dict[str, int]:
    names = [t["state"] for t in trials]
    return {name: names.count(name) for name in sorted(set(names))}


def wait_for(condition: Callable[[], object], seconds: float = 90.0) -> None:
    until(condition, seconds)


def pids(home: Path, name: str) -> list[int]:
    """Trainers that the fake wrote down, alive."""
    found = [int(p.read_text() or 0) for p in (home / "runs" / name).glob("*/pid")]
    return [pid for pid in found if pid and alive(pid)]


def workers_of(name: str) -> list[int]:
    """Worker processes of a study, by its file's name."""
    return [int(line.split()[0]) for line in processes(f"/{name}.toml") if "search.workers.worker" in line]
