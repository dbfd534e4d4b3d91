"""How exact costs are: from nothing over a whole study, and in the first trials of one under the prior.

    python -m benchmarks.costs.accuracy [--home HOME …]

Replays recorded trials in their order: each is predicted from those before it, then learnt from. First the
200 trials of tests/search/own_text_trials.json, from nothing. Then the searches of laptop_trials.json, each
under a prior that is learnt without it, in parts of 20 trials that begin anew with the search's baseline:
what a new study's first 20 predictions are worth. --home: instead, of the laptop studies in these homes,
under the shipped prior. No trainer runs; a minute.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.costs.prior import LAPTOP_STUDY, committed, kept_of, prior_of, published
from benchmarks.results import table
from search.common.paths import ROOT
from search.costs.factors import read_prior
from search.costs.preflight import Pair, Preflight, Prior
from search.report.costs import accuracy_of, accuracy_table
from search.study.load import find_study
from tests.search.replay import LAPTOP, Measured, read_trials, replay

FIRST = 20  # trials of a part
FEWEST = 5  # of the last one


def held_out(laptop: Sequence[Measured]) -> dict[str, list[Pair]]:
    """constraint -> the pairs of all searches, each under a prior without it."""
    found: dict[str, list[Pair]] = {}
    for home in dict.fromkeys(trial.home for trial in laptop):
        others = [t for t in committed() if t.study != f"{LAPTOP_STUDY}/{home}"]
        prior = read_prior(prior_of([*published(), *others]))
        for name, pairs in begun_anew([t for t in laptop if t.home == home], prior).items():
            found.setdefault(name, []).extend(pairs)
    return found


def begun_anew(trials: Sequence[Measured], prior: Prior | None) -> dict[str, list[Pair]]:
    """constraint -> pairs of one search, its baseline first. `prior`: None for the shipped one."""
    study = find_study(ROOT / "studies" / "laptop.toml")
    found: dict[str, list[Pair]] = {}
    baseline, *own = trials
    for begin in range(0, len(own) - FEWEST + 1, FIRST):
        preflight = Preflight(study, prior=prior)
        preflight.learn([(baseline.resolved, baseline.result or {})])
        for name, pairs in replay(preflight, own[begin : begin + FIRST]).items():
            found.setdefault(name, []).extend(pairs)
    return found


def of_homes(homes: Sequence[Path]) -> dict[str, list[Pair]]:
    """constraint -> the pairs of the laptop studies in these homes, under the shipped prior."""
    found: dict[str, list[Pair]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trials.json"
        for home in homes:
            file.write_text(kept_of([(ROOT / "studies" / "laptop.toml", home)]), encoding="utf-8")
            for name, pairs in begun_anew(read_trials(file), None).items():
                found.setdefault(name, []).extend(pairs)
    return found


def table_of(pairs: Mapping[str, Sequence[Pair]]) -> str:
    head = ("limit on", "trials", "mean error", "below the 97.5 % bound", "bound / prediction, median")
    rows: list[list[str]] = []
    for name, found in pairs.items():
        told = accuracy_of(found)
        width = statistics.median(pair.upper / pair.predicted for pair in found)
        shares = [f"{told.mean_absolute:.1%}", f"{told.coverage:.1%}", f"{width:.3f}"]
        rows.append([name, str(told.count), *shares])
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, nargs="+")
    options = parser.parse_args()
    if options.home:
        print(table_of(of_homes(options.home)), end="")
        return
    study = find_study(ROOT / "studies" / "own_text.toml")
    pairs = replay(Preflight(study, prior={}), read_trials())
    Console(width=120).print(
        accuracy_table(pairs, "own_text, 196 trials, each predicted from those before it")
    )
    print(table_of(held_out(read_trials(LAPTOP))), end="")


if __name__ == "__main__":
    main()
