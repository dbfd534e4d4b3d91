"""`search.py status`: how far a study is."""

from collections import Counter

from optuna.trial import TrialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from search.common.attributes import REASON
from search.common.console import counted
from search.common.tables import TableConsole
from search.report.leaderboard import old_bytes, over_lines, print_reproduce, trouble_text
from search.report.pruning import pruning_summary
from search.report.rows import (
    Snapshot,
    confirmed_of,
    money_text,
    overhead_of_study,
    ranked,
    reuse_of_study,
    snapshot,
)
from search.session.session import Session
from search.session.shelf import hours_of
from search.study.limits import has_failed


def counts_table(seen: Snapshot) -> Table:
    """The counts for other programs."""
    table = Table(show_header=False)
    for name in ("complete", "pruned", "rejected", "infeasible", "running", "waiting", "failed", "resampled"):
        table.add_row(name, str(getattr(seen, name)))
    for label, count in seen.over.items():
        table.add_row(f"over {label}", str(count))
    table.add_row("best", "" if seen.best is None else str(seen.best.number))
    table.add_row("best BPB", "" if seen.best is None else str(seen.best.bpb))
    return table


def print_status(console: Console, session: Session) -> None:
    """Counts, why configurations failed, the best, and what a trial costs beside its work."""
    trials = session.optuna_study.get_trials(deepcopy=False)
    seen = snapshot(trials, 0)
    console.print(
        f"{session.study.name}: {counted(seen.finished, 'trial')} done ({seen.complete} complete, "
        f"{seen.infeasible_text}; {seen.pruned} pruned; "
        f"{counted(seen.rejected, 'failed configuration')}), "
        f"{seen.running} running, {seen.waiting} waiting, {seen.failed} interrupted and tried again; "
        f"{counted(seen.resampled, 'configuration')} resampled before running",
        highlight=False,
    )
    reasons = Counter(
        str(t.user_attrs.get(REASON, "not told")).partition(":")[0]
        for t in trials
        if t.state == TrialState.PRUNED and has_failed(t)
    )
    for reason, count in reasons.most_common():
        console.print(f"  failed configurations: {count} × {escape(reason)}", highlight=False)
    if isinstance(console, TableConsole):
        console.print(counts_table(seen))
    confirmed = confirmed_of(session.optuna_study, trials)
    good, bad = ranked(trials, confirmed)
    for line in over_lines(session, bad):
        console.print(f"  {line}", highlight=False)
    reuse = reuse_of_study(trials, gpus=session.study.gpus_per_trial)
    price = session.study.price.dollars_per_gpu_hour
    money = f"cost: {money_text(hours_of(trials), session.study.gpus, price)}" if session.study.gpus else ""
    told = (money, reuse, overhead_of_study(trials), pruning_summary(trials), old_bytes(session, trials))
    for line in (*told, trouble_text(session)):
        if line:
            console.print(f"  {line}", highlight=False)
    if good:
        print_reproduce(console, session, good[0], confirmed)
