"""Recorded trials: 200 of `own_text` on twelve public-domain books, and laptop studies (LAPTOP).

As they were measured: two cores, one thread a trial, other work on the machine: seconds are noisy, as they
are in use. In the order in which they ended. The code of `own_text` was counted unbundled; here it counts as
a submission does. The laptop ones: `python -m benchmarks.costs.prior --record` (search with uniform draws,
search from empty homes).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.sizes import expected_bytes, sizes
from search.costs.preflight import Pair, Prediction, Preflight
from search.study.limits import LIMITS
from techniques import catalog
from techniques.config import Resolved, read_preset, resolve

FILE = Path(__file__).with_name("own_text_trials.json")
LAPTOP = Path(__file__).with_name("laptop_trials.json")


@dataclass(frozen=True)
class Measured:
    """One trial: its configuration, early reports (progress, val_bpb, lr_scale, elapsed s) and result."""

    number: int
    resolved: Resolved
    reports: list[list[float]]
    result: Mapping[str, Any] | None  # None: given up half-way
    home: str = ""  # of several searches, which


def as_submitted(result: dict[str, Any] | None, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result with the bytes of the script that an export of it takes."""
    if result is None or "code_bytes" not in result:  # a baseline of an earlier version did not tell
        return result
    code = expected_bytes({name for name, value in config.items() if value is True} & sizes().keys())
    return {
        **result,
        "code_bytes": code,
        "artifact_bytes": result["artifact_bytes"] - result["code_bytes"] + code,
    }


def read_trials(file: Path = FILE) -> list[Measured]:
    """All of them."""
    told = json.loads(file.read_text(encoding="utf-8"))
    known = catalog.metadata()
    preset = read_preset(told["preset"])
    return [
        Measured(
            number=trial["number"],
            resolved=resolve({"preset": preset, "file": told["fixed"] | trial["config"]}, known),
            reports=trial.get("reports", []),
            result=as_submitted(trial.get("result"), trial["config"]),
            home=trial.get("home", ""),
        )
        for trial in told["trials"]
    ]


def replay(preflight: Preflight, trials: Sequence[Measured]) -> dict[str, list[Pair]]:
    """constraint -> prediction and outcome: each trial predicted before it is learnt from."""
    found: dict[str, list[Pair]] = {}
    for trial in trials:
        if trial.result is None:
            continue
        said: Prediction = preflight.predict(trial.resolved)
        for limit in LIMITS:
            figure = limit.figure
            predicted = getattr(said, figure, None)
            if predicted is not None:
                pair = Pair(predicted, getattr(said, f"{figure}_upper"), float(trial.result[figure]))
                found.setdefault(limit.constraint, []).append(pair)
        preflight.learn([(trial.resolved, trial.result)])
    return found
