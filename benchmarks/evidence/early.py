"""How early BPB predicts the final one, of a real study: `python -m benchmarks.evidence.early REPORT.json`.

REPORT.json is what `search.py report --to REPORT.json` writes. Spearman's rank correlation of each report
with the final BPB, with the BPB of the trained weights before anything else, and with the final one inside
the best quarter. Trials of one training (equal reports) count once: the first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from search.pruning.evidence import agreement

Trial = Mapping[str, Any]


def trainings(trials: Sequence[Trial]) -> list[Trial]:
    """The first finished trial of each training that reported as often as most did."""
    whole = [t for t in trials if t["bpb"] is not None and t["chain"]]
    most = max((len(t["curve"]) for t in whole), default=0)
    found: dict[tuple[float, ...], Trial] = {}
    for trial in whole:
        if len(trial["curve"]) == most:
            found.setdefault(tuple(bpb for _, bpb in trial["curve"][:-1]), trial)
    return list(found.values())


def correlations(trials: Sequence[Trial], final: Callable[[Trial], float]) -> list[float]:
    """Of each report with `final`."""
    import numpy as np

    ends = np.array([final(t) for t in trials])
    reports = len(trials[0]["curve"]) - 1
    return [agreement(np.array([t["curve"][k][1] for t in trials]), ends).rank for k in range(reports)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path)
    trials = json.loads(parser.parse_args().report.read_text(encoding="utf-8"))["trials"]
    found = sorted(trainings(trials), key=lambda t: t["bpb"])
    if len(found) < 20:
        raise SystemExit(f"A correlation needs 20 trainings, but the study has {len(found)}.")
    best = found[: len(found) // 4]
    rows = {
        f"final BPB, {len(found)} trainings": correlations(found, lambda t: t["bpb"]),
        "BPB of the trained weights": correlations(found, lambda t: t["chain"][0][1]),
        f"final BPB, the best {len(best)}": correlations(best, lambda t: t["bpb"]),
    }
    steps = [at for at, _ in found[0]["curve"][:-1]]
    print("at step " + ", ".join(f"{at:g}" for at in steps))
    for name, values in rows.items():
        print(f"{name}: {', '.join(f'{value:.2f}' for value in values)}")
    given_up: dict[tuple[float, ...], list[str]] = {}
    for trial in trials:
        if trial["state"] == "pruned":
            given_up.setdefault(tuple(bpb for _, bpb in trial["curve"]), []).append(str(trial["number"]))
    most = max(given_up.values(), key=len, default=[])
    if len(most) > 1:
        print(f"given up with one and the same training: {len(most)} trials (#{', #'.join(most)})")


if __name__ == "__main__":
    main()
