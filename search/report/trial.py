"""`search.py show N`: everything about one trial."""

from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bundle.one_file import resolve_layer
from search.common import attributes as stored
from search.report.costs import prediction_summary
from search.report.leaderboard import reproduce_command, stands
from search.report.rows import (
    confirmed_of,
    confirmed_text,
    learnt_text,
    memory_text,
    overhead_text,
    reuse_of_trial,
    short,
)
from search.session.session import Session
from search.study.limits import Limits, feasible, over_limits
from search.workers.record import chain_text
from techniques.config import Resolved


def trial_of(session: Session, number: int) -> FrozenTrial:
    """ValueError for a number that there is not."""
    study = session.optuna_study
    storage, own = study._storage, study._study_id  # pyright: ignore[reportPrivateUsage]
    try:
        return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(own, number))
    except KeyError:
        there = f"0 to {n - 1}" if (n := len(study.get_trials(deepcopy=False))) else "none yet"
        raise ValueError(f"{session.study.name} has trials {there}, but not {number}.") from None


def configuration_of(session: Session, number: int) -> Resolved:
    """What a trial ran, for a bundle. ValueError where there is none."""
    if reason := session.trainer.no_bundle(number):
        raise ValueError(reason)
    if stored.CONFIG not in (attrs := trial_of(session, number).user_attrs):
        raise ValueError(f"Trial {number} of {session.study.name} has no configuration: it never began.")
    return resolve_layer(attrs[stored.CONFIG])


def shortcoming(session: Session, number: int) -> str:
    """Why a trial is nothing to submit: the limits that it broke, or that it gave no result; else ""."""
    trial = trial_of(session, number)
    if trial.state == TrialState.COMPLETE and feasible(trial):
        return ""
    attrs = trial.user_attrs
    limits = session.study.limits
    if told := "; ".join(over_limits(attrs, limits).values()):
        return f"Not to be submitted: trial {number} of {session.study.name} is over a limit ({told})."
    why = attrs.get(stored.REASON) or f"it is {trial.state.name}"
    return f"Not to be submitted: trial {number} of {session.study.name} has no result ({why})."


def print_trial(console: Console, session: Session, number: int) -> None:
    """Everything about one trial. ValueError for a number that there is not."""
    trial = trial_of(session, number)
    study = session.optuna_study
    value = f", {trial.value:.6f} bits/byte" if trial.state == TrialState.COMPLETE else ""
    console.print(f"trial #{number} of {session.study.name}: {trial.state.name}{value}", highlight=False)
    table = Table(show_header=False, show_edge=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    facts = facts_of(trial, session.study.limits)
    others = study.get_trials(deepcopy=False) if session.study.sampler.replicates > 1 else ()
    if again := confirmed_of(study, others).get(number):
        replicates = again.get("replicates")
        name, behind = ("mean of seeds", "") if replicates else ("confirmed", f", {stands(again)}")
        facts[name] = f"{confirmed_text(again)}{behind}"
    for name, text in facts.items():
        table.add_row(escape(name), escape(text))
    console.print(table)
    if stored.CONFIG in trial.user_attrs:
        command = reproduce_command(session, trial)
        console.print(f"To run it again:\n  {command}", soft_wrap=True, highlight=False, markup=False)


def facts_of(trial: FrozenTrial, limits: Limits) -> dict[str, str]:
    """What `show` lists."""
    attrs = trial.user_attrs
    out: dict[str, str] = {}
    if trial.state == TrialState.FAIL:
        out["interrupted"] = "nothing below counts"
    for key in (stored.REASON, stored.PROTOCOL, stored.LEGALITY, stored.WORKER):
        if attrs.get(key):
            out[key] = str(attrs[key])
    if over := over_limits(attrs, limits):
        out["over a limit"] = "; ".join(over.values())
    if again := attrs.get(stored.REPLICATE):
        out["replicate"] = f"of trial #{again['of']}, on seed {again['seed']}"
    out["techniques on"] = ", ".join(attrs.get(stored.TECHNIQUES, [])) or "none"
    for name, verdict in attrs.get(stored.INACTIVE, {}).items():
        out[f"! {name}"] = str(verdict)
    for i, text in enumerate(attrs.get(stored.FINDINGS, ()), start=1):
        out[f"? finding {i}"] = str(text)
    for limit in limits.given:
        key = limit.figure
        if key in attrs:
            law = f"limit {limit.allowed(limits.of(limit))}{prediction_summary(attrs, key)}"
            figure = limit.measured(attrs[key]) if limit.unit != "s" else f"{attrs[key]:,.6g}"
            out[key] = f"{figure} {limit.unit}{clock_summary(attrs, key)} ({law})"
    for key in (stored.CODE_BYTES, stored.STEPS, stored.PARAMS):
        if key in attrs:
            out[key] = f"{attrs[key]:,}"
    out["constraints"] = ", ".join(f"{k} {v:+.3f}" for k, v in trial.constraints.items()) or "not set"
    off = [k for k, v in trial.params.items() if v is False and "." not in k]  # techniques
    out["parameters"] = ", ".join(f"{k}={short(v)}" for k, v in trial.params.items() if k not in off)
    if off:
        out["off"] = ", ".join(off)
    if trial.intermediate_values:
        points = sorted(trial.intermediate_values.items())
        out["early BPB"] = ", ".join(f"{step}: {bpb:.4f}" for step, bpb in points)
    if links := attrs.get(stored.BPB_CHAIN):
        out["BPB chain"] = f"{chain_text(links)}; on the tokens of a report"
    if stored.STAGE_REUSE in attrs:
        out["stages"] = reuse_of_trial(attrs[stored.STAGE_REUSE])
    if stored.STAGE_MEMORY in attrs:
        out["peak memory"] = memory_text(attrs[stored.STAGE_MEMORY])
    if stored.CACHE_NOTES in attrs:
        out["stage cache"] = "; ".join(attrs[stored.CACHE_NOTES])
    if learnt := learnt_text(attrs.get(stored.LEARNT, {})):
        out["proposal"] = f"{learnt}, from 0 (ignored) to 1 (as if this study's own)"
    if stored.OVERHEAD in attrs:
        out[stored.OVERHEAD] = overhead_text(attrs[stored.OVERHEAD])
    for key in (stored.REJECTIONS, stored.PASSPORT):
        if attrs.get(key):
            out[key] = ", ".join(f"{k} {short(v)}" for k, v in attrs[key].items())
    return out


def clock_summary(attrs: Mapping[str, Any], figure: str) -> str:
    """ " of processor time, 31.0 s on the clock" where a CPU was timed: the whole stages, a reader's wait."""
    stages = {stored.TRAIN_SECONDS: ("train", "quantize"), stored.EVAL_SECONDS: ("evaluate",)}.get(figure, ())
    waited = sum(attrs.get(stored.STAGE_REUSE, {}).get("seconds", {}).get(stage, 0.0) for stage in stages)
    on_cpu = waited and attrs.get(stored.PASSPORT, {}).get("device_type") == "cpu"
    return f" of processor time, {waited:,.1f} s on the clock" if on_cpu else ""
