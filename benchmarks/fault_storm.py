"""A storm: workers are killed and frozen, the database is killed, at random; is the study exact in the end?

    python -m benchmarks.fault_storm --workers 4 --trials 20 --seconds 60 --seed 1

Real workers on a private PostgreSQL with a fake trainer (tests/search/fake_trainer.py). After `--seconds` the
storm is over and the session goes on to its target; then every claim of docs/faults.md is checked.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.search.db_helpers import server_pids, server_place
from tests.search.fake_studies import (
    assert_exact,
    begin,
    clear,
    pids,
    read_trials,
    search,
    states,
    wait_for,
    workers_of,
    write_study,
)

TIMING = "heartbeat_s=1 grace_s=5 patience_s=120"
FREEZE_S = 8.0  # beyond the grace


def strike(rng: random.Random, home: Path, frozen: dict[int, float]) -> str:
    """One fault; its name, or "" when there was nobody to hit."""
    now = time.monotonic()
    for pid in [pid for pid, since in frozen.items() if now - since > FREEZE_S]:
        del frozen[pid]
        os.kill(pid, signal.SIGCONT)
    kind = rng.choice(("worker", "worker", "trainer", "freeze", "database"))
    try:
        if kind == "database":
            os.kill(server_pids(server_place(home))["postmaster"], signal.SIGKILL)
            return kind
        there = (
            pids(home, "storm") if kind == "trainer" else [p for p in workers_of("storm") if p not in frozen]
        )
        victim = rng.choice(there)
        os.kill(victim, signal.SIGSTOP if kind == "freeze" else signal.SIGKILL)
        if kind == "freeze":
            frozen[victim] = now
    except (IndexError, OSError, ValueError):
        return ""
    return kind


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fault_storm")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the storm")
    parser.add_argument("--every", type=float, default=4.0, help="seconds between two faults, in the mean")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng, struck = random.Random(options.seed), Counter[str]()
    home = Path(tempfile.mkdtemp(prefix="caddie-storm-"))
    home.chmod(0o755)
    study = write_study(home, "storm")
    words = search(study, home, options.trials, options.workers)
    frozen, sessions = dict[int, float](), 1
    running = begin(*words, CADDIE_TIMING=TIMING, FAKE_SECONDS="2")
    wait_for(lambda: pids(home, "storm"), 300)
    began = time.monotonic()  # the first trial runs
    while time.monotonic() - began < options.seconds and running.poll() != 0:
        time.sleep(rng.expovariate(1.0 / options.every))
        struck[strike(rng, home, frozen)] += 1
        if running.poll() is not None and running.returncode != 0:  # a session gives up after some deaths
            print("a session ended:", (running.communicate()[1].strip().splitlines() or [""])[-1])
            running, sessions = begin(*words, CADDIE_TIMING=TIMING, FAKE_SECONDS="2"), sessions + 1
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    errors = running.communicate(timeout=600)[1]
    assert running.returncode == 0, errors
    trials = read_trials(study, home)
    assert_exact(trials, options.trials)
    del struck[""]  # nobody was there to be hit
    assert struck, "the study was done before anything struck: more --trials, or a smaller --every"
    print(f"struck: {dict(struck)}; {sessions} session(s), {time.monotonic() - began:.0f} s")
    print(f"exact: {options.trials} of {options.trials} finished, none running, none twice; {states(trials)}")
    clear(home)
    shutil.rmtree(home)


if __name__ == "__main__":
    main()
