"""What pruning saves and what it loses: `python -m benchmarks.pruning [--write]` (docs/pruning.md).

Each seed is another problem of benchmarks/simulator.py. TPE with the calculators' filter proposes a sequence
of configurations, run to their ends; then the same sequence is run again under each pruner, with reports at
25, 50 and 75 % of the training. So every method judges the same runs, and what a pruned run would have come
to is known. Not shown: what a sampler would have done with the time, or with another history.

Wrongly pruned: feasible, and among the best tenth of all feasible finals, or better than what the method
recommends in the end. Regret: true BPB of the recommended configuration above the optimum's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import Trial, TrialState

from benchmarks.simulator import Instance, Run
from search.constraints import CONSTRAINTS, set_all
from search.pruning import Pruner, remember
from search.study import Pruning

ROOT = Path(__file__).resolve().parent.parent
GRID = (0.25, 0.5, 0.75)  # of the training: when a trial reports
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
    regret: float  # mBPB


def sequence(seed: int, variant: str, count: int) -> tuple[Instance, list[Tried]]:
    """What TPE tries when nothing is pruned."""
    instance, rng = Instance(seed, variant), np.random.default_rng([seed, 7])
    sampler = optuna.samplers.TPESampler(multivariate=True, group=True, n_startup_trials=16, seed=seed)
    study = optuna.create_study(sampler=sampler)
    found: list[Tried] = []
    while len(found) < count:
        trial = study.ask()
        params = instance.walk(lambda name: trial._suggest(name, instance.space[name]))  # noqa: B023
        if not instance.admits(params):
            for name, value in zip(("size", "eval_time"), instance.predicted(instance.rows([params]))[0]):
                trial.set_constraint(name, float(value))
            study.tell(trial, state=TrialState.PRUNED)
            continue
        run = instance.run(params, rng)
        for name, value in run.constraints.items():
            trial.set_constraint(name, value)
        study.tell(
            trial, run.value, state=TrialState.COMPLETE if run.value is not None else TrialState.PRUNED
        )
        reports = tuple(instance.report(params, at, run) for at in GRID) if run.value is not None else ()
        found.append(Tried(params, run, reports, float(instance.true(instance.rows([params]))[0])))
    return instance, found


Judge = Callable[[optuna.Study, Trial, list[dict[str, float]]], bool]


def by_optuna(study: optuna.Study, trial: Trial, reports: list[dict[str, float]]) -> bool:
    return trial.should_prune()


def by_us(settings: Pruning) -> Judge:
    pruner = Pruner(settings)

    def judge(study: optuna.Study, trial: Trial, reports: list[dict[str, float]]) -> bool:
        remember(trial, reports)
        verdict = pruner.verdict(study, trial.number, reports)
        return verdict is not None and not verdict.spared

    return judge


def methods() -> dict[str, tuple[BasePruner, Judge]]:
    """Fresh ones: they remember."""
    judges: list[tuple[BasePruner, Judge]] = [
        (NopPruner(), by_optuna),
        (MedianPruner(), by_optuna),
        (SuccessiveHalvingPruner(), by_optuna),
        (HyperbandPruner(min_resource=1, max_resource=len(GRID) + 1), by_optuna),
        (NopPruner(), by_us(Pruning(start=0.5))),
        (NopPruner(), by_us(Pruning(start=0.25))),
    ]
    return dict(zip(NAMES, judges, strict=True))


def replay(instance: Instance, tried: list[Tried], pruner: BasePruner, judge: Judge) -> Outcome:
    """The sequence again, each run given up where the pruner says so."""
    study = optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
    seconds, ended, given_up = 0.0, list[Tried](), list[Tried]()
    for item in tried:
        study.enqueue_trial(item.params)
        trial = study.ask()
        instance.walk(lambda name: trial._suggest(name, instance.space[name]))  # noqa: B023
        stopped, reports = 0.0, list[dict[str, float]]()
        for step, (at, value) in enumerate(zip(GRID, item.reports, strict=False), start=1):
            trial.report(value, step)
            reports.append({"progress": at, "val_bpb": value, "lr_scale": 1.0})
            if judge(study, trial, reports):
                stopped = at
                break
        broken = 1.0 if item.run.value is None else -1.0
        over = 0.0 if stopped else max(item.run.constraints.values())
        set_all(trial, dict(zip(CONSTRAINTS, (over, -1.0, -1.0, broken), strict=True)))
        if stopped:
            seconds += stopped * item.run.seconds["train"]
            given_up.append(item)
        else:
            seconds += sum(item.run.seconds.values())
            if item.run.feasible:
                ended.append(item)
        done = not stopped and item.run.value is not None
        study.tell(
            trial, item.run.value if done else None, state=TrialState.COMPLETE if done else TrialState.PRUNED
        )
    return judged(instance, tried, seconds, ended, given_up)


def judged(
    instance: Instance, tried: list[Tried], seconds: float, ended: list[Tried], given_up: list[Tried]
) -> Outcome:
    """Against what every run would have come to."""

    def final(item: Tried) -> float:
        return float(item.run.value or 0.0)

    finals = sorted(final(t) for t in tried if t.run.feasible)
    decile = finals[max(0, len(finals) // 10 - 1)]
    recommended = min(ended, key=final)
    bar = max(decile, final(recommended))
    wrongly = sum(t.run.feasible and final(t) <= bar for t in given_up)
    regret = 1000.0 * (recommended.true - instance.optimum)
    return Outcome(seconds, len(given_up), wrongly, regret)


def measure(variant: str, seeds: int, count: int) -> dict[str, list[tuple[Outcome, float]]]:
    """method -> (outcome, share of the seconds saved) of each seed."""
    found: dict[str, list[tuple[Outcome, float]]] = {name: [] for name in NAMES}
    for seed in range(seeds):
        instance, tried = sequence(seed, variant, count)
        whole = 0.0
        for name, (pruner, judge) in methods().items():
            outcome = replay(instance, tried, pruner, judge)
            whole = whole or outcome.seconds
            found[name].append((outcome, 1.0 - outcome.seconds / whole))
        print(f"{variant} seed {seed} done", flush=True)
    return found


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
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--variants", nargs="+", default=["base", "rank_flip"])
    parser.add_argument("--write", action="store_true", help="write the tables into docs/pruning.md")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    text: list[str] = []
    for variant in options.variants:
        found = measure(variant, options.seeds, options.trials)
        title = f"### `{variant}`: {options.trials} runs, means over {options.seeds} seeds"
        text += [title, "", *table(found), ""]
    print("\n".join(text))
    if options.write:
        path = ROOT / "docs" / "pruning.md"
        head, mark, _ = path.read_text(encoding="utf-8").partition("<!-- benchmarks.pruning -->\n")
        path.write_text(head + mark + "\n" + "\n".join(text), encoding="utf-8")
        record = {"seeds": options.seeds, "trials": options.trials, "tables": text}
        (ROOT / "benchmarks" / "pruning.json").write_text(
            json.dumps(record, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
