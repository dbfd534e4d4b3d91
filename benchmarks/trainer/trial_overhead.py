"""CPU seconds of a laptop trial: `python -m benchmarks.trainer.trial_overhead [--code CHECKOUT] [--drawn]`.

The same trials as forks of a warm process, as fresh processes (`--no-fork`) and, with `--code`, as those of
another checkout: in turns, some trials each. CPU seconds are those of all of a trial's processes; `start` is
that of a warm process, once in a hundred trials; `timed` are the trainer's own, of training and scoring. The
last way is the base of the ratios. Ways whose scores or artifacts differ are told; those of one checkout must
be equal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from search.common.paths import DEFAULT_STUDY, ROOT
from search.samplers.admission import draw_all
from search.space.native import build_space
from search.study.load import find_study
from search.trainers.warm import RUNS
from techniques import catalog

# Runs in the checkout that it measures: what both know of search/trainers/process.py is enough.
TURN = """
import json, os, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from search.trainers.process import Job, run_trainer, trainer_environment
told = json.loads(sys.stdin.read())
more = {}
if told["warm"]:
    from search.trainers.warm import WarmTrainers
    more["warm"] = WarmTrainers()
environment = trainer_environment(os.environ, strip=set(), num_threads=1)
def one(k):
    job = Job(Path(told["folder"]) / str(k), told["configs"][k], environment, 3600.0, **more)
    outcome = run_trainer(job, on_report=lambda record, reports: None)
    result = outcome.result or {}
    return {"bpb": result.get("val_bpb"), "sha256": result.get("sha256"), "reason": outcome.reason,
        "timed": (result.get("train_seconds") or 0) + (result.get("eval_seconds") or 0)}
began = time.perf_counter()
with ThreadPoolExecutor(told["at_once"]) as pool:
    found = list(pool.map(one, range(len(told["configs"]))))
wall_s = time.perf_counter() - began  # with the start of the warm process
used = os.times()
cpu_s, start_s = used.children_user + used.children_system, 0.0
if told["warm"]:  # of its runs, and of its own: it is waited for last
    time.sleep(1.0)
    numbers = Path(f"/proc/{more['warm'].process.pid}/stat").read_text().rpartition(")")[2].split()
    own = [int(n) / os.sysconf("SC_CLK_TCK") for n in numbers[11:15]]
    cpu_s, start_s = cpu_s + sum(own[2:]), sum(own[:2])
    more["warm"].close()
print(json.dumps({"ended": found, "cpu_s": cpu_s, "start_s": start_s, "wall_s": wall_s}))
"""


def configs_of(count: int, *, drawn: bool, seed: int) -> list[dict[str, Any]]:
    """The laptop study's starting point on other seeds, or configurations drawn from its space."""
    space = build_space(find_study(DEFAULT_STUDY), catalog.metadata())
    rng = np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    while len(found) < count:
        params = space.repaired(draw_all(space, rng)) if drawn else {}
        with contextlib.suppress(ValueError):
            resolved = space.resolve(params)
            paths = {n: str(ROOT / resolved.values[n]) for n in ("data_path", "tokenizer_path")}
            found.append({**space.config(params), **paths, "num_threads": 1, "seed": seed + len(found)})
    return found


@dataclass
class Way:
    """One way to run the trials, and what its turns took."""

    name: str
    root: Path
    warm: bool
    cpu_s: list[float] = field(default_factory=list[float])  # of the trials of each turn
    start_s: list[float] = field(default_factory=list[float])  # of the warm process of each turn
    wall_s: list[float] = field(default_factory=list[float])
    ended: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])  # each trial

    def turn(self, configs: Sequence[Mapping[str, Any]], at_once: int) -> None:
        environ = {**os.environ, "PYTHONPATH": str(self.root)}
        with tempfile.TemporaryDirectory() as folder:
            told = {"folder": folder, "configs": configs, "warm": self.warm, "at_once": at_once}
            ran = subprocess.run(
                [sys.executable, "-c", TURN],
                input=json.dumps(told),
                cwd=self.root,
                env=environ,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        found = json.loads(ran.stdout)
        self.wall_s.append(found["wall_s"])
        self.cpu_s.append(found["cpu_s"])
        self.start_s.append(found["start_s"])
        self.ended += found["ended"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--code", type=Path, help="another checkout of this project")
    parser.add_argument("--trials", type=int, default=4, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument("--at-once", type=int, default=1, help="trials side by side")
    parser.add_argument("--drawn", action="store_true", help="other configurations in each turn")
    options = parser.parse_args()
    ways = [Way("warm", ROOT, True), Way("--no-fork", ROOT, False)]
    if options.code:
        ways.append(Way(str(options.code), options.code.resolve(), False))
    for k in range(options.rounds):
        configs = configs_of(options.trials, drawn=options.drawn, seed=1000 * k)
        for way in ways:
            way.turn(configs, options.at_once)
    wholes = [np.array(w.cpu_s) / options.trials + np.array(w.start_s) / RUNS for w in ways]
    print(f"{options.rounds} turns of {options.trials} trials, {options.at_once} at once; CPU s of a trial")
    for way, each in zip(ways, wholes, strict=True):
        timed = np.mean([one["timed"] for one in way.ended])
        an_hour = 3600 * options.trials / np.array(way.wall_s)
        start = np.median(way.start_s)
        print(
            f"{way.name:24.24} {np.median(each):6.2f}  timed {timed:5.2f}  start {start:4.1f}  "
            f"ratio {np.median(each / wholes[-1]):.2f}  trials an hour {np.median(an_hour):5.0f}, ratio "
            f"{np.median(np.array(ways[-1].wall_s) / np.array(way.wall_s)):.2f}"
        )
    ends = [[(one["sha256"], one["bpb"], one["reason"]) for one in way.ended] for way in ways]
    other = [way.name for way, found in zip(ways, ends, strict=True) if found != ends[0]]
    print(f"results differ from {ways[0].name}: {', '.join(other)}" if other else "equal results")


if __name__ == "__main__":
    main()
