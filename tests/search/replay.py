"""The 200 trials of a finished study, `own_text` on twelve public-domain books, as they were measured.

Two cores, one thread a trial, other work on the machine: seconds are noisy, as they are in use. In the order
in which they ended. Their code was counted unbundled; here it counts as a submission does.
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


@dataclass(frozen=True)
class Measured:
    """One trial: its configuration, early reports (progress, val_bpb, lr_scale, elapsed s) and result."""

    number: int
    resolved: Resolved
    reports: list[list[float]]
    result: Mapping[str, Any] | None  # None: given up half-way


def as_submitted(result: dict[str, Any] | None, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result with the bytes of the script that an export of it takes."""
    if result is None:
        return None
    code = expected_bytes({name for name, value in config.items() if value is True} & sizes().keys())
    return {
        **result,
        "code_bytes": code,
        "artifact_bytes": result["artifact_bytes"] - result["code_bytes"] + code,
    }


def read_trials() -> list[Measured]:
    """All 200."""
    told, known = json.loads(FILE.read_text(encoding="utf-8")), catalog.metadata()
    preset = read_preset(told["preset"])
    return [
        Measured(
            number=trial["number"],
            resolved=resolve({"preset": preset, "file": told["fixed"] | trial["config"]}, known),
            reports=trial["reports"],
            result=as_submitted(trial.get("result"), trial["config"]),
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
