"""What is kept of a trial beside its value: user attributes, a note, files and a curve for the dashboard.

Attributes are few, because each is a transaction: `worker`, `config`, `hash`, `techniques`, `legality` when
it starts; `outcome`, `reason`, the result's figures, `stage_seconds`, `inactive`, `findings`, `passport`,
`cost_errors` (measured / predicted − 1) and `overhead` when it ends. The sampler adds `preflight`
(predicted) and `rejections`, the pruner `reports`, the constraints their `violation_*`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.trial import Trial

from search.common.attributes import HARDWARE
from search.common.paths import Folders
from search.costs.accuracy import errors_of
from search.session.notes import artifact_store, save_curve, save_trial_artifact, save_trial_note
from search.stage_cache.savings import STAGES, replayed_facts, stage_facts
from search.study.model import Limits
from search.trainers.files import Record
from search.trainers.process import Outcome

FIGURES = ("artifact_bytes", "code_bytes", "train_seconds", "eval_seconds", "true_seconds", "steps", "params")
PASSPORT = ("code_hash", "data_id", "torch", "device", "attention", "compute_dtype", "world_size", "sha256")
FILES = ("config.json", "result.json", "train.tail.log")
TAIL_BYTES = 16_384  # train.log begins with the code that ran; its end is what is read


def worker_name(index: int) -> str:
    """host:pid:index, as it stands in the attribute `worker`."""
    return f"{os.uname().nodename}:{os.getpid()}:{index}"


def started(trial: Trial, *, config: Mapping[str, Any], resolved: Any, legality: str) -> None:
    """What is known before the run, for whoever must clean up behind us too."""
    trial.set_user_attr("config", dict(config))
    trial.set_user_attr("hash", resolved.hash())
    trial.set_user_attr("techniques", list(resolved.techniques))
    trial.set_user_attr("legality", legality)


def ended(trial: Trial, outcome: Outcome, *, limits: Limits, hardware: str) -> None:
    """What the run gave; `hardware` is where."""
    result = outcome.result or {}
    trial.set_user_attr("outcome", outcome.kind)
    if outcome.reason:
        trial.set_user_attr("reason", outcome.reason)
    for name in FIGURES:
        if result.get(name) is not None:
            trial.set_user_attr(name, result[name])
    if result.get("artifact_bytes") is not None:
        trial.set_user_attr("slack_bytes", limits.artifact_bytes - int(result["artifact_bytes"]))
    inactive = {n: v for n, v in verdicts_of(result).items() if v != "active"}
    if inactive:
        trial.set_user_attr("inactive", inactive)
    if outcome.reports and outcome.kind == "pruned" and not outcome.process_s:
        trial.set_user_attr(STAGES, replayed_facts(outcome.reports))
    elif result.get("stage_seconds"):
        trial.set_user_attr(STAGES, stage_facts(result, spent_s=outcome.process_s))
    stages: Mapping[str, Record] = result.get("stage_seconds") or {}
    if stages:
        trial.set_user_attr("stage_seconds", {s: seconds.get("timed") for s, seconds in stages.items()})
    if result.get("findings"):
        trial.set_user_attr("findings", list(result["findings"]))
    if result:
        passport = {name: result.get(name) for name in PASSPORT}
        trial.set_user_attr("passport", {**passport, HARDWARE: hardware})
    errors = errors_of({**trial.user_attrs, **result})
    if errors:
        trial.set_user_attr("cost_errors", errors)


def verdicts_of(result: Record) -> dict[str, str]:
    """technique -> the activity audit's verdict."""
    activity: dict[str, Record] = result.get("activity") or {}
    return {name: str(facts.get("verdict")) for name, facts in activity.items()}


def show(trial: Trial, outcome: Outcome, folders: Folders, *, limits: Limits) -> None:
    """The trial's page in the dashboard: note, files, loss curve."""
    folder = folders.trial(trial.number)
    save_trial_note(trial, note(trial, outcome, limits))
    store = artifact_store(folders.artifacts)
    tail_of(folder / "train.log", folder / "train.tail.log")
    for name in FILES:
        if (folder / name).exists():
            save_trial_artifact(trial, folder / name, store)
    points = {float(r["progress"]): float(r["val_bpb"]) for r in outcome.reports}
    if outcome.kind == "finished" and outcome.result is not None:
        points[1.0] = float(outcome.result["val_bpb"])
    if len(points) >= 2:
        save_curve(trial, points, label="val_bpb over progress", store=store)


def note(trial: Trial, outcome: Outcome, limits: Limits) -> str:
    """Markdown: what came out against the limits, what was on, and whether it did anything."""
    result = outcome.result or {}
    lines = [f"**{outcome.kind}**" + (f": {outcome.reason}" if outcome.reason else ""), ""]
    if outcome.kind == "finished":
        lines += [
            "| | measured | limit |",
            "|---|---|---|",
            f"| val_bpb, bits per byte | {result['val_bpb']:.4f} | |",
            f"| artifact, bytes | {result['artifact_bytes']:,} | {limits.artifact_bytes:,} |",
            f"| training, s | {result['train_seconds']:.1f} | {limits.train_seconds:g} |",
            f"| evaluation, s | {result['eval_seconds']:.1f} | {limits.eval_seconds:g} |",
            "",
        ]
    verdicts = verdicts_of(result)
    for name in trial.user_attrs.get("techniques", []):
        lines.append(f"- {name}: {verdicts.get(name, 'no verdict')}")
    lines += ["", *(f"- **finding**: {text}" for text in result.get("findings", ()))]
    lines += ["", f"legality: {trial.user_attrs.get('legality', 'not known')}"]
    return "\n".join(lines)


def tail_of(source: Path, target: Path) -> None:
    """The last TAIL_BYTES of a log, from a line's start."""
    if not source.exists():
        return
    with source.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        data = file.read()
    target.write_bytes(data if size <= TAIL_BYTES else data.partition(b"\n")[2])
