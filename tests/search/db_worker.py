"""A worker process for the tests: `python db_worker.py COMMAND HOME NUMBER`; prints what it saw."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

import alembic.command  # noqa: F401  (once, before the forks)
import optuna

from search.storage import patient as storage
from search.storage.server import url_of
from search.storage.url import resolve_url
from search.workers import exact

TIMING = storage.Timing(patience_s=40.0, heartbeat_s=1, grace_s=3)


def objective(trial: optuna.Trial) -> float:
    """Some short reports over DURATION_S seconds; one in ten is pruned."""
    x = trial.suggest_float("x", -5.0, 5.0)
    gate = trial.suggest_categorical("gate", [True, False])
    print(f"began {trial.number}", flush=True)
    end = time.time() + float(os.environ.get("DURATION_S", "0.3"))
    step = 0
    while time.time() < end or step < 2:
        time.sleep(0.05)
        trial.report(x * x, step)
        step += 1
    if x > 4.0:
        raise optuna.TrialPruned
    return x * x + (0.5 if gate else 0.0)


def study_of(url: str, home: Path) -> optuna.Study:
    """The study `s`, opened the way a worker of the product does."""
    opened = storage.open_storage(url, worker=False, timing=TIMING, revive=lambda: url_of(home))
    sampler = optuna.samplers.RandomSampler(seed=os.getpid())
    return storage.open_study(opened, "s", url=url, sampler=sampler)


def opened_by_many(home: Path, number: int) -> int:
    """Opens the study in `number` processes at once, forked before there is any connection."""
    children: list[int] = []
    for _ in range(number):
        pid = os.fork()
        if pid == 0:
            url = resolve_url(None, home=home, environ=os.environ)
            os.write(1, f"study {len(study_of(url, home).trials)}\n".encode())
            os._exit(0)
        children.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children)


def main(command: str, home: Path, number: int) -> int:
    """open NUMBER processes, or run until NUMBER trials are finished."""
    logging.basicConfig(level=logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if command == "open":
        return opened_by_many(home, number)
    url = resolve_url(None, home=home, environ=os.environ)
    tally = exact.run_exactly(study_of(url, home), objective, target=number, url=url)
    print("done", tally.finished, tally.running, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
