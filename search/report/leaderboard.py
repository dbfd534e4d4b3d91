"""What a study found: its leaderboard and best trial; every number with its unit."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from optuna.trial import FrozenTrial
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from search.common.attributes import (
    CODE_BYTES,
    CODE_HASH,
    CONFIG,
    CONFIG_HASH,
    LEARNT,
    PASSPORT,
    PROTOCOL,
    TECHNIQUES,
    TRACKING,
)
from search.common.console import counted, tell
from search.common.paths import DEFAULT_STUDY, shown
from search.report.rows import (
    LEAST,
    Beliefs,
    Confirmations,
    Row,
    beliefs_of_study,
    confirmed_of,
    confirmed_text,
    learnt_text,
    limits_text,
    over_by_limit,
    ranked,
    reuse_of_study,
    row_of,
)
from search.session.session import Session, baseline_of
from search.study.limits import LIMITS, Limit, broken_limits
from techniques.base import Verdict

NOISE = (
    "One seed each: a seed alone moves BPB by 0.005 to 0.010 (standard deviation, measured at laptop scale), "
    "and the best of many is lucky. A search value is where to look next, not a claim."
)
BELIEVED = "BPB: observed, what the run gave. believed: what the surrogate expects of it, by all trials."
WIDE = 120  # columns that the table with its techniques needs
LISTED = 5  # trials over a limit whose figures are told
UNBUNDLED = 100_000  # bytes of code: no script that is submitted has as many
NOT_YET = "No trial of this study has finished. Start it with `python search.py`."


def print_rows(console: Console, rows: Sequence[Row], title: str) -> None:
    """A table; in a narrow terminal the techniques of each row stand below it."""
    wide = console.width >= WIDE
    table = table_of(rows, title, techniques=wide)
    if not wide and table.title:  # a table's own title breaks at its width, which is less
        console.print(table.title, style="table.title", highlight=False)
        table.title = None
    console.print(table)
    shared = () if wide else shared_techniques(rows)
    if shared:
        console.print(f"on in all of these: {', '.join(shared)}", highlight=False, markup=False)
    for row in () if wide else rows:
        name = "mean of seeds" if row.replicates else "confirmed"
        told = f"{name} {row.confirmed}; " if row.confirmed else ""
        told += f"over {', '.join(row.over)}; " if row.over else ""
        text = f"#{row.number}: {told}{row.legality}; {techniques_of(row, shared)}"
        console.print(text, highlight=False, markup=False)
    for line in legend_of(rows):
        console.print(line, highlight=False)


def legend_of(rows: Sequence[Row]) -> list[str]:
    """What the marks of these rows mean, of those that they have."""
    told = ["!: the technique was on, and changed nothing"] if any(row.inactive for row in rows) else []
    timed = any(Verdict.LEGAL_IF_TIMED.value in row.legality for row in rows)
    told += ["legal-if-timed: its work counts as training time, as it does here"] if timed else []
    return [f"({'; '.join(told)})"] if told else []


def techniques_of(row: Row, told: Sequence[str] = ()) -> str:
    """The techniques that were on; ! marks one that changed nothing. Those that were `told` are left out."""
    named = [f"{t}!" if t in row.inactive else t for t in row.techniques]
    rest = [name for name in named if name not in told]
    if told:
        return "also " + ", ".join(rest) if rest else "nothing else"
    return ", ".join(rest) or "no technique"


def shared_techniques(rows: Sequence[Row]) -> list[str]:
    """What every row would name, where it is so much that telling it once is shorter."""
    named = [techniques_of(row).split(", ") for row in rows]
    shared = [name for name in named[0] if all(name in one for one in named)] if len(rows) > 2 else []
    return shared if len(shared) > 2 else []


def table_of(rows: Sequence[Row], title: str, *, techniques: bool) -> Table:
    if any(row.findings for row in rows):
        title += "; ? = has findings, see `show N`"
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    limits = [limit for limit in LIMITS if any(limit.figure in row.figures for row in rows)]
    figures = [name for limit in limits for name in columns_of(limit, slack=techniques)]
    beliefs = any(row.believed is not None for row in rows)
    means = techniques and any(row.confirmed for row in rows)
    over = techniques and any(row.over for row in rows)
    heads = ("trial", "BPB", *(("believed",) if beliefs else ()))
    steps = techniques or not any(limit.optional for limit in limits)  # no room for both in 80 columns
    heads += (*((means_of(rows),) if means else ()), *figures, *(("steps",) if steps else ()))
    heads += ("over",) if over else ()
    for name in heads:
        table.add_column(name, justify="right", no_wrap=True)
    if techniques:
        table.add_column("legality")
        table.add_column("techniques on (! = changed nothing)", overflow="fold")
    for row in rows:
        table.add_row(
            f"#{row.number}",
            f"{row.bpb:.4f}{'?' if row.findings else ''}",
            *(("" if row.believed is None else f"{row.believed:.4f}",) if beliefs else ()),
            *((row.confirmed,) if means else ()),
            *(cell for limit in limits for cell in cells_of(row, limit, slack=techniques)),
            *((f"{row.steps:,}",) if steps else ()),
            *((", ".join(row.over),) if over else ()),
            *((escape(row.legality), escape(techniques_of(row))) if techniques else ()),
        )
    return table


def means_of(rows: Sequence[Row]) -> str:
    """What the means over seeds are called: `confirm` picked its trials, replicates are of all."""
    return "mean of seeds" if all(row.replicates for row in rows if row.confirmed) else "confirmed BPB"


def columns_of(limit: Limit, *, slack: bool) -> list[str]:
    return [limit.column, f"slack, {limit.unit}"] if limit.slack and slack else [limit.column]


def cells_of(row: Row, limit: Limit, *, slack: bool) -> list[str]:
    """A row's figure and, where it is kept and wanted, what is left below the limit."""
    figure = row.figures.get(limit.figure)
    cells = ["" if figure is None else limit.measured(figure)]
    return [*cells, limit.measured(row.slack[limit.figure])] if limit.slack and slack else cells


def against_baseline(session: Session, good: Sequence[FrozenTrial], confirmed: Confirmations) -> str:
    """By how much the best feasible trial beats the study's starting point."""
    found = baseline_of(session.optuna_study)
    if found is None:
        return ""
    text = f"Baseline ({session.trainer.start}): {found['val_bpb']:.4f} val_bpb"
    facts = confirmed.get(good[0].number) if good else None
    if good and session.whole(good[:1])[0].user_attrs.get(CONFIG_HASH) == found.get("hash", ""):
        text += f"; the best, trial #{good[0].number}, is that configuration"
    elif facts and facts.get("replicates"):
        gain = facts["bpb"] - found["val_bpb"]
        text += (
            f"; the mean of trial #{good[0].number}'s {len(facts['seeds'])} seeds stands {gain:+.4f} from it"
        )
    elif facts:
        text += f"; on fresh seeds trial #{good[0].number} stands {stands(facts)}"
    elif good:
        gain = float(good[0].value or 0.0) - found["val_bpb"]
        text += f"; trial #{good[0].number} stands {gain:+.4f} from it"
    return text + "."


def stands(facts: Mapping[str, Any]) -> str:
    """-0.2867 from baseline."""
    gain = facts["difference_bpb"]
    return f"{'nowhere' if gain is None else f'{gain:+.4f}'} from {facts['against']}"


def old_bytes(session: Session, trials: Sequence[FrozenTrial]) -> str:
    """What a study of an earlier version counted as code; "" for one that counts what is submitted."""
    old = [int(n) for t in trials if (n := t.user_attrs.get(CODE_BYTES) or 0) > UNBUNDLED]
    if not (session.trainer.built_in and old):
        return ""
    return (
        f"The bytes of {counted(len(old), 'trial')} were counted otherwise: all source files as they lie, "
        f"{min(old):,} bytes and more, where the script that is submitted takes 15,000 to 40,000. A new "
        "study counts that."
    )


def print_leaderboard(console: Console, session: Session, *, top: int = 10) -> None:
    """The table, the infeasible ones apart, what the numbers cannot tell, and how to repeat the best."""
    trials = session.optuna_study.get_trials(deepcopy=False)
    confirmed = confirmed_of(session.optuna_study, trials)
    beliefs = beliefs_of_study(session.optuna_study, trials)
    good, bad = ranked(trials, confirmed, beliefs)
    study = session.study
    title = f"{study.name}: {counted(len(good), 'feasible trial')}; limits {study.limits.summary()}"
    title += f"; track {study.track}"
    told = [t.user_attrs[LEARNT] for t in trials if LEARNT in t.user_attrs]
    title += f"; {learnt_text(told[-1])} (of 1)" if told else ""
    if not good and not bad:
        console.print(NOT_YET)
        return
    if good:
        print_rows(console, [row_of(t, confirmed, beliefs) for t in good[:top]], title)
        console.print(f"\n{ranking_text(beliefs=bool(beliefs), confirmed=bool(confirmed))}", highlight=False)
    else:
        tell(console, f"{title}\nNo trial kept every limit yet.")
    reuse = reuse_of_study(trials, gpus=session.study.gpus_per_trial)
    against = against_baseline(session, good, confirmed)
    for line in (against, reuse, old_bytes(session, trials), trouble_text(session)):
        if line:
            console.print(f"\n{line}", highlight=False, markup=False)
    if bad:
        console.print()
        title = f"Infeasible: {counted(len(bad), 'trial')}{limits_text(over_by_limit(bad))}"
        print_rows(console, [row_of(t) for t in bad[: max(3, top // 3)]], title)
        for line in over_lines(session, bad[: max(3, top // 3)]):
            tell(console, line)
    if told := noise_text(session, [t.number for t in good[:top]], confirmed):
        console.print(f"\n{told}", highlight=False)
    if told := to_confirm(session, good, confirmed):
        console.print(told, soft_wrap=True, highlight=False, markup=False)
    if has_mixed_code([*good, *bad]):
        text = "The code changed while this study ran: compare only trials of the same passport (`show N`)."
        tell(console, text)
    if len(devices := {str(t.user_attrs.get(PASSPORT, {}).get("device")) for t in [*good, *bad]}) > 1:
        tell(console, f"Trials ran on {', '.join(sorted(devices))}: speeds differ.")
    if good:
        print_reproduce(console, session, good[0], confirmed, beliefs)


def trouble_text(session: Session) -> str:
    """What went wrong with a tracker; "" for nothing."""
    trouble = session.optuna_study.user_attrs.get(TRACKING)
    return f"A tracker fails: {trouble}" if trouble else ""


def ranking_text(*, beliefs: bool, confirmed: bool) -> str:
    """What the leaderboard ranks by."""
    means = "the mean on fresh seeds where there is one, else by " if confirmed else ""
    if beliefs:
        return f"{BELIEVED} Ranked by {means}what is believed."
    told = f"nothing else is believed before {LEAST} complete trials"
    return f"Ranked by {means}the BPB that each run gave: {told}."


def noise_text(session: Session, shown: Sequence[int], confirmed: Confirmations) -> str:
    """What one seed cannot tell of the trials that are shown; "" where each has a mean, or in nats."""
    sure = [f"#{number}" for number in shown if number in confirmed]
    if session.study.in_nats or (shown and len(sure) == len(shown)):
        return ""
    return NOISE.replace("One seed each", f"One seed each but for {', '.join(sure)}", 1) if sure else NOISE


def over_lines(session: Session, bad: Sequence[FrozenTrial]) -> list[str]:
    """over a limit: 2 × training (#3: 7.4 of 5.6 s, #9: …); by limit, the newest LISTED trials."""
    told: list[str] = []
    for limit in LIMITS:
        broke = sorted((t for t in bad if limit in broken_limits(t)), key=lambda t: t.number)
        most = session.study.limits.of(limit)
        known = [(t.number, t.user_attrs[limit.figure]) for t in broke if limit.figure in t.user_attrs]
        figures = [f"#{n}: {limit.against(figure, most)}" for n, figure in known]
        rest = f"{'…; ' if len(figures) > LISTED else ''}{'; '.join(figures[-LISTED:])}"
        told += [f"over a limit: {len(broke)} × {limit.label} ({rest})"] if broke else []
    return told


def to_confirm(session: Session, good: Sequence[FrozenTrial], confirmed: Confirmations) -> str:
    """The line that makes a search value a claim; "" once the best is confirmed, or where it cannot be."""
    if not good or not session.trainer.keeps_stages or good[0].number in confirmed:
        return ""
    path = Path(session.study.path)
    given = "" if path == DEFAULT_STUDY else f" --study {shlex.quote(str(shown(path)))}"
    return f"To confirm the best on fresh seeds: python search.py confirm --top 3{given}"


def has_mixed_code(trials: Sequence[FrozenTrial]) -> bool:
    """Whether trials with the same techniques ran different code (each technique is code of its own)."""
    seen: dict[tuple[str, ...], str] = {}
    for trial in trials:
        techniques = tuple(sorted(cast("list[str]", trial.user_attrs.get(TECHNIQUES, []))))
        code = str(trial.user_attrs.get(PASSPORT, {}).get(CODE_HASH))
        if seen.setdefault(techniques, code) != code:
            return True
    return False


def print_reproduce(
    console: Console,
    session: Session,
    trial: FrozenTrial,
    confirmed: Confirmations,
    beliefs: Beliefs | None = None,
) -> None:
    """The best, what it gave, what is believed of it, and how to run it again. No `beliefs`: nobody asked."""
    facts = confirmed.get(trial.number)
    value = f"{trial.value:.4f}"
    best = "Best" if facts or beliefs is not None else "Best observed"
    if not facts and beliefs is not None:
        value = f"observed {value}"
        if trial.number in beliefs:
            value = f"believed {beliefs[trial.number]:.4f}, {value}"
    if facts:
        name = "first run" if facts.get("replicates") else "search value"
        value = f"{confirmed_text(facts)}, {name} {value}"
    by = f" by {label}" if (label := trial.user_attrs.get(PROTOCOL)) else ""
    text = f"{best}: #{trial.number}, {value} bits/byte{by}."
    tell(console, text)
    text = f"To run it again:\n  {reproduce_command(session, trial)}"
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def reproduce_command(session: Session, trial: FrozenTrial) -> str:
    """One line that trains the configuration again; config.json is written anew if it is not here."""
    config = session.whole([trial])[0].user_attrs[CONFIG]
    return session.trainer.repeat_line(config, session.folders.trial(trial.number) / "config.json")
