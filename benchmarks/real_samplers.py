"""TPE against the structured sampler on real trials, side by side, from empty homes.

    python -m benchmarks.real_samplers [--trials 40] [--seeds 3] [--write]

The laptop study with half the steps, without evaluation techniques and without limits in seconds, so that a
busy machine changes nothing but the time it takes: trials have a fixed number of steps, and what binds is the
bytes. Both searches run at once with one worker each. The best feasible configuration of each is trained
again on fresh seeds: the best of many single runs is lucky. --write: added to what is in
docs/real_samplers.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.stage_cache import READ, ROOT
from techniques import catalog

DOCUMENT = ROOT / "docs" / "real_samplers.md"
RESULTS = ROOT / "benchmarks" / "real_samplers.json"
KINDS = ("tpe", "structured")
STEPS = 50
EVERY = (5, 10, 20, 30, 40, 60, 80, 100)
HEAD = """# TPE and the structured sampler on real trials

Written by `python -m benchmarks.real_samplers --write`; do not edit. Real trials under each sampler, one
worker each, both at once on {cores} {machine} cores, from empty homes: the laptop study with {steps} steps,
without evaluation techniques, without limits in seconds. val_bpb, smaller is better; the last column has the
standard deviation over seeds. A row is a search with the samplers of its date; each run of the command adds
one for each sampler. What hundreds of replayed searches say: [evidence.md](evidence.md).

"""
TAIL = """
Winners on fresh seeds, structured less TPE, mean of {count} pairs of searches: {mean:+.4f} ± {error:.4f}
(standard error). So few searches say that both work on a real trainer, and hardly which is better.
"""
COLUMNS = ("median", "not feasible", "seconds in trainers", "date", "winner again, fresh seeds")
Searched = dict[
    str, Any
]  # best (after so many trials), median, not_feasible, seconds, date, again (mean, sd)


def study_of(home: Path) -> Path:
    """The study's file, made when it is not there."""
    path = home / "samplers.toml"
    if not path.exists():
        text = (ROOT / "studies" / "laptop.toml").read_text(encoding="utf-8")
        late = [name for name, cls in catalog.metadata().items() if cls.stage == "evaluate"]
        changes = {
            'name = "laptop"': 'name = "samplers"',
            "train_baselines = 1.4": "train_seconds = 9999.0",
            "eval_baselines = 6.0": "eval_seconds = 9999.0",
            "[fixed]": f"[fixed]\niterations = {STEPS}\nwarmdown_iters = {STEPS * 2 // 5}",
            "[techniques]": "[techniques]\n" + "\n".join(f'{name} = "off"' for name in late),
        }
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        unread = re.compile(rf'^"?({"|".join(late)})\..*\n', re.MULTILINE)
        path.write_text(unread.sub("", text), encoding="utf-8")
    return path


def begin(kind: str, home: Path, trials: int) -> subprocess.Popen[bytes]:
    """The study under one sampler."""
    home.mkdir()
    command = [sys.executable, str(ROOT / "search.py"), f"--trials={trials}", "--workers=1"]
    command += [f"--study={study_of(home)}", f"--home={home}", f"--sampler={kind}"]
    with open(home / "search.log", "wb") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def trials_of(home: Path) -> list[dict[str, Any]]:
    """value, attrs and ok of each finished trial, in their order."""
    read = [sys.executable, "-c", READ, str(study_of(home)), str(home)]
    return json.loads(subprocess.run(read, cwd=ROOT, check=True, capture_output=True).stdout)


def kept(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [t for t in trials if t["ok"] and t["value"] is not None]


def again(config: dict[str, Any], seed: int, folder: Path) -> float:
    """val_bpb of the configuration on another seed."""
    folder.mkdir(parents=True)
    path = folder / "config.json"
    path.write_text(json.dumps(config | {"seed": seed}))
    command = [sys.executable, str(ROOT / "train_gpt.py"), str(path), f"--out_dir={folder}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return float(json.loads((folder / "result.json").read_text())["val_bpb"])


def told_of(trials: list[dict[str, Any]], seeds: list[float], at: list[int]) -> Searched:
    """What is kept of a search."""
    good = kept(trials)
    best = {n: min((t["value"] for t in kept(trials[:n])), default=float("nan")) for n in at}
    return {
        "best": {str(n): round(value, 4) for n, value in best.items()},
        "median": round(statistics.median(t["value"] for t in good), 4),
        "not_feasible": round(1 - len(good) / len(trials), 3),
        "seconds": round(sum(t["attrs"].get("stages", {}).get("spent_s", 0.0) for t in trials)),
        "date": datetime.date.today().isoformat(),
        "again": [round(statistics.mean(seeds), 4), round(statistics.stdev(seeds), 4)],
    }


def table_of(searches: list[dict[str, Searched]]) -> str:
    """A row for each sampler of each pair of searches."""
    at = list(searches[0][KINDS[0]]["best"])
    titles = ["sampler", *(f"best @{n}" for n in at), *COLUMNS]
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " --- |" * (len(titles) - 1)]
    for pair in searches:
        for kind, one in pair.items():
            cells = [*(f"{one['best'][n]:.4f}" for n in at), f"{one['median']:.4f}"]
            cells += [f"{one['not_feasible']:.0%}", str(one["seconds"]), one["date"]]
            cells += ["{:.4f} ± {:.4f}".format(*one["again"])]
            lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def document_of(searches: list[dict[str, Searched]]) -> str:
    """The page: a table for each length of searches, and what all pairs say together."""
    by_length: dict[int, list[dict[str, Searched]]] = {}
    for pair in searches:
        by_length.setdefault(max(map(int, pair[KINDS[0]]["best"])), []).append(pair)
    text = HEAD.format(steps=STEPS, cores=os.cpu_count(), machine=platform.machine())
    for trials, pairs in sorted(by_length.items()):
        text += f"## {trials} trials\n\n{table_of(pairs)}\n"
    if len(searches) < 2:
        return text
    apart = [pair["structured"]["again"][0] - pair["tpe"]["again"][0] for pair in searches]
    error = statistics.stdev(apart) / len(apart) ** 0.5
    return text.rstrip() + "\n" + TAIL.format(count=len(apart), mean=statistics.mean(apart), error=error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3, help="fresh ones for each winner, at least 2")
    parser.add_argument("--write", action="store_true", help=f"to {DOCUMENT.relative_to(ROOT)}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="samplers-") as place:
        homes = {kind: Path(place) / kind for kind in KINDS}
        running = {kind: begin(kind, home, options.trials) for kind, home in homes.items()}
        for kind, process in running.items():
            if process.wait() != 0:
                sys.exit(f"{kind} failed:\n{(homes[kind] / 'search.log').read_text()[-2000:]}")
        found = {kind: trials_of(home) for kind, home in homes.items()}
        at = [n for n in EVERY if n < options.trials] + [options.trials]
        pair: dict[str, Searched] = {}
        for kind, trials in found.items():
            config = min(kept(trials), key=lambda t: t["value"])["attrs"]["config"]
            folder = Path(place) / "again" / kind
            seeds = [again(config, 1000 + k, folder / str(k)) for k in range(options.seeds)]
            pair[kind] = told_of(trials, seeds, at)
    print(table_of([pair]), end="")
    if options.write:
        old = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
        searches = [*old, pair]
        RESULTS.write_text(json.dumps(searches, indent=1) + "\n", encoding="utf-8")
        DOCUMENT.write_text(document_of(searches), encoding="utf-8")


if __name__ == "__main__":
    main()
