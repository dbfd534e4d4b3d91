"""What a trial cost beside the trainer's work, and what the stage cache saved of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from search.common.attributes import OVERHEAD, STAGE_REUSE


def reuse_of_study(trials: Sequence[FrozenTrial], *, gpus: int = 0) -> str:
    """One line about the stage cache; empty while nothing was reused."""
    facts: list[Mapping[str, Any]] = [
        t.user_attrs[STAGE_REUSE] for t in trials if STAGE_REUSE in t.user_attrs
    ]
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


def reuse_of_trial(facts: Mapping[str, Any]) -> str:
    """One trial's line in `show`."""
    seconds = ", ".join(f"{name} {s:.1f} s" for name, s in facts["seconds"].items())
    reused = ", ".join(facts["reused"]) or "none"
    by_stage = f"{seconds}; " if seconds else ""
    return f"{by_stage}taken over: {reused} (saved {facts['saved_s']:.1f} s, spent {facts['spent_s']:.1f} s)"


def overhead_of_study(trials: Sequence[FrozenTrial]) -> str:
    """One line: means over trials of what is not the trainer's work; empty while none tells."""
    shares: list[Mapping[str, float]] = [t.user_attrs[OVERHEAD] for t in trials if OVERHEAD in t.user_attrs]
    if not shares:
        return ""
    mean = {name: sum(o.get(name, 0.0) for o in shares) / len(shares) for name in shares[0]}
    parts = ", ".join(
        f"{name.removesuffix('_s').replace('_before', '')} {1000 * seconds:.0f} ms"
        for name, seconds in mean.items()
        if name.endswith("_s") and name != "process_s"
    )
    return f"overhead per trial: {parts}; {mean['share']:.1%} of a trial of {mean['process_s']:.1f} s"
