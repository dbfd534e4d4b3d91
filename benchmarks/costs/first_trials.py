"""How many of a new study's first trials keep their limits.

    python -m benchmarks.costs.first_trials [--homes 5] [--trials 20] [--code CHECKOUT] [--keep FOLDER]
    python -m benchmarks.costs.first_trials --simulated [--study FILE] [--homes 20] [--admit 0.85] [--before]

Real: the laptop study from empty homes, one after the other, one worker each. --code: another checkout's
search (the version to compare with). --keep: where homes stay, and are not run again.

--simulated: no trainer runs. Costs are the bills of search/costs/bills.py under true factors that each home
draws anew: around the shipped prior with the spread that it gives (`--surprise 1`), or more. The objective is
additive over the parameters, and larger models are better, so that the search presses on its limits. Minutes.
--before: the rule of earlier versions. No prior, no baseline among the trials, and doubt counts for a
configuration: what was never tried is tried once.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution

from benchmarks.results import table
from benchmarks.stage_cache import READ, ROOT
from bundle.sizes import expected_bytes
from search.common.attributes import PREFLIGHT, VIOLATION
from search.common.numeric import place
from search.costs import bills
from search.costs.factors import Bill, CostModel, student_quantile
from search.costs.preflight import BOUND, Pair, Preflight, pair_of
from search.report.costs import accuracy_of
from search.samplers.caddie import CaddieSampler
from search.space.native import build_space
from search.space.space import Space
from search.study.limits import LIMITS, REQUIRED, set_all, violations
from search.study.load import find_study
from search.study.model import Study
from techniques import catalog
from techniques.config import Resolved

CPU = "simulated, 1 thread"
GPU = "8 x simulated"
NOISE = {"bytes": 0.005, "train": 0.1, "eval": 0.1}  # sd of logarithms between equal runs
GPU_FLOPS = 1.2e15  # that eight GPUs reach on these models: 14,000 steps of the naive baseline in 600 s
LARGER = 0.03  # BPB that twice a size saves
Trials = Sequence[Mapping[str, Any]]  # value, attrs, ok


class Machine:
    """What trials would measure on one machine, with one data set: nobody knows its factors."""

    def __init__(self, study: Study, hardware: str, *, seed: int, surprise: float = 1.0):
        self.study = study
        self.surprise = surprise
        self.rng = np.random.default_rng([seed, 1])
        prior = bills.learnt_before()
        self.models = {"bytes": bills.byte_model(prior["bytes"])}
        for kind in ("train", "eval"):
            self.models[kind] = bills.second_model(prior[kind] if hardware == CPU else None)
        self.level = 1e-10 if hardware == CPU else 1.0 / GPU_FLOPS
        self.factors: dict[tuple[str, str], float] = {}

    def total(self, kind: str, bill: Bill) -> float:
        model = self.models[kind]

        def power(factors: Mapping[str, float]) -> float:
            return sum(
                self.factor(kind, n) * (e - (model.centre.get(n, e) if n.startswith("log ") else 0.0))
                for n, e in factors.items()
            )

        parts = sum(p.amount * math.exp(power(p.factors)) for p in bill.parts)
        return parts * math.exp(power(bill.common) + self.rng.normal(0.0, NOISE[kind]))

    def factor(self, kind: str, name: str) -> float:
        key = kind, name
        if key not in self.factors:
            model: CostModel = self.models[kind]
            mean = model.learnt.factors.get(name, (0.0,))[0]
            sd = 0.0 if name.startswith(("machine", "tokens")) else self.surprise * model.prior_sd(name)
            self.factors[key] = self.rng.normal(mean, sd)
        return self.factors[key]

    def measured(self, resolved: Resolved) -> dict[str, Any]:
        code = expected_bytes(resolved.techniques)
        budget = resolved.config.max_wallclock_seconds
        calibration = bills.calibration_bill(resolved)
        solved = self.level * self.total("train", calibration) if calibration else 0.0
        trained = self.level * self.total("train", bills.steps_bill(resolved, resolved.config.iterations))
        if budget:
            trained = min(trained, budget - resolved.config.reserve_seconds)
        tokens = self.level * (1.0 if resolved.config.val_tokens else 62e6)
        return {
            "code_bytes": code,
            "artifact_bytes": code + round(self.total("bytes", bills.model_bill(resolved))),
            "train_seconds": trained + solved,
            "eval_seconds": tokens * self.total("eval", bills.eval_bill(resolved)),
        }


class Before(Preflight):
    """The rule of earlier versions, from nothing."""

    def __init__(self, study: Study, *, hardware: str):
        super().__init__(study, hardware=hardware, prior={})

    def rejection(self, resolved: Resolved, *, doubtful: bool = False) -> str | None:
        for limit, estimate, most in self._judged(resolved):
            noise = student_quantile(round(estimate.dof, 1), BOUND) if limit.constraint == "bytes" else 0.0
            least = math.log(estimate.value) + noise * estimate.spread
            least -= max(0.0, estimate.doubt - estimate.spread)
            if most <= 0.0 or least > math.log(most):
                return f"{limit.constraint}: over"
        return None


class Objective:
    """BPB of parameters: an effect for each choice, a parabola for each number; larger sizes are better."""

    def __init__(self, space: Space, seed: int):
        self.space = space
        rng = np.random.default_rng([seed, 2])
        self.choices = dict[tuple[str, Any], float]()
        self.best = dict[str, float]()
        for name, dist in space.distributions.items():
            if isinstance(dist, CategoricalDistribution):
                for k, choice in enumerate(dist.choices):
                    self.choices[name, choice] = rng.normal(-0.003, 0.01) if k else 0.0
            else:
                self.best[name] = rng.uniform(-0.8, 0.8)

    def __call__(self, params: Mapping[str, Any], resolved: Resolved, rng: np.random.Generator) -> float:
        value = 2.5 + rng.normal(0.0, 0.005)
        value -= LARGER * math.log2(bills.num_params(resolved)) / 2.0
        for name, setting in params.items():
            if name in self.best:
                value += 0.01 * (place(self.space.distributions[name], setting) - self.best[name]) ** 2
            else:
                value += self.choices[name, setting]
        return value


def simulated(
    study: Study, *, seed: int, trials: int, surprise: float, hardware: str, before: bool = False
) -> Trials:
    """One home: the baseline, then so many trials."""
    machine = Machine(study, hardware, seed=seed, surprise=surprise)
    space = build_space(study, catalog.metadata())
    objective = Objective(space, seed)
    rng = np.random.default_rng([seed, 3])
    start = space.resolve({})
    baseline = machine.measured(start)
    if study.limits.relative:
        study = replace(study, limits=study.limits.measured(baseline))
    preflight = (Before if before else Preflight)(study, hardware=hardware)
    if not before:
        preflight.learn([(start, baseline)])
    optimizer = optuna.create_study(sampler=CaddieSampler(space, preflight, seed=seed, planned=trials))
    for _ in range(trials):
        trial = optimizer.ask()
        params = space.suggest(trial)
        resolved = space.resolve(params)
        result = machine.measured(resolved)
        for name, figure in result.items():
            trial.set_user_attr(name, figure)
        set_all(trial, violations(result, study.limits))
        optimizer.tell(trial, objective(params, resolved, rng))
    kept = [(t, all(v <= 0.0 for v in t.constraints.values())) for t in optimizer.trials]
    return [{"value": t.value, "attrs": t.user_attrs, "ok": ok} for t, ok in kept]


def searched(home: Path, *, trials: int, code: Path) -> Trials:
    """One real home, searched unless it was."""
    study = code / "studies" / "laptop.toml"
    command = [sys.executable, str(code / "search.py"), f"--trials={trials}", "--workers=1"]
    subprocess.run([*command, f"--home={home}"], check=True, cwd=code, stdout=subprocess.DEVNULL)
    read = [sys.executable, "-c", READ, str(study), str(home)]
    return json.loads(subprocess.run(read, check=True, cwd=code, capture_output=True).stdout)


def row_of(name: str, trials: Trials) -> list[str]:
    """name | feasible | over, by limit | best."""
    values = [t["value"] for t in trials if t["ok"] and t["value"] is not None]
    broken = Counter(
        limit.label
        for t in trials
        for limit in LIMITS
        if t["attrs"].get(VIOLATION + limit.constraint, 0.0) > 0.0
    )
    over = ", ".join(f"{label} {count}" for label, count in broken.most_common()) or "none"
    return [name, f"{len(values)} of {len(trials)}", over, f"{min(values, default=math.nan):.4f}"]


def coverage_of(homes: Sequence[Trials]) -> list[list[str]]:
    """limit | trials | below the bound | bound over prediction, median."""
    rows: list[list[str]] = []
    for limit in REQUIRED:
        found = [
            pair_of(t["attrs"], limit.figure) for trials in homes for t in trials if PREFLIGHT in t["attrs"]
        ]
        pairs: list[Pair] = [pair for pair in found if pair]
        if pairs:
            width = statistics.median(pair.upper / pair.predicted for pair in pairs)
            rows.append([limit.label, str(len(pairs)), f"{accuracy_of(pairs).coverage:.1%}", f"{width:.3f}"])
    return rows


def told_of(homes: Sequence[Trials]) -> str:
    rows = [row_of(str(k), trials) for k, trials in enumerate(homes)]
    together = row_of("all", [t for trials in homes for t in trials])
    best = [min((t["value"] for t in trials if t["ok"]), default=math.nan) for trials in homes]
    together[-1] = f"{statistics.mean(best):.4f} (mean)"
    heads = ("home", "feasible", "over a limit", "best BPB")
    bounds = ("limit on", "trials", "below the 97.5 % bound", "bound / prediction, median")
    return table(heads, [*rows, together]) + "\n" + table(bounds, coverage_of(homes))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--homes", type=int, default=5)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--code", type=Path, default=ROOT)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--study", type=Path, default=ROOT / "studies" / "laptop.toml")
    parser.add_argument("--admit", type=float)
    parser.add_argument("--before", action="store_true")
    parser.add_argument("--surprise", type=float, default=1.0, help="true factors' spread over the prior's")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    homes: list[Trials] = []
    if options.simulated:
        study = find_study(options.study)
        if options.admit is not None:
            study = replace(study, sampler=replace(study.sampler, admit=options.admit))
        hardware = GPU if study.settled("device") == "cuda" else CPU
        how = {"trials": options.trials, "surprise": options.surprise, "before": options.before}
        homes = [simulated(study, seed=k, hardware=hardware, **how) for k in range(options.homes)]
    else:
        with tempfile.TemporaryDirectory(prefix="first-trials-") as place_:
            folder = options.keep or Path(place_)
            for k in range(options.homes):
                homes.append(searched(folder / str(k), trials=options.trials, code=options.code.resolve()))
                print(table(("home", "feasible", "over a limit", "best BPB"), [row_of(str(k), homes[-1])]))
    print(told_of(homes), end="")


if __name__ == "__main__":
    main()
