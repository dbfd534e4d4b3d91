"""What pruning did in a study: time saved, the spared trials' verdict, and what its evidence says."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from search.common.attributes import EVAL_SECONDS, PREFLIGHT, SPARED, TRAIN_SECONDS
from search.common.console import counted, tell
from search.pruning.pruner import Pruner, is_evidence, remembered
from search.study.limits import has_failed
from search.study.model import Pruning


def given_up(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that were pruned, and not because the configuration failed."""
    return [t for t in trials if t.state == TrialState.PRUNED and not has_failed(t)]


def seconds_saved(trials: Sequence[FrozenTrial]) -> float:
    """Predicted seconds that given-up trials did not run: the rest of the training, the evaluation."""
    total = 0.0
    for trial in given_up(trials):
        predicted = cast("Mapping[str, float]", trial.user_attrs.get(PREFLIGHT) or {})
        curve = remembered(trial)
        left = 1.0 - curve[-1][0] if curve else 0.0
        total += left * predicted.get(TRAIN_SECONDS, 0.0) + predicted.get(EVAL_SECONDS, 0.0)
    return total


def spared_wrongly(trials: Sequence[FrozenTrial]) -> tuple[int, int]:
    """(spared trials that ended, those of them that reached their standard and would have been lost)."""
    ended = [t for t in trials if t.state == TrialState.COMPLETE and SPARED in t.user_attrs]
    facts = [cast("Mapping[str, Any]", t.user_attrs[SPARED]) for t in ended]
    good = [is_evidence(t) and (t.value or 0.0) <= f["standard"] for t, f in zip(ended, facts, strict=True)]
    return len(ended), sum(good)


def pruning_summary(trials: Sequence[FrozenTrial]) -> str:
    """For `status`; "" while nothing was or would have been given up."""
    pruned, (spared, reached) = given_up(trials), spared_wrongly(trials)
    if not pruned and not spared:
        return ""
    text = f"pruning: {counted(len(pruned), 'trial')} given up, about {seconds_saved(trials):,.0f} s saved"
    text += f"; {spared} more {'was' if spared == 1 else 'were'} spared"
    return text + f", {reached} of them reached what they were to reach"


def print_evidence(console: Console, trials: Sequence[FrozenTrial], settings: Pruning) -> None:
    """For each point of the budget: how well early tells final, and the surest offsets."""
    pruner = Pruner(settings)
    pruner.look(trials)
    grid = sorted({round(at, 2) for t in trials if is_evidence(t) for at, _, _ in remembered(t)})
    for progress in grid:
        evidence = pruner.evidence(progress)
        if not evidence.usable:
            continue
        use = "used" if evidence.tells(settings.agreement) and progress >= settings.start else "not used"
        text = f"BPB at {progress:.0%} of {evidence.count} trials: rank agreement with the final one "
        text += f"{evidence.raw.rank:.2f}, with offsets {evidence.shown.rank:.2f} (at least "
        text += f"{evidence.shown.lower:.2f}); {use} for pruning"
        tell(console, text)
        sure = [row for row in evidence.offsets()[:4] if abs(row[1]) > 2.0 * row[2]]
        if sure:
            offsets = ", ".join(f"{name} {shift:+.4f} ± {sd:.4f}" for name, shift, sd in sure)
            text = f"  in the end, beyond what was to be seen there: {offsets}"
            tell(console, text)
