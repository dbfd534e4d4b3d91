"""What the stage cache saves: one small real study without the cache and with it, the same number of trials.

    python -m benchmarks.stage_cache [--trials 16] [--to stage_cache.json]

Each study starts in an empty home with one worker. Seconds are the trainers' own wall seconds and the
processor seconds of everything the study started (steadier where other work shares the machine).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STUDY = """
[study]
name = "stage_cache"
question = "what does the stage cache save?"
preset = "laptop"
num_reports = 4
[limits]
artifact_bytes = 1_000_000
train_seconds = 600.0
eval_seconds = 600.0
[fixed]
num_threads = 1
iterations = 50
warmdown_iters = 20
[techniques]
others = "off"
xsa = "free"
leaky_relu2 = "free"
warmdown = "free"
mixed_bits = "free"
gptq = "free"
gptq_lite = "free"
zstd = "free"
lzma_xz = "free"
sliding_window = "free"
score_first_ttt = "free"
[space]
matrix_lr = { low = 0.01, high = 0.15, log = true }
scalar_lr = { low = 0.01, high = 0.15, log = true }
"sliding_window.stride" = { low = 16, high = 128, log = true }
"score_first_ttt.chunk_tokens" = { choices = [4096, 8192, 16384] }
"score_first_ttt.epochs" = { low = 1, high = 2 }
"score_first_ttt.stride" = { low = 64, high = 256, log = true }
[sampler]
startup_trials = 6
"""
READ = """
import json, sys
from pathlib import Path
from search.session.session import read_session
from search.study.load import find_study
session = read_session(find_study(Path(sys.argv[1])), home=Path(sys.argv[2]), storage=None, environ={})
trials = session.optuna_study.get_trials(deepcopy=False)
print(json.dumps([{"value": t.value, "attrs": t.user_attrs, "ok": all(v <= 0 for v in t.constraints.values())}
                  for t in trials if t.state.name in ("COMPLETE", "PRUNED")]))
"""


def run(home: Path, trials: int, *words: str) -> dict[str, Any]:
    """One study from an empty home to its end, in seconds, hits and its best trial."""
    home.mkdir()
    study = home / "stage_cache.toml"
    study.write_text(STUDY)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, str(ROOT / "search.py"), f"--trials={trials}", "--workers=1"]
    subprocess.run([*command, f"--study={study}", f"--home={home}", *words], check=True, cwd=ROOT)
    wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    read = [sys.executable, "-c", READ, str(study), str(home)]
    found = json.loads(subprocess.run(read, cwd=ROOT, check=True, capture_output=True).stdout)
    stages = [t["attrs"].get("stages", {}) for t in found]
    spent, curve = 0.0, list[tuple[float, float]]()  # best val_bpb after so many seconds in trainers
    for trial, facts in zip(found, stages, strict=True):
        spent += facts.get("spent_s", 0.0)
        if trial["value"] is not None and trial["ok"]:
            curve.append((spent, min([trial["value"], *(bpb for _, bpb in curve)])))
    return {
        "trials": len(found),
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "trainer_s": spent,
        "saved_s": sum(f.get("saved_s", 0.0) for f in stages),
        "hits": dict(Counter(stage for f in stages for stage in f.get("reused", []))),
        "sent": sum("from_checkpoint" in t["attrs"] for t in found),
        "best": curve[-1][1] if curve else None,
        "curve": curve,
    }


def at(curve: list[tuple[float, float]], seconds: float) -> float | None:
    """The best val_bpb after `seconds` in trainers."""
    return next((bpb for spent, bpb in reversed(curve) if spent <= seconds), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--to", type=Path, default=ROOT / "runs" / "stage_cache.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stage-cache-") as place:
        found = {
            "off": run(Path(place) / "off", options.trials, "--cache=off"),
            "on": run(Path(place) / "on", options.trials),
        }
    print(f"\n{os.cpu_count()} cores, {platform.machine()}, {options.trials} trials each, one worker")
    print(
        f"{'cache':6}{'wall s':>9}{'cpu s':>9}{'trainers s':>12}{'saved s':>9}{'best bpb':>10}  hits by stage"
    )
    for name, one in found.items():
        hits = ", ".join(f"{k} {v}" for k, v in one["hits"].items()) or "none"
        print(
            f"{name:6}{one['wall_s']:9.1f}{one['cpu_s']:9.1f}{one['trainer_s']:12.1f}{one['saved_s']:9.1f}"
            f"{one['best']:10.4f}  {hits}"
        )
    off, on = found["off"], found["on"]
    share = 1 - on["cpu_s"] / off["cpu_s"]
    print(f"processor seconds saved: {share:.1%}; {on['sent']} trials sent to a checkpoint")
    within = on["saved_s"] / (on["saved_s"] + on["trainer_s"])
    print(f"of the trainer seconds that `on` would have taken without hits: {within:.1%} saved")
    print(f"best of `off` after the trainer seconds of `on`: {at(off['curve'], on['trainer_s'])}")
    options.to.parent.mkdir(parents=True, exist_ok=True)
    options.to.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
