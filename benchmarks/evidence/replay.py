"""Samplers on the table of real trainings: `python -m benchmarks.evidence.replay`.

A search asks for a configuration and is told what its training gave (benchmarks/evidence/table.py). Regret is
exact: the best configuration is known. Each search is a line of `--out`, and the same
command goes on from there: five to ten minutes of one core for each sampler, more for each search of `gp`,
which has fewer. The results go to docs/evidence.md, what they claim to README.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.files import DOCUMENT, ROOT, write_claim
from benchmarks.evidence.samplers import (
    Problem,
    claim_of,
    curves_of,
    reach_sentences,
    regret_table,
    search_all,
)
from benchmarks.evidence.table import SEED, Table, load_table
from benchmarks.results import write_section

SEARCHES = {"structured": 200, "tpe": 200, "optuna_tpe": 200, "random": 200, "gp": 20}
NUM_TRIALS = 80


def problem_of(table: Table) -> Problem:
    """The table as a problem; no noise: a configuration always gives what its training gave."""
    best = table.results[table.ranked()[0]][SEED]["val_bpb"]

    def run(params: Mapping[str, Any], rng: np.random.Generator) -> dict[str, float]:
        return table.result(params)

    return Problem(table.study, table.space, run, lambda params: table.result(params)["val_bpb"] - best)


def seed_sd(table: Table) -> float:
    """Standard deviation over the seeds of one configuration, BPB, pooled over those with several."""
    several = [runs for runs in table.results.values() if len(runs) > 1]
    variances = [statistics.variance(r["val_bpb"] for r in runs.values()) for runs in several]
    return math.sqrt(statistics.mean(variances)) if variances else math.nan


def again_of(table: Table) -> str:
    """What further seeds say of the best."""
    means = {
        key: statistics.mean(r["val_bpb"] for seed, r in table.results[key].items() if seed != SEED)
        for key in table.ranked()
        if len(table.results[key]) > 2
    }
    if len(means) < 2:
        return ""
    first = means[table.ranked()[0]]
    place = sorted(means.values()).index(first) + 1
    return (
        f"On further seeds of the best {len(means)}, one run has a standard deviation of "
        f"{seed_sd(table):.4f}; the best one has a mean of {first:.4f} there, place {place}; the best mean "
        f"is {min(means.values()):.4f}."
    )


def additive_share(table: Table) -> float:
    """R² of the best sum of one effect for each choice: what interactions and seeds leave is the rest."""
    choices = [(n, c) for n, d in table.space.distributions.items() for c in d.choices]  # pyright: ignore
    keys = list(table.results)
    rows = np.array([[1.0, *(table.params[k].get(n) == c for n, c in choices)] for k in keys], float)
    values = np.array([table.results[key][SEED]["val_bpb"] for key in keys])
    left = values - rows @ np.linalg.lstsq(rows, values, rcond=None)[0]
    return 1.0 - float(left.var() / values.var())


def section_of(table: Table, out: Path) -> str:
    """What docs/evidence.md says of the replay."""
    ranked = table.ranked()
    values = [table.results[key][SEED]["val_bpb"] for key in ranked]
    curves = curves_of(out, NUM_TRIALS)
    return (
        f"{len(table.results)} configurations of benchmarks/evidence/replay.toml, each trained once by "
        f"`train_gpt.py`; no limit binds. val_bpb: best {values[0]:.4f}, tenth {values[9]:.4f}, median "
        f"{statistics.median(values):.4f}, worst {values[-1]:.4f}. A sum of effects "
        f"explains {additive_share(table):.0%} of the variance. {again_of(table)}\n\n"
        f"Median regret in mBPB, 95 % interval.\n\n{regret_table(curves)}\n{reach_sentences(curves)}\n"
        f"What this says: {claim_of(curves)}.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=SEARCHES, default=list(SEARCHES))
    parser.add_argument("--searches", type=int, default=0, help="of each method; 0: its own number")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "replay_searches.jsonl")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many")
    options = parser.parse_args()
    table = load_table()
    seeds = {
        method: options.searches or many for method, many in SEARCHES.items() if method in options.methods
    }
    search_all(problem_of(table), options.out, seeds, trials=NUM_TRIALS, minutes=options.minutes)
    text = section_of(table, options.out)
    print(text)
    write_section("Exact replay", text, DOCUMENT)
    write_claim(claim_of(curves_of(options.out, NUM_TRIALS)))


if __name__ == "__main__":
    main()
