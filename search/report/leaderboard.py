"""What a study found: leaderboard, best trial, one trial in full, status; every number with its unit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import cast

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from search.report.costs import told_before
from search.report.overhead import overhead_line
from search.report.pruning import pruning_line
from search.report.savings import STAGES, summary, words
from search.session.session import ROOT, Session
from search.study.constraints import feasible
from search.study.model import Limits
from search.trainers.foreign.run import reproduce_line
from search.workers.baseline import stored

NOISE = (
    "One seed each: a seed alone moves BPB by 0.005 to 0.010 (standard deviation, measured at laptop scale), "
    "and the best of many is lucky. A search value is where to look next, not a claim."
)
WIDE = 120  # columns that the table with its words needs
NOT_YET = "No trial of this study has finished. Start it with `python search.py`."


@dataclass(frozen=True)
class Row:
    """A finished trial's line in the leaderboard; 0 where nothing is known."""

    number: int
    bpb: float  # bits per byte
    artifact_bytes: int
    slack_bytes: int  # below the limit; negative: over it
    train_s: float
    eval_s: float
    steps: int
    legality: str
    techniques: tuple[str, ...]
    inactive: tuple[str, ...]  # of them, what changed nothing
    findings: tuple[str, ...]  # what a person should look at before believing the number


def row_of(trial: FrozenTrial) -> Row:
    """The row of a complete trial."""
    attrs = trial.user_attrs
    return Row(
        number=trial.number,
        bpb=cast("float", trial.value),
        artifact_bytes=int(attrs.get("artifact_bytes", 0)),
        slack_bytes=int(attrs.get("slack_bytes", 0)),
        train_s=float(attrs.get("train_seconds", 0.0)),
        eval_s=float(attrs.get("eval_seconds", 0.0)),
        steps=int(attrs.get("steps", 0)),
        legality=str(attrs.get("legality", "not known")),
        techniques=tuple(cast("list[str]", attrs.get("techniques", []))),
        inactive=tuple(cast("dict[str, str]", attrs.get("inactive", {}))),
        findings=tuple(cast("list[str]", attrs.get("findings", []))),
    )


def ranked(trials: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
    """(feasible, infeasible) complete trials, the best first."""
    complete = sorted(
        (t for t in trials if t.state == TrialState.COMPLETE),
        key=lambda t: (cast("float", t.value), t.number),
    )
    kept = [feasible(t) for t in complete]
    return list(compress(complete, kept)), [t for t, k in zip(complete, kept, strict=True) if not k]


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
    start = "the script as it is" if session.study.foreign else f"preset {session.study.preset}"
    text = f"Baseline ({start}): {found['val_bpb']:.4f} val_bpb"
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


def print_reproduce(console: Console, session: Session, trial: FrozenTrial) -> None:
    console.print(
        f"Best: #{trial.number}, {trial.value:.4f} bits/byte. To run it again:\n"
        f"  {reproduce_command(session, trial)}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def reproduce_command(session: Session, trial: FrozenTrial) -> str:
    """One line that trains the configuration again; config.json is written anew if it is not here."""
    config = session.whole([trial])[0].user_attrs["config"]
    if session.study.foreign is not None:
        return reproduce_line(config)
    path = session.place.trial(trial.number) / "config.json"
    if not path.exists():  # it ran on another machine
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return f"python train_gpt.py {quoted(shown)}"


def quoted(path: Path) -> str:
    text = str(path)
    return text if all(c.isalnum() or c in "/._-+" for c in text) else "'" + text.replace("'", "'\\''") + "'"


def print_status(console: Console, session: Session) -> None:
    """Counts, why configurations failed, the best, and what a trial costs beside its work."""
    from search.report.progress import snapshot

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


def print_trial(console: Console, session: Session, number: int) -> None:
    """Everything about one trial. ValueError for a number that there is not."""
    study = session.optuna_study
    storage, own = study._storage, study._study_id  # pyright: ignore[reportPrivateUsage]
    try:
        trial = storage.get_trial(storage.get_trial_id_from_study_id_trial_number(own, number))
    except KeyError:
        there = f"0 to {n - 1}" if (n := len(study.get_trials(deepcopy=False))) else "none yet"
        raise ValueError(f"{session.study.name} has trials {there}, but not {number}.") from None
    value = f", {trial.value:.6f} bits/byte" if trial.state == TrialState.COMPLETE else ""
    console.print(f"trial #{number} of {session.study.name}: {trial.state.name}{value}", highlight=False)
    table = Table(show_header=False, show_edge=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in facts_of(trial, session.study.limits).items():
        table.add_row(name, escape(text))
    console.print(table)
    if "config" in trial.user_attrs:
        command = reproduce_command(session, trial)
        console.print(f"To run it again:\n  {command}", soft_wrap=True, highlight=False, markup=False)


def facts_of(trial: FrozenTrial, limits: Limits) -> dict[str, str]:
    """What `show` lists."""
    attrs = trial.user_attrs
    out: dict[str, str] = {}
    for key in ("reason", "legality", "worker"):
        if key in attrs:
            out[key] = str(attrs[key])
    out["techniques on"] = ", ".join(attrs.get("techniques", [])) or "none"
    for name, verdict in attrs.get("inactive", {}).items():
        out[f"! {name}"] = str(verdict)
    for i, text in enumerate(attrs.get("findings", ()), start=1):
        out[f"? finding {i}"] = str(text)
    for key, unit, limit in (
        ("artifact_bytes", "bytes", limits.artifact_bytes),
        ("train_seconds", "s", limits.train_seconds),
        ("eval_seconds", "s", limits.eval_seconds),
    ):
        if key in attrs:
            out[key] = f"{attrs[key]:,.6g} {unit} (limit {limit:,g}{told_before(attrs, key)})"
    for key in ("code_bytes", "steps", "params"):
        if key in attrs:
            out[key] = f"{attrs[key]:,}"
    out["constraints"] = ", ".join(f"{k} {v:+.3f}" for k, v in trial.constraints.items()) or "not set"
    out["parameters"] = ", ".join(f"{k}={_short(v)}" for k, v in trial.params.items())
    if trial.intermediate_values:
        points = sorted(trial.intermediate_values.items())
        out["early BPB"] = ", ".join(f"{step}: {bpb:.4f}" for step, bpb in points)
    if STAGES in attrs:
        out["stages"] = words(attrs[STAGES])
    if "cache_notes" in attrs:
        out["stage cache"] = "; ".join(attrs["cache_notes"])
    for key in ("rejections", "overhead", "passport"):
        if attrs.get(key):
            out[key] = ", ".join(f"{k} {_short(v)}" for k, v in attrs[key].items())
    return out


def _short(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
