"""`search.py status`: how far a study is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from optuna.trial import TrialState
from rich.console import Console
from rich.markup import escape

from search.report.pruning import pruning_line
from search.report.reproduce import print_reproduce
from search.report.rows import ranked
from search.session.session import Session
from search.stage_cache.savings import summary


def overhead_line(shares: Sequence[Mapping[str, float]]) -> str:
    """Means over trials of what is not the trainer's work."""
    mean = {name: sum(o.get(name, 0.0) for o in shares) / len(shares) for name in shares[0]}
    parts = ", ".join(
        f"{name.removesuffix('_s').replace('_before', '')} {1000 * seconds:.0f} ms"
        for name, seconds in mean.items()
        if name.endswith("_s") and name != "process_s"
    )
    return f"overhead per trial: {parts}; {mean['share']:.1%} of a trial of {mean['process_s']:.1f} s"


def print_status(console: Console, session: Session) -> None:
    """Counts, why configurations failed, the best, and what a trial costs beside its work."""
    from search.report.rows import snapshot

    trials = session.optuna_study.get_trials(deepcopy=False)
    seen = snapshot(trials, 0)
    console.print(
        f"{session.study.name}: {seen.finished} trials done ({seen.complete} complete, {seen.infeasible} of "
        f"them over a limit; {seen.pruned} pruned; {seen.rejected} failed configurations), "
        f"{seen.running} running, {seen.waiting} waiting, {seen.failed} lost to the machine and tried again; "
        f"{seen.resampled} configurations resampled before running",
        soft_wrap=True,
        highlight=False,
    )
    reasons = Counter(
        str(t.user_attrs.get("reason", "not told")).partition(":")[0]
        for t in trials
        if t.state == TrialState.PRUNED and t.constraints.get("run", 0.0) > 0.0
    )
    for reason, count in reasons.most_common():
        console.print(f"  failed configurations: {count} × {escape(reason)}", highlight=False)
    good, _ = ranked(trials)
    if saved := summary(trials, gpus=session.study.gpus_per_trial):
        console.print(f"  {saved}", highlight=False, soft_wrap=True)
    if shares := [t.user_attrs["overhead"] for t in trials if "overhead" in t.user_attrs]:
        console.print(f"  {overhead_line(shares)}", highlight=False, soft_wrap=True)
    if told := pruning_line(trials):
        console.print(f"  {told}", highlight=False, soft_wrap=True)
    if good:
        print_reproduce(console, session, good[0])
