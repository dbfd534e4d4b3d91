"""`search.py show N`: everything about one trial."""

from __future__ import annotations

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from search.report.costs import told_before
from search.report.reproduce import reproduce_command
from search.session.session import Session
from search.stage_cache.savings import STAGES, words
from search.study.model import Limits


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
