"""`python -m search.trackers RUNS TRACKER`: reads folders of finished trials from stdin, a line each, and
tells the tracker. One that raises ends it: the last line of its traceback is what a worker repeats."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from search.trackers.files import FACTS, is_told, mark_of

TRIAL_S = 600  # to tell one trial: who then still waits for a tracker is given up


class Tracker(Protocol):
    """One place that shows trials."""

    def log(self, facts: Mapping[str, Any], folder: Path) -> None: ...


def tracker_of(name: str, runs: Path) -> Tracker:
    if name == "mlflow":
        from search.trackers.to_mlflow import ToMlflow

        return ToMlflow(runs)
    from search.trackers.to_wandb import ToWandb

    return ToWandb(runs)


def main(argv: list[str]) -> int:
    runs, name = argv
    tracker = tracker_of(name, Path(runs))
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        if is_told(name, folder):
            continue
        signal.alarm(TRIAL_S)
        tracker.log(json.loads((folder / FACTS).read_text(encoding="utf-8")), folder)
        signal.alarm(0)
        mark_of(name, folder).touch()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
