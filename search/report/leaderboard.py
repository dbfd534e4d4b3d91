"""What a study found: leaderboard, best trial, one trial in full, status; every number with its unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from optuna.trial import FrozenTrial
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from search.report.reproduce import print_reproduce
from search.report.rows import Row, ranked, row_of
from search.session.baseline import stored
from search.session.session import Session
from search.stage_cache.savings import summary

NOISE = (
    "One seed each: a seed alone moves BPB by 0.005 to 0.010 (standard deviation, measured at laptop scale), "
    "and the best of many is lucky. A search value is where to look next, not a claim."
)
WIDE = 120  # columns that the table with its words needs
NOT_YET = "No trial of this study has finished. Start it with `python search.py`."


def print_rows(console: Console, rows: Sequence[Row], title: str) -> None:
    """A table; in a narrow terminal the words of each row stand below it."""
    wide = console.width >= WIDE
    console.print(table_of(rows, title, words=wide))
    for row in () if wide else rows:
        console.print(f"#{row.number}: {row.legality}; {words_of(row)}", highlight=False, markup=False)


def words_of(row: Row) -> str:
    """The techniques that were on; ! marks one that changed nothing."""
    return ", ".join(f"{t}!" if t in row.inactive else t for t in row.techniques) or "no technique"


def table_of(rows: Sequence[Row], title: str, *, words: bool) -> Table:
    if any(row.findings for row in rows):
        title += "; ? = has findings, see `show N`"
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for name in ("trial", "BPB", "bytes", "slack, bytes", "train, s", "eval, s", "steps"):
        table.add_column(name, justify="right", no_wrap=True)
    if words:
        table.add_column("legality")
        table.add_column("techniques on (! = changed nothing)", overflow="fold")
    for row in rows:
        table.add_row(
            f"#{row.number}",
            f"{row.bpb:.4f}{'?' if row.findings else ''}",
            f"{row.artifact_bytes:,}",
            f"{row.slack_bytes:,}",
            f"{row.train_s:.1f}",
            f"{row.eval_s:.1f}",
            f"{row.steps:,}",
            *((escape(row.legality), escape(words_of(row))) if words else ()),
        )
    return table


def against_baseline(session: Session, good: Sequence[FrozenTrial]) -> str:
    """By how much the best feasible trial beats the study's starting point."""
    found = stored(session.optuna_study)
    if found is None:
        return ""
    text = f"Baseline ({session.trainer.start}): {found['val_bpb']:.4f} val_bpb"
    if good:
        gain = float(good[0].value or 0.0) - found["val_bpb"]
        text += f"; trial #{good[0].number} stands {gain:+.4f} from it"
    return text + "."


def print_leaderboard(console: Console, session: Session, *, top: int = 10) -> None:
    """The table, the infeasible ones apart, what the numbers cannot tell, and how to repeat the best."""
    trials = session.optuna_study.get_trials(deepcopy=False)
    good, bad = ranked(trials)
    limits = session.study.limits
    title = (
        f"{session.study.name}: {len(good)} feasible trials; limits {limits.artifact_bytes:,} bytes, "
        f"{limits.train_seconds:g} s training, {limits.eval_seconds:g} s evaluation; "
        f"track {session.study.track}"
    )
    if not good and not bad:
        console.print(NOT_YET)
        return
    if good:
        print_rows(console, [row_of(t) for t in good[:top]], title)
    else:
        console.print(f"{title}\nNo trial kept every limit yet.", highlight=False, soft_wrap=True)
    told = against_baseline(session, good)
    for line in (told, summary(trials, gpus=session.study.gpus_per_trial)):
        if line:
            console.print(f"\n{line}", highlight=False, soft_wrap=True)
    if bad:
        console.print()
        print_rows(console, [row_of(t) for t in bad[: max(3, top // 3)]], f"Infeasible: {len(bad)} trials")
    console.print(f"\n{NOISE}", soft_wrap=True)
    if has_mixed_code([*good, *bad]):
        console.print(
            "The code changed while this study ran: compare only trials of the same passport (`show N`).",
            soft_wrap=True,
        )
    if len(devices := {str(t.user_attrs.get("passport", {}).get("device")) for t in [*good, *bad]}) > 1:
        console.print(f"Trials ran on {escape(', '.join(sorted(devices)))}: speeds differ.", soft_wrap=True)
    if good:
        print_reproduce(console, session, good[0])


def has_mixed_code(trials: Sequence[FrozenTrial]) -> bool:
    """Whether trials with the same techniques ran different code (each technique is code of its own)."""
    seen: dict[tuple[str, ...], str] = {}
    for trial in trials:
        techniques = tuple(sorted(cast("list[str]", trial.user_attrs.get("techniques", []))))
        code = str(trial.user_attrs.get("passport", {}).get("code_hash"))
        if seen.setdefault(techniques, code) != code:
            return True
    return False
