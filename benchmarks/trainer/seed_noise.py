"""How far two runs differ that differ in the seed alone: `python -m benchmarks.trainer.seed_noise --seeds 8`.

Prints each seed's val_bpb, their standard deviation with a 95 % interval (chi-square), and a run's seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from scipy.stats import chi2

from search.common.paths import ROOT
from search.trainers.native import TRAINER


def run(preset: str, seed: int, folder: Path) -> dict:
    out = folder / str(seed)
    command = [*TRAINER, "--preset", preset, f"--seed={seed}", "--num_threads=1", f"--out_dir={out}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads((out / "result.json").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            result = run(options.preset, seed, Path(folder))
            rows.append({k: result[k] for k in ("val_bpb", "train_seconds", "eval_seconds", "true_seconds")})
            print(
                f"seed {seed}  val_bpb {rows[-1]['val_bpb']:.4f}  {rows[-1]['true_seconds']:.1f} s",
                flush=True,
            )
    n, sd = len(rows), statistics.stdev(r["val_bpb"] for r in rows)
    low, high = (sd * ((n - 1) / float(chi2.ppf(q, n - 1))) ** 0.5 for q in (0.975, 0.025))
    mean = statistics.fmean(r["val_bpb"] for r in rows)
    print(f"mean {mean:.4f}  standard deviation {sd:.4f} (95 % interval {low:.4f} to {high:.4f}), {n} seeds")
    if options.json:
        summary = {"mean": mean, "sd": sd, "interval": [low, high], "rows": rows}
        options.json.write_text(json.dumps(summary, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
