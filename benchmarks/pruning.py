"""What pruning saves and what it loses: `python -m benchmarks.pruning [--write]` (docs/pruning.md).

Each seed is another problem of benchmarks/simulator.py. A loop that mutates the best configurations so far,
under the calculators' filter, proposes a sequence and runs it to its end; then the same sequence is run
again under each pruner, with reports at 25, 50 and 75 % of the training. So every method judges the same
runs, and what a pruned run would have come to is known. Not shown: what a sampler would have done with the
time, or with another history.

Wrongly pruned: feasible, and among the best tenth of all feasible finals, or better than what the method
recommends in the end. Regret: true BPB of what is recommended above that of what is recommended without
pruning.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, TrialState, create_trial

from benchmarks.simulator import Instance, Run
from search.common.attributes import REPORTS
from search.pruning.pruner import Pruner
from search.study.constraints import CONSTRAINTS
from search.study.model import Pruning

ROOT = Path(__file__).resolve().parent.parent
GRID = (0.25, 0.5, 0.75)  # of the training: when a trial reports
STARTUP, MUTANTS, CHANGED = (
    20,
    0.8,
    0.15,
)  # uniform runs; share of mutants then; of their parameters drawn anew
NAMES = ("no pruning", "Optuna median", "Optuna SHA", "Optuna Hyperband", "ours from 50 %", "ours from 25 %")


@dataclass(frozen=True)
class Tried:
    """One configuration of a sequence, its run, and the reports on its way."""

    params: dict[str, Any]
    run: Run
    reports: tuple[float, ...]
    true: float


@dataclass(frozen=True)
class Outcome:
    """What a method made of a sequence."""

    seconds: float  # GPU seconds
    pruned: int
    wrongly: int
    regret: float  # mBPB above no pruning's


def sequence(seed: int, variant: str, count: int) -> tuple[Instance, list[Tried]]:
    """What the loop tries when nothing is pruned: uniform draws first, then mostly mutants of the best."""
    instance, rng = Instance(seed, variant), np.random.default_rng([seed, 7])
    found: list[Tried] = []
    while len(found) < count:
        row = instance.uniform_rows(rng, 1)
        good = sorted((t for t in found if t.run.feasible), key=lambda t: t.run.value or 0.0)
        if len(found) >= STARTUP and good and rng.random() < MUTANTS:
            parent = instance.rows([good[int(rng.integers(min(5, len(good))))].params])
            row = np.where(rng.random(row.shape) < CHANGED, row, parent)
        params = instance.params(row[0])
        if not instance.admits(params):
            continue
        run = instance.run(params, rng)
        reports = tuple(instance.report(params, at, run) for at in GRID) if run.value is not None else ()
        found.append(Tried(params, run, reports, float(instance.true(instance.rows([params]))[0])))
    return instance, found


class Judge(Protocol):
    """A pruner in a study of its own."""

    def begin(self, item: Tried) -> None: ...
    def stops(self, step: int) -> bool: ...
    def end(self, stopped: bool) -> None: ...


class ByOptuna:
    """One of Optuna's pruners; it knows no constraints."""

    def __init__(self, pruner: BasePruner):
        sampler = optuna.samplers.RandomSampler(seed=0)
        self.study = optuna.create_study(pruner=pruner, sampler=sampler)

    def begin(self, item: Tried) -> None:
        self.item, self.trial = item, self.study.ask()

    def stops(self, step: int) -> bool:
        self.trial.report(self.item.reports[step], step + 1)
        return self.trial.should_prune()

    def end(self, stopped: bool) -> None:
        done = not stopped and self.item.run.value is not None
        state = TrialState.COMPLETE if done else TrialState.PRUNED
        self.study.tell(self.trial, self.item.run.value if done else None, state=state)


class ByUs:
    """search/pruning/pruner.py, on trials without a storage."""

    def __init__(self, instance: Instance, settings: Pruning):
        self.instance, self.pruner, self.trials = instance, Pruner(settings), list[FrozenTrial]()

    def get_trials(self, deepcopy: bool = False) -> list[FrozenTrial]:
        return self.trials

    def begin(self, item: Tried) -> None:
        self.item = item
        self.add(TrialState.RUNNING, None, 0.0)

    def add(self, state: TrialState, value: float | None, over: float) -> None:
        params = self.item.params
        trial = create_trial(
            state=state,
            value=value,
            params=params,
            distributions={name: self.instance.space[name] for name in params},
            user_attrs={REPORTS: [[r["progress"], r["val_bpb"], 1.0] for r in self.reports(len(GRID))]},
            constraints=dict(zip(CONSTRAINTS, (over, -1.0, -1.0, -1.0), strict=True)),
        )
        trial.number = len(self.trials)
        self.trials.append(trial)

    def reports(self, count: int) -> list[dict[str, float]]:
        pairs = zip(GRID[:count], self.item.reports[:count], strict=False)
        return [{"progress": at, "val_bpb": value, "lr_scale": 1.0} for at, value in pairs]

    def stops(self, step: int) -> bool:
        study: Any = self
        verdict = self.pruner.verdict(study, len(self.trials) - 1, self.reports(step + 1))
        return verdict is not None and not verdict.spared

    def end(self, stopped: bool) -> None:
        self.trials.pop()
        done = not stopped and self.item.run.value is not None
        over = max(self.item.run.constraints.values()) if done else 0.0
        self.add(
            TrialState.COMPLETE if done else TrialState.PRUNED, self.item.run.value if done else None, over
        )


def methods(instance: Instance) -> dict[str, Judge]:
    """Fresh ones: they remember."""
    judges: list[Judge] = [
        ByOptuna(NopPruner()),
        ByOptuna(MedianPruner()),
        ByOptuna(SuccessiveHalvingPruner()),
        ByOptuna(HyperbandPruner(min_resource=1, max_resource=len(GRID) + 1)),
        ByUs(instance, Pruning(start=0.5)),
        ByUs(instance, Pruning(start=0.25)),
    ]
    return dict(zip(NAMES, judges, strict=True))


def replay(tried: list[Tried], judge: Judge) -> tuple[float, list[Tried], list[Tried]]:
    """(GPU seconds, feasible runs that ended, runs given up) of the sequence under a pruner."""
    seconds, ended, given_up = 0.0, list[Tried](), list[Tried]()
    for item in tried:
        judge.begin(item)
        step = next((k for k in range(len(item.reports)) if judge.stops(k)), None)
        judge.end(step is not None)
        if step is not None:
            seconds += GRID[step] * item.run.seconds["train"]
            given_up.append(item)
            continue
        seconds += sum(item.run.seconds.values())
        if item.run.feasible:
            ended.append(item)
    return seconds, ended, given_up


def judged(tried: list[Tried], seconds: float, ended: list[Tried], given_up: list[Tried]) -> Outcome:
    """Against what every run would have come to."""

    def final(item: Tried) -> float:
        return float(item.run.value or 0.0)

    finals = sorted(final(t) for t in tried if t.run.feasible)
    decile = finals[max(0, len(finals) // 10 - 1)]
    recommended = min(ended, key=final)
    bar = max(decile, final(recommended))
    wrongly = sum(t.run.feasible and final(t) <= bar for t in given_up)
    best = min((t for t in tried if t.run.feasible), key=final)
    regret = 1000.0 * (recommended.true - best.true)
    return Outcome(seconds, len(given_up), wrongly, regret)


def measure(variant: str, seeds: int, count: int) -> Iterator[dict[str, list[tuple[Outcome, float]]]]:
    """method -> (outcome, share of the seconds saved) of the seeds so far, after each seed."""
    found: dict[str, list[tuple[Outcome, float]]] = {name: [] for name in NAMES}
    for seed in range(seeds):
        instance, tried = sequence(seed, variant, count)
        whole = 0.0
        for name, judge in methods(instance).items():
            outcome = judged(tried, *replay(tried, judge))
            whole = whole or outcome.seconds
            found[name].append((outcome, 1.0 - outcome.seconds / whole))
        yield found


def table(found: dict[str, list[tuple[Outcome, float]]]) -> list[str]:
    lines = [
        "| method | GPU seconds saved | pruned | wrongly pruned | regret, mBPB |",
        "|---|---|---|---|---|",
    ]
    for name, outcomes in found.items():
        saved = np.array([share for _, share in outcomes])
        pruned = np.mean([o.pruned for o, _ in outcomes])
        wrongly = np.array([o.wrongly for o, _ in outcomes])
        regret = np.array([o.regret for o, _ in outcomes])
        lines.append(
            f"| {name} | {saved.mean():.1%} ({saved.min():.0%} to {saved.max():.0%}) | {pruned:.0f} | "
            f"{wrongly.mean():.1f} (worst {wrongly.max()}) | {regret.mean():.1f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--variants", nargs="+", default=["base", "rank_flip"])
    parser.add_argument("--write", action="store_true", help="write the tables into docs/pruning.md")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    target, doc = ROOT / "benchmarks" / "pruning.json", ROOT / "docs" / "pruning.md"
    for variant in options.variants:
        for done, found in enumerate(measure(variant, options.seeds, options.trials), start=1):
            title = f"### `{variant}`: {options.trials} runs, means over {done} seeds"
            text = [title, "", *table(found), ""]
            print("\n".join(text), flush=True)
            if options.write:
                write(target, doc, variant, text)


def write(target: Path, doc: Path, variant: str, text: list[str]) -> None:
    """Puts a variant's table in place of its last one."""
    kept = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    kept = dict(sorted({**kept, variant: text}.items()))
    target.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    head, mark, _ = doc.read_text(encoding="utf-8").partition("<!-- benchmarks.pruning -->\n")
    lines = [line for part in kept.values() for line in part]
    doc.write_text(head + mark + "\n" + "\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
