"""Whether `search.py effects` tells the truth: `python -m benchmarks.effects [--seeds 10] [--write]`.

Simulated studies (benchmarks/simulator.py), whose true effects are known. Each technique's effect is compared
with the true difference between on and off, averaged over the same configurations; a pair's with its true
coefficient. --write: the table to docs/effects.md. Two minutes of one core.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from benchmarks.search_efficiency import Search
from benchmarks.simulator import Instance
from search.report.effects import find_effects

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "effects.md"
HEAD = """# What `search.py effects` says, against the truth

`python search.py effects` tells for each technique by how much it moves val_bpb, for each number where it
is best, and which pairs do more or less than the sum of both, each with a 95 % interval
(`search/report/effects.py` has the method). This table is written by `python -m benchmarks.effects
--write`; do not edit. {seeds} simulated studies a row (seeds {first} to {last}; the interval's width was
set on seeds 20 to 22), 25 techniques and 62 parameters each, true effects known.
"""
TAIL = """
- *held*: how often the true effect lay in the 95 % interval.
- *told*: techniques whose interval excludes 0; *wrong sign*: of those, how many truly move the other way (in
  a study without effects: all that are told).
- *pairs told*: pairs that are reported; *true*: of those, how many the simulator has (14 in each study);
  *large pairs found*: of the true ones beyond {large} bits per byte.

A sampler that closes in on the best configurations varies less, so that its studies tell less than random
ones of the same size. A pair needs more trials than a technique, and its size is rather told too small than
too large (shrinkage). Intervals of the surrogate's posterior alone hold too seldom (it takes its fitted
variances for true), so they are widened by a factor of 1.4.
"""
STUDIES = (  # variant, trials, how they were sampled
    ("base", 150, "random"),
    ("base", 300, "random"),
    ("base", 150, "structured"),
    ("non_quadratic", 150, "random"),
    ("three_way", 150, "random"),
    ("null", 150, "random"),
    ("null", 150, "structured"),
)
LARGE = 0.002


@dataclass(frozen=True)
class Check:
    """Of one study: techniques that were told of, intervals that hold the truth, verdicts, wrong signs; pairs
    that were told, of them true ones; large true pairs, of them told."""

    count: int
    inside: int
    sure: int
    wrong: int
    pairs: int
    pairs_true: int
    large: int
    large_found: int


def random_trials(instance: Instance, count: int) -> list[FrozenTrial]:
    """Complete trials of uniform configurations."""
    rng, found = np.random.default_rng([instance.seed, 5]), list[FrozenTrial]()
    while len(found) < count:
        params = instance.params(instance.uniform_rows(rng, 1)[0])
        value = instance.run(params, rng).value
        if value is not None:
            dists = {name: instance.space[name] for name in params}
            found.append(create_trial(value=value, params=params, distributions=dists))
    study = optuna.create_study()
    study.add_trials(found)  # numbers them
    return study.trials


def true_pairs(instance: Instance) -> dict[frozenset[str], float]:
    """pair -> coefficient of the product; of gates, of places in [-1, 1]."""
    scale = instance.scale
    return {frozenset(instance.names[k] for k in pair): scale * c for pair, c in instance.pairs}


def true_effect(instance: Instance, rows: np.ndarray, gate: int, rng: np.random.Generator) -> float:
    """On less off over `rows` [n, parameters], its settings where it is off as in rows that have it on."""
    own = np.array(
        [k for k, p in enumerate(instance.parameters) if p.gate == instance.names[gate] and not p.is_gate],
        dtype=int,
    )
    on, off, tried = rows.copy(), rows.copy(), rows[rows[:, gate] > 0.5]
    on[:, gate], off[:, gate] = 1.0, 0.0
    if len(tried) and len(own):
        lack = rows[:, gate] < 0.5
        on[np.ix_(lack, own)] = tried[rng.integers(len(tried), size=int(lack.sum()))][:, own]
    means = instance.active(on)[:, gate]
    return float((instance.true(on[means]) - instance.true(off[means])).mean())


def check(instance: Instance, trials: Sequence[FrozenTrial]) -> Check:
    found, rng = find_effects(trials), np.random.default_rng(0)
    rows = instance.rows([t.params for t in trials if t.state == TrialState.COMPLETE])
    gates = [e for e in found.techniques if e.name in instance.at]
    truths = [true_effect(instance, rows, instance.at[e.name], rng) for e in gates]
    told = [(e, t) for e, t in zip(gates, truths, strict=True) if e.verdict != "not told"]
    pairs, named = true_pairs(instance), [frozenset(e.name.split(" × ")) for e in found.pairs]
    pairs = {p: c for p, c in pairs.items() if c != 0.0}
    large = [p for p, c in pairs.items() if abs(c) > LARGE]
    return Check(
        count=len(gates),
        inside=sum(e.low <= t <= e.high for e, t in zip(gates, truths, strict=True)),
        sure=len(told),
        wrong=sum(e.mean * t <= 0.0 for e, t in told),
        pairs=len(named),
        pairs_true=sum(p in pairs for p in named),
        large=len(large),
        large_found=sum(p in named for p in large),
    )


def row_of(variant: str, trials: int, how: str, checks: Sequence[Check]) -> str:
    def total(name: str) -> int:
        return sum(getattr(c, name) for c in checks)

    cells = (
        f"{variant}, {how}",
        trials,
        f"{total('inside') / total('count'):.1%}",
        f"{total('sure')} of {total('count')}",
        total("wrong"),
        total("pairs"),
        total("pairs_true"),
        f"{total('large_found')} of {total('large')}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.effects")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=30)
    parser.add_argument("--write", action="store_true", help="to docs/effects.md")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    names = (
        "study, sampling",
        "trials",
        "held",
        "told",
        "wrong sign",
        "pairs told",
        "true",
        "large pairs found",
    )
    lines = ["| " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) - 1)]
    for variant, count, how in STUDIES:
        checks: list[Check] = []
        for seed in range(options.first, options.first + options.seeds):
            if how == "random":
                trials = random_trials(Instance(seed, variant), count)
            else:
                search = Search(how, variant, seed)
                search.run(count)
                trials = search.study.trials
            checks.append(check(Instance(seed, variant), trials))
        lines.append(row_of(variant, count, how, checks))
        print(lines[-1], flush=True)
    if options.write:
        last = options.first + options.seeds - 1
        head = HEAD.format(seeds=options.seeds, first=options.first, last=last)
        DOCUMENT.write_text(head + "\n" + "\n".join(lines) + "\n" + TAIL.format(large=LARGE))


if __name__ == "__main__":
    main()
