"""How exact costs are before and after learning: `python -m benchmarks.costs.accuracy`.

Replays the 200 trials of a finished study (tests/search/own_text_trials.json) in their order: each trial is
predicted from those before it, then learnt from: from nothing, for the shipped prior has read them. No
trainer runs; half a minute.
"""

from __future__ import annotations

from rich.console import Console

from search.common.paths import ROOT
from search.costs.preflight import Preflight
from search.report.costs import accuracy_table
from search.study.load import find_study
from tests.search.replay import read_trials, replay


def main() -> None:
    study = find_study(ROOT / "studies" / "own_text.toml")
    pairs = replay(Preflight(study, prior={}), read_trials())
    Console(width=120).print(
        accuracy_table(pairs, "own_text, 196 trials, each predicted from those before it")
    )


if __name__ == "__main__":
    main()
