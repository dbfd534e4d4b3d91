"""`python -m benchmarks.prior`: what an earlier study of a changed space is worth, on the simulator.

An earlier study of 100 runs, then the new one with it (`--from`) and without. Kinds of the earlier study:

    wider      the same problem with 6 gates fewer (and what hangs on them), one choice fewer, narrower ranges
    edited     a third of the effects of gates permuted: techniques were edited
    noisy      seeds that scatter ten times as much
    flipped    the opposite objective: what it found best is worst
    unrelated  its values shuffled among its trials

Runs until the new study's best is as good as a cold study's (of other random numbers) after 15, 30, 60 and
120 runs on the same problem, 121 where it never is; medians over problems, ratios to a second cold study,
95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
import platform
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from benchmarks.results import once, table, write_section
from benchmarks.search_efficiency import Calculators, best_observed, optimum_of
from benchmarks.simulator import Instance, Run
from search.common.numeric import contains, place, value_at
from search.common.paths import ROOT
from search.samplers.structured.rows import rules_within
from search.samplers.structured.sampler import Prior, StructuredSampler
from search.samplers.structured.sources import Source

DOCUMENT = ROOT / "docs" / "prior.md"
KINDS = ("cold", "wider", "edited", "noisy", "flipped", "unrelated")
RUNS = 120  # development used other seeds
EARLIER = 100
FIRST = 200
SEEDS = 12
AT = (15, 30, 60, 120)  # runs of the cold study whose regret is to be reached
FEWER_GATES = 6
Params = Mapping[str, Any]
Rows = Mapping[tuple[int, str], Any]  # (problem, kind) -> what `one_row` found
HEAD = """By `python -m benchmarks.prior --write`, on {cores} shared {machine} cores: {seeds} problems of
benchmarks/simulator.py, an earlier study of {earlier} runs each, the new one of {runs}. `wider`: the new
space has {gates} gates more (and what hangs on them), a choice more, ranges two thirds wider; `edited`: a
third of the gates' effects permuted; `noisy`: seeds scattered ten times as much; `flipped`: the earlier study
sought the opposite; `unrelated`: its values were shuffled. Medians, ratios with 95 % bootstrap intervals over
the problems; less than 1 is fewer runs; 121 runs stand for more than 120.

"""


class Problem:
    """An instance as a study sees it: some gates off, ranges cut."""

    def __init__(self, one: Instance, *, closed: Sequence[str] = (), cut: float = 1.0):
        self.one = one
        self.closed = frozenset(closed)
        gone = {p.name for p in one.parameters if p.gate in self.closed and not p.is_gate} | self.closed
        dists = {p.name: p.dist for p in one.parameters if p.name not in gone}
        narrow = {p.name for p in one.parameters if not p.gate and not p.is_gate} if cut < 1.0 else set[str]()
        self.space = {n: within(d, cut) if n in narrow else d for n, d in dists.items()}
        self.conditions = rules_within(self.space, one.conditions())
        start = one.published
        middle = {n: value_at(d, 0.0) for n, d in self.space.items()}
        near = {
            n: value_at(d, place(d, start[n])) for n, d in self.space.items() if n in start and is_number(d)
        }
        kept = {n: start[n] for n, d in self.space.items() if n in start and contains(d, start[n])}
        self.start = self.keep_active(middle | near | kept)

    def keep_active(self, params: Params) -> dict[str, Any]:
        found = self.one.walk(lambda name: False if name in self.closed else params[name])
        return {n: v for n, v in found.items() if n in self.space}


def is_number(dist: BaseDistribution) -> bool:
    return not isinstance(dist, CategoricalDistribution)


def within(dist: BaseDistribution, cut: float) -> BaseDistribution:
    """The middle `cut` of a range; a categorical without its last choice."""
    if isinstance(dist, CategoricalDistribution):
        return CategoricalDistribution(dist.choices[:-1])
    low = value_at(dist, -cut)
    high = value_at(dist, cut)
    if isinstance(dist, IntDistribution):
        return IntDistribution(low, high, step=dist.step, log=dist.log)
    assert isinstance(dist, FloatDistribution)
    return FloatDistribution(low, high, log=dist.log)


def search(
    problem: Problem, runs: int, seed: int, *, sources: Sequence[Source] = (), sign: float = 1.0
) -> Any:
    """(the study, true value of its best feasible run after each run, trust in the source by run)."""
    one = problem.one
    rng = np.random.default_rng([one.seed, seed])
    calculators = Calculators(one)
    prior = Prior(
        problem.space,
        conditions=problem.conditions,
        keep_active=problem.keep_active,
        admits=calculators,
        start=problem.start,
        sources=sources,
    )
    sampler = StructuredSampler(seed=seed, prior=prior)
    study = optuna.create_study(sampler=sampler)
    values = list[float]()
    trusts = list[float]()
    for _ in range(runs):
        trial = study.ask(problem.space)
        params = problem.keep_active(trial.params)
        run = one.run(params, rng)
        calculators.learn(params, run)
        tell(study, trial, run, sign=sign)
        best = best_observed(study)
        value = (
            float(one.true(one.rows([problem.keep_active(best.params)]))[0])
            if best
            else one.mean + 3 * one.sd
        )
        values.append(value)
        trusts.append(next(iter(sampler.trusts().values()), 0.0))
    return study, values, trusts


def tell(study: optuna.Study, trial: optuna.Trial, run: Run, *, sign: float) -> None:
    for name, value in run.constraints.items():
        trial.set_constraint(name, value)
    if run.value is None:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, sign * run.value)


def earlier_study(one: Instance, kind: str) -> Source:
    """What the earlier study of this kind found."""
    rng = np.random.default_rng([one.seed, 55])
    seen = one
    closed = list[str]()
    if kind == "wider":
        closed = [one.names[k] for k in rng.choice(one.gates, FEWER_GATES, replace=False)]
    if kind == "edited":
        seen = copy.copy(one)
        anew = rng.choice(one.gates, len(one.gates) // 3, replace=False)
        seen.gate_effect = one.gate_effect.copy()
        seen.gate_effect[anew] = rng.permutation(one.gate_effect[anew])
    if kind == "noisy":
        seen = copy.copy(one)
        seen._noise_level = one._noise_level + np.log(10.0)
    problem = Problem(seen, closed=closed, cut=0.6 if kind == "wider" else 1.0)
    study, _, _ = search(problem, EARLIER, 1000, sign=-1.0 if kind == "flipped" else 1.0)
    trials = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    values = np.array([float(t.value or 0.0) for t in trials])
    params = tuple(one.walk(lambda n, t=t: t.params.get(n, False)) for t in trials)
    constraints = tuple(dict(t.constraints) for t in trials)
    return Source(
        "earlier",
        params,
        rng.permutation(values) if kind == "unrelated" else values,
        np.zeros(len(values)),
        constraints,
        tuple(max(c.values(), default=0.0) <= 0 for c in constraints),
    )


def one_row(seed: int, kind: str, runs: int) -> dict[str, Any]:
    """Of one problem: the best by run, trust by run, CPU seconds a run."""
    one = Instance(seed)
    sources = () if kind.startswith("cold") else (earlier_study(one, kind),)
    began = time.process_time()
    _, values, trusts = search(Problem(one), runs, 7 if kind == "cold" else 8, sources=sources)
    return {"values": values, "trusts": trusts, "cpu_s": (time.process_time() - began) / runs}


def first_at(values: Sequence[float], most: float) -> int:
    """The first run with so good a best; one more than there were where none has it."""
    return next((k for k, v in enumerate(values, start=1) if v <= most), len(values) + 1)


def hits(rows: Rows, kind: str, at: int, seeds: Sequence[int]) -> list[int]:
    return [first_at(rows[s, kind]["values"], rows[s, "cold"]["values"][at - 1]) for s in seeds]


def interval(ours: Sequence[int], theirs: Sequence[int], repeats: int = 4000) -> tuple[float, float, float]:
    """Ratio of medians, and its 95 % bootstrap interval over problems."""
    a = np.array(ours, dtype=float)
    b = np.array(theirs, dtype=float)
    chosen = np.random.default_rng(0).integers(0, len(a), (repeats, len(a)))
    ratios = np.median(a[chosen], axis=1) / np.median(b[chosen], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.median(a) / np.median(b)), float(low), float(high)


def table_of(rows: Rows, seeds: Sequence[int], optima: Mapping[int, float]) -> str:
    """Runs and their ratio to a second cold study's, regret, trust."""
    heads = ["earlier study", *(f"runs to a cold study's best of {at}: ratio" for at in AT)]
    heads += ["regret after 10, 30, 60 runs, mBPB", "trust after 10, 60"]
    lines: list[list[str]] = []
    for kind in [k for k in ("cold again", *KINDS[1:]) if (seeds[0], k) in rows]:
        told = rows[seeds[0], kind]
        cells = ["none" if kind == "cold again" else kind]
        for at in AT:
            found = hits(rows, kind, at, seeds)
            ratio, low, high = interval(found, hits(rows, "cold again", at, seeds))
            cells.append(f"{statistics.median(found):g}: {ratio:.2f} ({low:.2f} to {high:.2f})")
        cells.append(", ".join(f"{median_at(rows, kind, n, seeds, optima):.1f}" for n in (10, 30, 60)))
        trusts = (statistics.median(rows[s, kind]["trusts"][n - 1] for s in seeds) for n in (10, 60))
        cells.append(", ".join(f"{t:.2f}" for t in trusts) if any(told["trusts"]) else "")
        lines.append(cells)
    return table(heads, lines)


def median_at(rows: Rows, kind: str, n: int, seeds: Sequence[int], optima: Mapping[int, float]) -> float:
    """Median regret of the best observed feasible run of the first n, mBPB."""
    return statistics.median(1e3 * (rows[s, kind]["values"][n - 1] - optima[s]) for s in seeds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "prior", help="kept results")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="problems")
    parser.add_argument("--first", type=int, default=FIRST, help="the first of them")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--kinds", default="", help="only these, by comma")
    parser.add_argument("--write", action="store_true", help="the table into docs/prior.md")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore")
    options.out.mkdir(parents=True, exist_ok=True)
    seeds = range(options.first, options.first + options.seeds)
    rows = dict[tuple[int, str], Any]()
    optima = dict[int, float]()
    kinds = ["cold", "cold again", *KINDS[1:]]
    kinds = [k for k in kinds if not options.kinds or k in ("cold", "cold again", *options.kinds.split(","))]
    for seed in seeds:
        optima[seed] = optimum_of(options.out, "base", seed)
        for kind in kinds:
            path = options.out / f"{kind.replace(' ', '-')}-{seed}-{options.runs}.json"
            rows[seed, kind] = once(path, functools.partial(one_row, seed, kind, options.runs))
            at = [f"{1e3 * (rows[seed, kind]['values'][n - 1] - optima[seed]):.1f}" for n in (5, 15, 30, 60)]
            print(
                seed,
                kind,
                "regret at 5, 15, 30, 60:",
                *at,
                f"{1e3 * rows[seed, kind]['cpu_s']:.0f} ms",
                flush=True,
            )
    found = table_of(rows, list(seeds), optima)
    print(found)
    if options.write and not options.kinds:
        facts = {"cores": os.cpu_count(), "machine": platform.machine(), "seeds": len(seeds)}
        facts |= {"earlier": EARLIER, "runs": options.runs, "gates": FEWER_GATES}
        write_section("Measured", HEAD.format(**facts) + found, DOCUMENT)


if __name__ == "__main__":
    main()
