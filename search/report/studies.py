"""`search.py studies`: every study of a database; `search.py diff A B`: what two trials differ in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from search.common import attributes as stored
from search.common.console import counted
from search.report.rows import short
from search.report.trial import trial_of
from search.session.session import Session
from search.session.shelf import Shelf, Shelved
from search.study.limits import LIMITS


def print_studies(console: Console, shelf: Shelf, *, every: bool) -> None:
    """One line a study, the newest first; archived ones only with `every`."""
    found = shelf.studies()
    shown = [study for study in found if every or not study.archived]
    if not shown:
        console.print("No study is here." if not found else "All studies are archived (--all shows them).")
        return
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("study", overflow="fold")
    for name in ("done", "running"):
        table.add_column(name, justify="right", no_wrap=True)
    priced = any(study.dollars is not None for study in shown)
    for name in ("best observed", "newest trial", *(("dollars",) if priced else ()), "trainer"):
        table.add_column(name, overflow="fold")
    for study in shown:
        table.add_row(*map(escape, cells(study, priced=priced)))
    console.print(table)
    if hidden := len(found) - len(shown):
        console.print(f"and {counted(hidden, 'archived one')} (--all)", highlight=False)


def cells(study: Shelved, *, priced: bool) -> tuple[str, ...]:
    best = "" if study.best is None else f"{study.best.value:.4f} (#{study.best.number})"
    start = study.newest.datetime_start if study.newest else None
    when = f"{start:%Y-%m-%d %H:%M}" if start else ""
    trainer = Path(study.trainer).name or "ours"
    name = f"{study.name} (archived)" if study.archived else study.name
    cost = ["" if study.dollars is None else f"{study.dollars:,.2f}"] if priced else []
    return name, str(study.finished), str(study.running), best, when, *cost, trainer


def print_diff(console: Console, session: Session, first: int, second: int) -> None:
    """Settings and results of two trials, where they differ. ValueError for a number that there is not."""
    trials = [trial_of(session, number) for number in (first, second)]
    same = 0
    rows = list[tuple[str, ...]]()
    settings = [settings_of(trial) for trial in trials]
    for name in sorted({*settings[0], *settings[1]}):
        values = [short(s[name]) if name in s else "" for s in settings]
        if values[0] == values[1]:
            same += 1
        else:
            rows.append((name, *values))
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("", overflow="fold")
    for trial in trials:
        table.add_column(f"#{trial.number}", justify="right", overflow="fold")
    for name, *values in results_of(trials):
        table.add_row(name, *map(escape, values))
    table.add_section()
    for name, *values in rows:
        table.add_row(escape(name), *map(escape, values))
    console.print(table)
    console.print(
        f"{counted(same, 'setting')} the same" if same else "no setting is the same", highlight=False
    )


def settings_of(trial: FrozenTrial) -> Mapping[str, Any]:
    """What the trial was given: its configuration, else its parameters."""
    return trial.user_attrs.get(stored.CONFIG) or trial.params


def results_of(trials: list[FrozenTrial]) -> list[tuple[str, ...]]:
    """BPB, figures and state; of all, same or not: they are what one asks for."""
    bpb = [f"{t.value:.4f}" if t.state == TrialState.COMPLETE else t.state.name.lower() for t in trials]
    rows: list[tuple[str, ...]] = [("bits per byte", *bpb)]
    for limit in LIMITS:
        found = [t.user_attrs.get(limit.figure) for t in trials]
        if any(value is not None for value in found):
            told = ["" if value is None else limit.measured(value) for value in found]
            rows.append((f"{limit.label}, {limit.unit}", *told))
    return rows
