"""CPU seconds of a step, and what the allocator's settings save: `python -m benchmarks.trainer.step_time`.

Times the steps of short runs of a preset in turns (A B A B …), with glibc's defaults and with the settings
that search/trainers/process.py gives its trainers; prints the medians and the median ratio of neighbours.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile

from search.common.paths import ROOT
from search.trainers.native import TRAINER
from search.trainers.process import ALLOCATOR


def cpu_seconds(preset: str, steps: int, environ: dict[str, str]) -> float:
    """User and system seconds of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *TRAINER,
            "--preset",
            preset,
            f"--iterations={steps}",
            "--num_threads=1",
            "--val_tokens=1024",
        ]
        command += [f"--out_dir={folder}"]
        subprocess.run(command, cwd=ROOT, env=environ, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    kinds = {"defaults": plain, "settings": plain | ALLOCATOR}
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(options.pairs):
        for (
            name,
            environ,
        ) in kinds.items():  # the difference of two lengths is the steps alone, without start-up
            long, short = (cpu_seconds(options.preset, steps, environ) for steps in (60, 10))
            found[name].append((long - short) / 50)
    for name, values in found.items():
        print(f"{name:9} {1000 * statistics.median(values):7.1f} CPU ms per step (median of {len(values)})")
    ratios = [b / a for a, b in zip(found["defaults"], found["settings"], strict=True)]
    print(f"settings / defaults {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    sys.exit(main())
