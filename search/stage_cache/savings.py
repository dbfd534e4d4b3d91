"""What the stage cache saved: kept with each trial, and told of a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

STAGES = "stages"  # user attribute: recorded true seconds by stage, what was reused, seconds spent and saved


def stage_facts(result: Mapping[str, Any], *, spent_s: float) -> dict[str, Any]:
    """Of a trial with a result: the recorded true seconds of each stage, the stages that were taken over, the
    seconds that its process took now, and the seconds that taking over saved."""
    stages: Mapping[str, Mapping[str, float]] = result.get("stage_seconds") or {}
    seconds = {name: round(float(clocks["true"]), 3) for name, clocks in stages.items()}
    reused = [str(name) for name in result.get("reused") or ()]
    saved_s = sum(seconds.get(name, 0.0) for name in reused)
    return {"seconds": seconds, "reused": reused, "spent_s": round(spent_s, 3), "saved_s": round(saved_s, 3)}


def replayed_facts(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of a trial that recorded reports pruned before any trainer started."""
    saved_s = round(float(reports[-1].get("elapsed_s") or 0.0), 3)
    return {"seconds": {}, "reused": ["train"], "spent_s": 0.0, "saved_s": saved_s}


def summary(trials: Sequence[FrozenTrial], *, gpus: int = 0) -> str:
    """One line about a study; empty while nothing was reused."""
    facts: list[Mapping[str, Any]] = [t.user_attrs[STAGES] for t in trials if STAGES in t.user_attrs]
    reused = [f for f in facts if f["reused"]]
    if not reused:
        return ""
    by_stage = Counter(stage for f in reused for stage in f["reused"])
    spent_s, saved_s = (sum(float(f[key]) for f in facts) for key in ("spent_s", "saved_s"))
    stages = ", ".join(f"{stage} {count}" for stage, count in by_stage.items())
    of_gpus = f" on {gpus} GPUs each" if gpus > 1 else ""
    return (
        f"stage cache: {len(reused)} of {len(facts)} trials took over a stage ({stages}); "
        f"{saved_s:,.1f} s saved{of_gpus}, {spent_s:,.1f} s spent in trainers"
    )


def words(facts: Mapping[str, Any]) -> str:
    """One trial's line in `show`."""
    seconds = ", ".join(f"{name} {s:.1f} s" for name, s in facts["seconds"].items())
    reused = ", ".join(facts["reused"]) or "none"
    told = f"{seconds}; " if seconds else ""
    return f"{told}taken over: {reused} (saved {facts['saved_s']:.1f} s, spent {facts['spent_s']:.1f} s)"
