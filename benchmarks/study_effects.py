"""What a study found, as effects: `python -m benchmarks.study_effects [--study FILE] [--home DIR]`.

Least squares of val_bpb on every gate and slot choice (0 or 1) and every numeric setting that is always
active (standardised; logarithm where its range is logarithmic), over all trials that ran to their end, with
bootstrap intervals. TPE samples unevenly and trials differ in many settings at once: a row says where to
look, and is no controlled comparison.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from search.session import ROOT, find_study, read_session
from search.space import build_space
from techniques import catalog


def design(trials: list[FrozenTrial], distributions: dict[str, object]) -> tuple[list[str], np.ndarray]:
    """(column names, matrix [trials, columns]); settings that only some trials have are left out."""
    names: list[str] = []
    columns: list[np.ndarray] = []
    for name, distribution in distributions.items():
        values: list[Any] = [t.params.get(name) for t in trials]
        if any(v is None for v in values):
            continue
        if isinstance(distribution, CategoricalDistribution):
            options = distribution.choices
            for option in options[1:] if len(options) > 2 else options[-1:]:
                column = np.array([float(v == option) for v in values])
                names.append(name if isinstance(option, bool) else f"{name} = {option}")
                columns.append(column)
        elif isinstance(distribution, FloatDistribution | IntDistribution):
            column = np.array([math.log(v) if distribution.log else float(v) for v in values])
            if column.std() > 0:
                names.append(f"{name} (per standard deviation)")
                columns.append((column - column.mean()) / column.std())
    return names, np.column_stack(columns)


def effects(x: np.ndarray, y: np.ndarray, *, draws: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients and their 95 % bootstrap interval; a ridge of one trial's weight keeps thin columns
    finite."""

    def fit(rows: np.ndarray) -> np.ndarray:
        a = np.column_stack((np.ones(len(rows)), x[rows]))
        penalty = np.eye(a.shape[1])
        penalty[0, 0] = 0.0
        return np.linalg.solve(a.T @ a + penalty, a.T @ y[rows])[1:]

    rng = np.random.default_rng(0)
    draws_ = np.stack([fit(rng.integers(0, len(y), len(y))) for _ in range(draws)])
    low, high = np.quantile(draws_, [0.025, 0.975], axis=0)
    return fit(np.arange(len(y))), low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path)
    parser.add_argument("--home", type=Path, default=ROOT)
    options = parser.parse_args()
    study = find_study(options.study)
    session = read_session(study, home=options.home.absolute(), storage=None, environ=os.environ)
    finished = [t for t in session.optuna_study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    names, x = design(finished, dict(build_space(study, catalog.metadata()).distributions))
    y = np.array([float(t.value or math.nan) for t in finished])
    found, low, high = effects(x, y)
    table = Table(title=f"{study.name}: {len(y)} finished trials, effect on val_bpb (negative is better)")
    for title in ("parameter", "effect", "95 % interval", "share of trials"):
        table.add_column(title, justify="left" if title == "parameter" else "right")
    for i in np.argsort(found):
        share = f"{x[:, i].mean():.0%}" if set(np.unique(x[:, i])) <= {0.0, 1.0} else ""
        table.add_row(names[i], f"{found[i]:+.4f}", f"{low[i]:+.4f} .. {high[i]:+.4f}", share)
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
