"""Regret of samplers on the simulated search: `python -m benchmarks.search_efficiency [--quick]`.

Each (variant, method, seed) is one search of 200 runs on its own problem (benchmarks/simulator.py), kept as
one JSON file under `--out`; what is there is not run again, so the command continues where it was stopped
(`--minutes` stops it in time; `--first` and `--seeds` share the seeds between processes). All of it takes
about two hours of one core; set OMP_NUM_THREADS=1, the matrices are small. The table goes to
docs/search_efficiency.md. Regret: true value of the feasible configuration that the method itself
recommends, less the best feasible one, in mBPB.

Methods. `random`; `tpe`: Optuna 5 as it comes; `best_tpe`: TPE by groups, calculators as a filter, warm
start from the published configuration; `keep`: change a few settings of the incumbent, keep what is better,
from the published one; `mutations`: a plain Gaussian process that proposes the largest log expected
improvement among admitted mutations of the five best; `structured` and `staged`: ours, without and with stage
costs. Calculators correct
their median error from finished runs, for every method that asks them. All but ours recommend the best
feasible observation.
"""

from __future__ import annotations

import argparse
import heapq
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import t as student

from benchmarks.efficiency_table import write_table
from benchmarks.results import once, write_json
from benchmarks.simulator import CALCULATED, STAGES, Instance, Run, StageCache
from search.common.numeric import value_at
from search.common.paths import ROOT
from search.samplers.stages import Stages
from search.samplers.structured.beliefs import GROWTH, Beliefs
from search.samplers.structured.rows import Array
from search.samplers.structured.sampler import Prior, StructuredSampler
from search.samplers.structured.smooth import GOOD, LEAST, PENALTY, Process, mutated
from search.samplers.tpe import GroupedTpe

DOCUMENT = ROOT / "docs" / "search_efficiency.md"
RUNS, FIRST, SEEDS = 200, 10, 10  # development used other seeds
EVERY = (5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 90, 100, 120, 140, 160, 180, 200)
ADVERSARIES = ("three_way", "non_quadratic", "wrong_calculator", "rank_flip")
METHODS = ("random", "keep", "structured", "best_tpe", "tpe", "staged", "mutations")
PRUNE_AT = 0.5  # share of the run at which `rank_flip` prunes what is above the median, for every method
CONFIRMATIONS, ALPHA = 4, 0.005  # fresh seeds of each of two configurations; one-sided level of a claimed win
Params = Mapping[str, Any]


class Calculators:
    """Admits what both calculators, corrected by the median error so far, find within the limits."""

    def __init__(self, instance: Instance):
        self.instance = instance
        self.errors: dict[str, list[float]] = {name: [] for name in CALCULATED}

    def learn(self, params: Params, run: Run) -> None:
        """Compare a finished run with its prediction."""
        predicted = self.instance.predicted(self.instance.rows([params]))[0]
        for name, said in zip(CALCULATED, predicted, strict=True):
            if name in run.constraints and run.value is not None:
                self.errors[name].append(math.log1p(run.constraints[name]) - math.log1p(float(said)))

    def __call__(self, params: Params) -> bool:
        predicted = self.instance.predicted(self.instance.rows([params]))[0]
        for name, said in zip(CALCULATED, predicted, strict=True):
            bias = float(np.median(self.errors[name])) if len(self.errors[name]) >= 5 else 0.0
            if math.log1p(float(said)) + bias > 0:
                return False
        return True


class Filtered(optuna.samplers.BaseSampler):
    """TPE by groups behind the calculators: what they refuse is drawn again, at no cost."""

    def __init__(self, instance: Instance, calculators: Calculators, seed: int):
        self.instance, self.calculators = instance, calculators
        self.rng = np.random.default_rng(seed)
        groups: dict[str, list[str]] = {}
        for p in instance.parameters:
            groups.setdefault(p.gate, []).append(p.name)
        self.tpe = GroupedTpe(
            list(groups.values()), instance.space, startup_trials=10, candidates=24, seed=seed
        )

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        return dict(self.instance.space)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        self.tpe.begin(study, [t for t in study.get_trials(deepcopy=False) if t.number != trial.number])
        params: dict[str, Any] = {}
        for _ in range(100):
            row = self.instance.uniform_rows(self.rng, 1)[0]
            everything = {n: v for n, v in zip(self.instance.names, row, strict=True)}
            params = self._decoded(everything) | dict(self.tpe.propose())
            if self.calculators(self.instance.keep_active(params)):
                break
        return params

    def _decoded(self, row: Mapping[str, float]) -> dict[str, Any]:
        return {n: value_at(self.instance.space[n], v) for n, v in row.items()}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        raise AssertionError("every parameter is sampled at once")


class Keeper(optuna.samplers.BaseSampler):
    """Keep or discard: redraw about three settings of the best feasible run; numbers move nearby."""

    def __init__(self, instance: Instance, seed: int):
        self.instance, self.rng = instance, np.random.default_rng(seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        return dict(self.instance.space)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        one = self.instance
        best = best_observed(study)
        row = one.rows([best.params if best else one.published])[0]
        drawn = one.uniform_rows(self.rng, 1)[0]
        drawn[one.gates] = 1.0 - row[one.gates]
        drawn[one.numbers] = (row[one.numbers] + 0.4 * self.rng.standard_normal(len(one.numbers))).clip(-1, 1)
        alive = one.active(row[None, :])[0]
        moved = self.rng.random(len(row)) < 3.0 / alive.sum()
        moved[self.rng.choice(np.flatnonzero(alive))] = True
        row = np.where(moved, drawn, row)
        return {n: value_at(one.space[n], float(v)) for n, v in zip(one.names, row, strict=True)}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        raise AssertionError("every parameter is sampled at once")


class Mutations(StructuredSampler):
    """Once ten trials are complete: of admitted mutations of the five best, the one that a Gaussian process
    gives the largest log expected improvement; what constraints are expected to exceed counts against it."""

    def __init__(self, *, seed: int, prior: Prior | None = None):
        super().__init__(seed=seed, prior=prior, tpe_share=0.0)
        self.process: Process | None = None
        self.fitted = 0

    def _smooth_row(self, beliefs: Beliefs) -> Array:
        best = beliefs.incumbents(GOOD)
        if len(beliefs.complete) < LEAST or not best:
            return super()._smooth_row(beliefs)
        if self.process is None or self.process.rows is not beliefs.rows:
            self.process = Process(beliefs.rows)
            self.fitted = 0
        one, data = self.process, beliefs.data
        due = len(data.y) >= max(self.fitted + 3, math.ceil(GROWTH * self.fitted))
        self.fitted = len(data.y) if due else self.fitted
        one.observe(data.rows, data.y, data.noise_sd, running=data.running, fit=due)
        one.best = float(one.moments(one.places(beliefs.seen[best]))[0].min())
        pool = mutated(beliefs.seen[best], beliefs.rows, self._rng)
        cost = PENALTY * beliefs.excess(beliefs.columns_of(pool)) - one.log_gain(one.places(pool))
        pool = pool[np.argsort(cost)]
        return next((row for row in pool if self._is_new(beliefs, row)), pool[0])


def kept(trial: FrozenTrial) -> bool:
    """Complete and feasible."""
    return trial.state == TrialState.COMPLETE and all(v <= 0 for v in trial.constraints.values())


def best_observed(study: optuna.Study) -> FrozenTrial | None:
    """The feasible trial with the lowest observed value."""
    return min(
        filter(kept, study.get_trials(deepcopy=False)), key=lambda t: float(t.value or 0), default=None
    )


def sampler_of(
    method: str, one: Instance, calculators: Calculators, seed: int
) -> optuna.samplers.BaseSampler:
    """The sampler of a method."""
    if method == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if method == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    if method == "best_tpe":
        return Filtered(one, calculators, seed)
    if method == "keep":
        return Keeper(one, seed)
    stages: Stages | None = None
    if method == "staged":

        def seconds(params: Params) -> dict[str, float]:
            return dict(zip(STAGES, one.predicted_seconds(one.rows([params]))[0].tolist(), strict=True))

        stages = Stages(STAGES, one.stage_of, seconds)
    prior = Prior(
        one.space,
        conditions=one.conditions(),
        keep_active=one.keep_active,
        admits=calculators,
        start=one.published,
        stages=stages,
    )
    return (Mutations if method == "mutations" else StructuredSampler)(seed=seed, prior=prior)


class Search:
    """One study on a simulated clock with `workers` asynchronous workers."""

    def __init__(self, method: str, variant: str, seed: int, *, workers: int = 1):
        self.method, self.workers = method, workers
        self.instance = Instance(seed, variant)
        self.calculators = Calculators(self.instance)
        self.rng = np.random.default_rng([seed, 7])
        self.cache, self.spent = StageCache(), {"plain": 0.0, "cached": 0.0}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.sampler = sampler_of(method, self.instance, self.calculators, seed)
        self.study = optuna.create_study(sampler=self.sampler)
        if method in ("best_tpe", "keep", "mutations", "structured", "staged"):
            self.study.enqueue_trial(self.instance.published)
        self.trace: list[dict[str, float]] = []
        self.infeasible, self.asking = 0, 0.0

    def run(self, runs: int) -> dict[str, Any]:
        """All runs, then the trace: regret and seconds after some numbers of runs."""
        waiting: list[tuple[float, int, optuna.Trial, dict[str, Any], Run, bool]] = []
        clock, asked, done = 0.0, 0, 0
        while done < runs:
            while asked < runs and len(waiting) < self.workers:
                begun = time.process_time()
                trial = self.study.ask()
                params = self.instance.walk(lambda n, t=trial: t._suggest(n, self.instance.space[n]))
                self.asking += time.process_time() - begun
                result = self.instance.run(params, self.rng)
                pruned = self._reports(trial, params, result)
                seconds = self.cache.spend(self.instance, params, result) if not pruned else 300.0
                self.spent["cached"] += seconds
                self.spent["plain"] += sum(result.seconds.values()) if not pruned else 300.0
                heapq.heappush(waiting, (clock + seconds, asked, trial, params, result, pruned))
                asked += 1
            clock, _, trial, params, result, pruned = heapq.heappop(waiting)
            self._tell(trial, params, result, pruned)
            done += 1
            if done in EVERY or done == runs:
                self._note(done, clock)
        return {
            "trace": self.trace,
            "infeasible": self.infeasible / runs,
            "proposal_seconds": self.asking / runs,
            "null": self._null_claims() if self.instance.variant == "null" else None,
        }

    def _reports(self, trial: optuna.Trial, params: Params, result: Run) -> bool:
        """Under `rank_flip` a run reports half-way, and is pruned when it is above the median there."""
        if self.instance.variant != "rank_flip" or result.value is None:
            return False
        value = self.instance.report(params, PRUNE_AT, result)
        trials = self.study.get_trials(deepcopy=False)
        others = [t.intermediate_values[1] for t in trials if 1 in t.intermediate_values]
        trial.report(value, 1)
        return len(others) >= 10 and value > float(np.median(others))

    def _tell(self, trial: optuna.Trial, params: Params, result: Run, pruned: bool) -> None:
        self.infeasible += not result.feasible
        if not pruned:
            self.calculators.learn(params, result)
        for name, value in result.constraints.items():
            if not pruned or name in ("memory", "divergence"):
                trial.set_constraint(name, value)
        if pruned or result.value is None:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, result.value)

    def recommendation(self) -> FrozenTrial | None:
        """The method's own choice among feasible trials; None while there is none."""
        best = best_observed(self.study)
        if best is None or not isinstance(self.sampler, StructuredSampler) or self.method == "mutations":
            return best
        return self.sampler.recommend(self.study)

    def _note(self, done: int, clock: float) -> None:
        one, best = self.instance, self.recommendation()
        if best is None:
            value = float(one.mean + 3 * one.sd)
        else:
            value = float(one.true(one.rows([best.params]))[0])
        self.trace.append({"runs": done, "value": value, "clock": clock, **self.spent})

    def _null_claims(self, repeats: int = 500) -> float:
        """Share of false wins: fresh seeds of the recommended and of the published configuration, one-sided
        Welch test; the search is done once, its confirmation many times."""
        best, one = self.recommendation(), self.instance
        assert best is not None
        sds = one.noise_sd(one.rows([best.params, one.published]))
        draws = (
            np.random.default_rng([one.seed, 8]).standard_normal((repeats, 2, CONFIRMATIONS))
            * sds[None, :, None]
        )
        means, squares = draws.mean(axis=2), draws.var(axis=2, ddof=1) / CONFIRMATIONS
        freedom = squares.sum(axis=1) ** 2 / ((squares**2).sum(axis=1) / (CONFIRMATIONS - 1))
        score = (means[:, 0] - means[:, 1]) / np.sqrt(squares.sum(axis=1))
        return float((student.cdf(score, freedom) < ALPHA).mean())


def jobs(seeds: range) -> Iterator[tuple[str, str, int, int]]:
    """(variant, method, seed, workers), ordered so that what is done at any time is balanced."""
    for seed in seeds:
        yield from (("base", method, seed, 1) for method in METHODS)
        yield ("base", "structured", seed, 32)
        for variant in ADVERSARIES:
            yield from ((variant, method, seed, 1) for method in ("tpe", "best_tpe", "structured"))
        yield ("null", "structured", seed, 1)
        for workers in (8, 64):
            yield ("base", "structured", seed, workers)
        yield from ((variant, "staged", seed, 1) for variant in ADVERSARIES)


def optimum_of(out: Path, variant: str, seed: int) -> float:
    """The optimum of a problem, kept like a result: it takes seconds to find."""
    same = "base" if variant in ("wrong_calculator", "rank_flip") else variant
    make = lambda: {"optimum": Instance(seed, same).optimum if same != "null" else 1.15}  # noqa: E731
    return float(once(out / f"optimum-{same}-{seed}.json", make)["optimum"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "search_efficiency", help="kept results")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many")
    parser.add_argument("--first", type=int, default=FIRST, help="the first of them")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--methods", default="", help="only these, with commas between; no table")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many minutes")
    parser.add_argument(
        "--quick", action="store_true", help="2 seeds of 40 runs, to another folder; no table"
    )
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore")
    out, seeds, runs = options.out, options.seeds, options.runs
    if options.quick:
        out, seeds, runs = out.with_name(out.name + "_quick"), 2, 40
    out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    for variant, method, seed, workers in jobs(range(options.first, options.first + seeds)):
        path = out / f"{variant}-{method}-{seed}-{workers}-{runs}.json"
        if path.exists() or method not in (options.methods.split(",") if options.methods else METHODS):
            continue
        if time.monotonic() - begun > 60.0 * options.minutes:
            print("out of time: the same command continues")
            break
        found = Search(method, variant, seed, workers=workers).run(runs)
        found |= {"variant": variant, "method": method, "seed": seed, "workers": workers, "runs": runs}
        found["optimum"] = optimum_of(out, variant, seed)
        write_json(path, found)
        regret = 1e3 * (found["trace"][-1]["value"] - found["optimum"])
        print(
            f"{path.stem}: regret {regret:.1f} mBPB, {1e3 * found['proposal_seconds']:.0f} ms a proposal",
            flush=True,
        )
    if not options.quick and not options.methods:
        write_table(out, DOCUMENT, runs=runs, wanted=len(list(jobs(range(FIRST, FIRST + SEEDS)))))


if __name__ == "__main__":
    main()
