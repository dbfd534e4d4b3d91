"""`search.py show N`: everything about one trial."""

from __future__ import annotations

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from search.common.attributes import (
    CACHE_NOTES,
    CODE_BYTES,
    CONFIG,
    FINDINGS,
    INACTIVE,
    LEGALITY,
    OVERHEAD,
    PARAMS,
    PASSPORT,
    PROTOCOL,
    REASON,
    REJECTIONS,
    STAGE_REUSE,
    STEPS,
    TECHNIQUES,
    WORKER,
)
from search.report.costs import prediction_summary
from search.report.leaderboard import reproduce_command
from search.report.rows import reuse_of_trial, short
from search.session.session import Session
from search.study.limits import Limits


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
    if CONFIG in trial.user_attrs:
        command = reproduce_command(session, trial)
        console.print(f"To run it again:\n  {command}", soft_wrap=True, highlight=False, markup=False)


def facts_of(trial: FrozenTrial, limits: Limits) -> dict[str, str]:
    """What `show` lists."""
    attrs = trial.user_attrs
    out: dict[str, str] = {}
    for key in (REASON, PROTOCOL, LEGALITY, WORKER):
        if attrs.get(key):
            out[key] = str(attrs[key])
    out["techniques on"] = ", ".join(attrs.get(TECHNIQUES, [])) or "none"
    for name, verdict in attrs.get(INACTIVE, {}).items():
        out[f"! {name}"] = str(verdict)
    for i, text in enumerate(attrs.get(FINDINGS, ()), start=1):
        out[f"? finding {i}"] = str(text)
    for limit in limits.given:
        key = limit.figure
        if key in attrs:
            law = f"limit {limits.of(limit):,g}{prediction_summary(attrs, key)}"
            out[key] = f"{attrs[key]:,.6g} {limit.unit} ({law})"
    for key in (CODE_BYTES, STEPS, PARAMS):
        if key in attrs:
            out[key] = f"{attrs[key]:,}"
    out["constraints"] = ", ".join(f"{k} {v:+.3f}" for k, v in trial.constraints.items()) or "not set"
    out["parameters"] = ", ".join(f"{k}={short(v)}" for k, v in trial.params.items())
    if trial.intermediate_values:
        points = sorted(trial.intermediate_values.items())
        out["early BPB"] = ", ".join(f"{step}: {bpb:.4f}" for step, bpb in points)
    if STAGE_REUSE in attrs:
        out["stages"] = reuse_of_trial(attrs[STAGE_REUSE])
    if CACHE_NOTES in attrs:
        out["stage cache"] = "; ".join(attrs[CACHE_NOTES])
    for key in (REJECTIONS, OVERHEAD, PASSPORT):
        if attrs.get(key):
            out[key] = ", ".join(f"{k} {short(v)}" for k, v in attrs[key].items())
    return out
