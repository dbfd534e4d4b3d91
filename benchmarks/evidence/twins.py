"""Models of the laptop study, fitted to real trials, as problems: `python -m benchmarks.evidence.twins`.

    --export HOME [HOME …]   packs the finished trials of the studies in these homes, and nothing else
    --add HOME [HOME …]      packs them beside those that were packed before
    --check                  cross-validation alone, no search

A twin predicts val_bpb, bytes and both seconds of any configuration of studies/laptop.toml, from every
parameter and from the calculators' bills. It is gradient boosting or a random forest: no sum of effects. A
search minimises what the twin says, plus the noise of a seed, under the study's limits; regret is told
against the best that any search of that twin found. Each search is a line of `--out`, and the same command
goes on from there. The results go to docs/evidence.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import spearmanr

from benchmarks.evidence.files import DOCUMENT, FOLDER, ROOT, pack, unpack
from benchmarks.evidence.samplers import Problem, curves_of, reach_sentences, regret_table, search_all
from benchmarks.results import write_section
from search.common.attributes import result_of
from search.common.numeric import place
from search.costs.bills import eval_bill, model_bill, train_bill
from search.session.session import read_session
from search.space.native import NativeSpace, build_space
from search.space.nearest import near_settings
from search.space.space import Space
from search.study.load import find_study
from search.study.model import Study
from techniques import catalog

Array = NDArray[np.float64]
Params = Mapping[str, Any]
STUDY = ROOT / "studies" / "laptop.toml"
TRIALS = FOLDER / "trials.json.xz"
FIGURES = ("val_bpb", "artifact_bytes", "code_bytes", "train_seconds", "eval_seconds")
TARGETS = ("val_bpb", "artifact_bytes", "train_seconds", "eval_seconds")  # of a twin, all by their logarithm
KINDS = ("boosting", "forest")
SEARCHES = {"structured": 20, "tpe": 20, "optuna_tpe": 20, "random": 20}
NUM_TRIALS = 100
FOLDS = 10
DIGITS = 6
SEED_SD = 0.007  # BPB, of runs that differ in the seed alone: docs/laptop.md
ABSENT = -3.0  # the place of a number that means nothing; those that do lie from -1 to 1


@dataclass(frozen=True)
class Trials:
    """Real trials of one study."""

    study: Study  # its limits in seconds, as on the machine of the trials
    space: Space
    params: list[dict[str, Any]]
    results: list[dict[str, float]]  # FIGURES

    @functools.cached_property
    def rows(self) -> Array:
        """[trials, features]"""
        features = Features(self.space)
        return np.array([features(params) for params in self.params])


def exported(homes: Sequence[Path]) -> dict[str, Any]:
    """What TRIALS holds: the finished trials of every study in these homes (their copies of the study files
    name them), and the first study's limits in seconds. ValueError where there is no study."""
    rows = list[dict[str, Any]]()
    seconds = dict[str, float]()
    for home in homes:
        files = sorted(home.glob("runs/*/study.toml"))
        if not files:
            raise ValueError(f"A home holds studies, but {home} has no runs/NAME/study.toml. Give another.")
        for file in files:
            session = read_session(find_study(file), home=home, storage=None, environ=os.environ)
            limits = session.study.limits
            seconds = seconds or {"train_seconds": limits.train_seconds, "eval_seconds": limits.eval_seconds}
            rows += rows_of(session.optuna_study.get_trials(states=(TrialState.COMPLETE,)))
    return {"limits": seconds, "figures": FIGURES, "trials": rows}


def rows_of(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """Parameters and FIGURES of the trials that have them all."""
    found: list[dict[str, Any]] = []
    for trial in trials:
        figures = {**(result_of(trial) or {}), "val_bpb": trial.value}
        if all(figures.get(name) is not None for name in FIGURES):
            row = [short(float(figures[name])) for name in FIGURES]
            found.append({"params": {n: short(v) for n, v in trial.params.items()}, "figures": row})
    return found


def short(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def load_trials(path: Path = TRIALS) -> Trials:
    """The committed trials, in today's space: what came since is off. Those that it does not express are left
    out."""
    content = unpack(path)
    known = catalog.metadata()
    study = find_study(STUDY)
    limits = dataclasses.replace(study.limits, **content["limits"])
    study = dataclasses.replace(study, limits=limits)
    found = Trials(study, build_space(study, known), [], [])
    for row in content["trials"]:
        params = today(found.space, row["params"], study.base)
        if params is None:
            continue
        found.params.append(params)
        found.results.append(dict(zip(content["figures"], row["figures"], strict=True)))
    return found


def today(space: Space, params: Params, base: Params) -> dict[str, Any] | None:
    """The same run as today's space says it; None where it does not."""
    assert isinstance(space, NativeSpace)
    off = {n for n, v in params.items() if v is False and n in space.known}
    settings = {n: v for n, v in params.items() if n not in space.slots and n not in off}
    settings |= dict.fromkeys((v for n, v in params.items() if n in space.slots and v in space.known), True)
    try:
        near = near_settings(space, {"preset": base, "file": settings})
    except ValueError:
        return None
    return near.params if near.here.items() >= near.ran.items() else None


class Features:
    """A configuration as numbers: places of numbers, one column a choice, logarithms of the bills."""

    def __init__(self, space: Space):
        self.space = space
        self.columns: list[tuple[str, BaseDistribution, int]] = []
        for name, dist in space.distributions.items():
            choices = len(dist.choices) if isinstance(dist, CategoricalDistribution) else 1
            self.columns += [(name, dist, code) for code in range(choices)]

    def __call__(self, params: Params) -> Array:
        """[columns + 3]"""
        found = [self._value(*column, params) for column in self.columns]
        resolved = self.space.resolve(self.space.repaired(params))
        steps = resolved.config.iterations
        bills = (model_bill(resolved), train_bill(resolved, steps), eval_bill(resolved))
        return np.array([*found, *(math.log(bill.total) for bill in bills)])

    def _value(self, name: str, dist: BaseDistribution, code: int, params: Params) -> float:
        if isinstance(dist, CategoricalDistribution):
            return float(name in params and dist.choices[code] == params[name])
        return place(dist, params[name]) if name in params else ABSENT


def model_of(kind: str, seed: int) -> Any:
    """An unfitted regression of scikit-learn."""
    from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor  # pyright: ignore

    if kind == "boosting":
        return GradientBoostingRegressor(
            n_estimators=300,
            learning_rate=0.05,
            max_depth=4,
            subsample=0.7,
            max_features=0.3,
            min_samples_leaf=3,
            random_state=seed,
        )
    return RandomForestRegressor(100, max_features=0.33, min_samples_leaf=2, random_state=seed)


class Trees:
    """What a fitted model's own `predict` says; for one row some twenty times as fast, all trees at once."""

    def __init__(self, model: Any):
        boosted = hasattr(model, "init_")
        trees = [tree.tree_ for tree in np.ravel(model.estimators_)]
        shape = (len(trees), max(tree.node_count for tree in trees))
        self.depth = max(tree.max_depth for tree in trees)
        self.children = np.zeros((2, *shape), np.intp)  # a leaf is its own child
        self.feature = np.zeros(shape, np.intp)
        self.leaf = np.zeros(shape)
        self.threshold = np.zeros(shape)
        for k, tree in enumerate(trees):
            nodes = np.arange(tree.node_count)
            inner = tree.children_left >= 0
            for side, children in enumerate((tree.children_left, tree.children_right)):
                self.children[side, k, nodes] = np.where(inner, children, nodes)
            self.feature[k, nodes] = np.where(inner, tree.feature, 0)
            self.threshold[k, nodes] = tree.threshold
            self.leaf[k, nodes] = tree.value[:, 0, 0]
        self.scale = model.learning_rate if boosted else 1.0 / len(trees)
        self.offset = float(model.init_.constant_[0, 0]) if boosted else 0.0

    def predict(self, rows: Array) -> Array:
        """[n, features] -> [n]"""
        number = np.arange(len(rows))[:, None]
        tree = np.arange(len(self.feature))[None, :]
        at = np.zeros((len(rows), len(self.feature)), np.intp)
        values = rows.astype(np.float32)  # as scikit-learn compares
        for _ in range(self.depth):
            right = values[number, self.feature[tree, at]] > self.threshold[tree, at]
            at = self.children[right.astype(np.intp), tree, at]
        return self.offset + self.scale * self.leaf[tree, at].sum(axis=1)


class Twin:
    """log of each of TARGETS by a model of its own."""

    def __init__(self, kind: str, rows: Array, results: Sequence[Mapping[str, float]], seed: int = 0):
        logs = ([math.log(r[name]) for r in results] for name in TARGETS)
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # a tree grows without the interpreter's lock
            fitted = pool.map(lambda y: model_of(kind, seed).fit(rows, y), logs)
            self.models = dict(zip(TARGETS, map(Trees, fitted), strict=True))

    def predict(self, rows: Array) -> dict[str, Array]:
        """target -> [n]"""
        return {name: np.exp(model.predict(rows)) for name, model in self.models.items()}


def keeps(result: Mapping[str, Any], study: Study) -> Any:
    """Whether each result keeps the three limits."""
    names = ("artifact_bytes", "train_seconds", "eval_seconds")
    return np.all([np.asarray(result[n]) <= getattr(study.limits, n) for n in names], axis=0)


def cross_check(trials: Trials, kind: str) -> dict[str, dict[str, float]]:
    """Of trials that the model did not see (FOLDS folds): R² of the logarithm and rank correlation of each
    target; of keeping the limits, the share told rightly of those that do and of those that do not."""
    rows = trials.rows
    fold = np.random.default_rng(0).permutation(len(rows)) % FOLDS
    said = {name: np.zeros(len(rows)) for name in TARGETS}
    for k in range(FOLDS):
        seen = [r for r, f in zip(trials.results, fold, strict=True) if f != k]
        twin = Twin(kind, rows[fold != k], seen)
        for name, values in twin.predict(rows[fold == k]).items():
            said[name][fold == k] = values
    true = {name: np.array([r[name] for r in trials.results]) for name in TARGETS}
    found: dict[str, dict[str, float]] = {}
    for name in TARGETS:
        error = np.log(said[name] / true[name])
        spread = np.log(true[name])
        r2 = 1.0 - float((error**2).sum() / ((spread - spread.mean()) ** 2).sum())
        rank = float(spearmanr(said[name], true[name]).statistic)  # pyright: ignore
        found[name] = {"r2": r2, "rank": rank}
    told = keeps(said, trials.study)
    fact = keeps(true, trials.study)
    found["feasible"] = {"kept": float(told[fact].mean()), "broken": float((~told[~fact]).mean())}
    return found


def problem_of(trials: Trials, kind: str) -> Problem:
    """The twin as a problem; `regret` is its val_bpb."""
    features = Features(trials.space)
    twin = Twin(kind, trials.rows, trials.results)

    def predicted(params: Params) -> dict[str, float]:
        return {name: float(v[0]) for name, v in twin.predict(features(params)[None, :]).items()}

    def run(params: Params, rng: np.random.Generator) -> dict[str, float]:
        found = predicted(params)
        return found | {"val_bpb": found["val_bpb"] + SEED_SD * rng.standard_normal()}

    def true_value(params: Params) -> float:
        return predicted(params)["val_bpb"]

    return Problem(trials.study, trials.space, run, true_value)


def check_table(trials: Trials) -> str:
    """Cross-validation of both kinds."""
    lines = [
        "| twin | " + " | ".join(f"{t}: R², rank" for t in TARGETS) + " | kept, told so | broken, told so |"
    ]
    lines.append("| --- |" + " ---: |" * (len(TARGETS) + 2))
    for kind in KINDS:
        found = cross_check(trials, kind)
        cells = [f"{found[t]['r2']:.2f}, {found[t]['rank']:.2f}" for t in TARGETS]
        cells += [f"{found['feasible'][which]:.0%}" for which in ("kept", "broken")]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def section_of(trials: Trials, out: Path) -> str:
    """What docs/evidence.md says of the twins."""
    kept = int(sum(bool(keeps(r, trials.study)) for r in trials.results))
    text = (
        f"Fitted to {len(trials.params)} real trials of studies/laptop.toml, {kept} of them within all "
        f"limits (benchmarks/evidence/trials.json.xz); {len(trials.space.distributions)} parameters. Of "
        f"trials that a model did not see ({FOLDS} folds): R² of the logarithm and rank correlation; of the "
        "trials that keep all limits, and of those that break one, how many it tells rightly.\n\n"
    )
    text += check_table(trials)
    for kind in KINDS:
        curves = curves_of(out.with_name(f"{out.name}-{kind}.jsonl"), NUM_TRIALS)
        if not curves:
            text += f"\n### {kind}\n\nToo few searches so far: the same command continues.\n"
            continue
        best = min(float(c.min()) for c in curves.values())
        curves = {method: c - best for method, c in curves.items()}
        text += f"\n### {kind}\n\nMedian regret in mBPB, 95 % interval.\n\n{regret_table(curves)}\n"
        text += reach_sentences(curves)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--export", type=Path, nargs="+", default=[], metavar="HOME")
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="HOME")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--searches", type=int, default=0, help="of each method; 0: its own number")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "twins")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many")
    options = parser.parse_args()
    if options.export or options.add:
        found = exported([*options.export, *options.add])
        before: dict[str, Any] = unpack(TRIALS) if options.add else {"trials": []}
        pack(TRIALS, {**found, **before, "trials": before["trials"] + found["trials"]})
        return
    trials = load_trials()
    if options.check:
        print(check_table(trials), end="")
        return
    for kind in KINDS:
        seeds = {method: options.searches or many for method, many in SEARCHES.items()}
        path = options.out.with_name(f"{options.out.name}-{kind}.jsonl")
        share = options.minutes / len(KINDS)
        search_all(problem_of(trials, kind), path, seeds, trials=NUM_TRIALS, minutes=share)
    text = section_of(trials, options.out)
    print(text)
    write_section("Twins of the laptop study", text, DOCUMENT)


if __name__ == "__main__":
    main()
