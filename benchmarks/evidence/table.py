"""A small space, every configuration of which was trained once for real, and what the trainings gave.

The space is benchmarks/evidence/replay.toml, a study like any other; benchmarks/evidence/train.py made
benchmarks/evidence/replay.json.xz of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution

from benchmarks.evidence.files import FOLDER, pack, unpack
from search.space.native import build_space
from search.space.space import Space
from search.study.load import load_study
from search.study.model import Study
from techniques import catalog
from techniques.config import digest

STUDY = FOLDER / "replay.toml"
TABLE = FOLDER / "replay.json.xz"
SEED = 1337  # the trainer's own; every configuration has it
FIGURES = ("val_bpb", "artifact_bytes", "code_bytes", "train_seconds", "eval_seconds")
Params = Mapping[str, Any]
Line = Mapping[str, Any]  # of one training: params, seed, FIGURES


@dataclass(frozen=True)
class Table:
    """What was trained: key of a configuration -> seed -> FIGURES."""

    study: Study
    space: Space
    params: dict[str, dict[str, Any]]  # key -> its parameters, of every configuration
    results: dict[str, dict[int, dict[str, float]]]

    def key(self, params: Params) -> str:
        return digest(self.space.keep_active(params))

    def result(self, params: Params, seed: int = SEED) -> dict[str, float]:
        """FIGURES of a configuration; KeyError when it was not trained on this seed."""
        return self.results[self.key(params)][seed]

    def feasible(self, key: str) -> bool:
        return self.results[key][SEED]["artifact_bytes"] <= self.study.limits.artifact_bytes

    def ranked(self) -> list[str]:
        """Keys of what was trained and keeps the limit, the best first."""
        kept = [key for key, runs in self.results.items() if SEED in runs and self.feasible(key)]
        return sorted(kept, key=lambda key: self.results[key][SEED]["val_bpb"])


def configurations(space: Space) -> dict[str, dict[str, Any]]:
    """key -> active parameters, of every configuration; the space may hold choices only."""
    dists = space.distributions
    options = [d.choices for d in dists.values() if isinstance(d, CategoricalDistribution)]
    assert len(options) == len(dists), dists
    found: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*options):
        params = space.keep_active(dict(zip(dists, values, strict=True)))
        found.setdefault(digest(params), params)
    return found


def gathered(lines: Sequence[Line]) -> Table:
    """The table of these trainings; those that are not of the space are left out."""
    known = catalog.metadata()
    study = load_study(STUDY, known)
    space = build_space(study, known)
    table = Table(study, space, configurations(space), {})
    for line in lines:
        key = table.key(line["params"])
        if key not in table.params:
            continue
        runs = table.results.setdefault(key, {})
        runs[line["seed"]] = {name: line[name] for name in FIGURES}
    return table


def write_table(table: Table, machine: str, path: Path = TABLE) -> None:
    """`machine`: what the last bits depend on."""
    names = list(table.space.distributions)
    rows = [
        [*(table.params[key].get(name) for name in names), seed, *(figures[f] for f in FIGURES)]
        for key, runs in table.results.items()
        for seed, figures in runs.items()
    ]
    pack(path, {"machine": machine, "params": names, "rows": rows})


def load_table(path: Path = TABLE) -> Table:
    """The committed table."""
    content = unpack(path)
    names = content["params"]
    lines: list[dict[str, Any]] = []
    for row in content["rows"]:
        params = {n: v for n, v in zip(names, row, strict=False) if v is not None}
        told = zip(("seed", *FIGURES), row[len(names) :], strict=True)
        lines.append({"params": params, **dict(told)})
    return gathered(lines)


def trained_on(path: Path = TABLE) -> str:
    """The machine of the committed table."""
    return unpack(path)["machine"]
