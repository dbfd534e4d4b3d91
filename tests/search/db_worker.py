"""A worker process for the tests: `python db_worker.py COMMAND HOME ...`; prints what it saw, one line each."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

import optuna

from search import exact, storage
from search.postgres import url_of

TIMING = storage.Timing(patience_s=40.0, heartbeat_s=1, grace_s=3)


def objective(trial: optuna.Trial) -> float:
    """A few short reports, sometimes pruned; FREEZE and DURATION_S come from the environment."""
    x = trial.suggest_float("x", -5.0, 5.0)
    gate = trial.suggest_categorical("gate", [True, False])
    print(f"began {trial.number} {time.time():.3f}", flush=True)
    end = time.time() + float(os.environ.get("DURATION_S", "0.3"))
    step = 0
    while time.time() < end or step < 2:
        time.sleep(0.05)
        trial.report(x * x, step)
        step += 1
    if x > 4.0:
        raise optuna.TrialPruned
    return x * x + (0.5 if gate else 0.0)


def study_of(url: str, home: Path, *, worker: bool) -> optuna.Study:
    opened = storage.open_storage(url, worker=worker, timing=TIMING, revive=lambda: url_of(home))
    sampler = optuna.samplers.RandomSampler(seed=os.getpid())
    return storage.open_study(opened, "s", url=url, sampler=sampler)


def main(command: str, home: Path, *rest: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    url = url_of(home)
    if command == "hold":
        print("up", flush=True)
        time.sleep(float(rest[0]))
    elif command == "open":
        print("study", len(study_of(url, home, worker=False).trials), flush=True)
    elif command == "run":
        study = study_of(url, home, worker=False)
        tally = exact.run_exactly(study, objective, target=int(rest[0]), url=url)
        print("done", tally.finished, tally.running, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
