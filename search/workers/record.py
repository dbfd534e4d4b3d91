"""What is kept of a trial beside its value: user attributes, a note, files and a curve for the dashboard.

Attributes are few, because each is written and read with its trial; search/common/attributes.py lists them.
"""

import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import Trial

from search.common import attributes
from search.common.attributes import LABELS
from search.common.paths import Folders
from search.costs.preflight import errors_of
from search.storage.patient import artifact_store
from search.study.limits import Limit, Limits, over_limits
from search.trainers.files import Record
from search.trainers.process import Outcome

if TYPE_CHECKING:
    from optuna.artifacts import FileSystemArtifactStore

PASSPORT_FIELDS = (
    "code_hash data_id torch device device_type attention compute_dtype world_size sha256".split()
)
FILES = ("config.json", "result.json", "train.tail.log")
TAIL_BYTES = 16_384  # train.log begins with the code that ran; its end is what is read
CURVE_SIZE = (640, 320)  # pixels
ACTIVE = "active"
FINISHED = "finished"
VAL_BPB = "val_bpb"
MARKUP = re.compile(r"([\\`*<>|$\[\]])")  # of Markdown
NOTE_PART = 2045  # characters, as optuna_dashboard cuts a note


def started(trial: Trial, *, config: Mapping[str, Any], resolved: Any, legality: str) -> None:
    """What is known before the run, for whoever must clean up behind us too."""
    trial.set_user_attr(attributes.CONFIG, dict(config))
    trial.set_user_attr(attributes.CONFIG_HASH, resolved.hash())
    trial.set_user_attr(attributes.TECHNIQUES, list(resolved.techniques))
    trial.set_user_attr(attributes.LEGALITY, legality)


def ended(trial: Trial, outcome: Outcome, *, limits: Limits, hardware: str) -> None:
    """What the run gave; `hardware` is where."""
    result = outcome.result or {}
    figures = (*attributes.FIGURES, *(limit.figure for limit in limits.given))
    facts: dict[str, Any] = {attributes.OUTCOME: outcome.kind, attributes.REASON: outcome.reason or None}
    facts |= {name: result.get(name) for name in figures}
    facts[attributes.OVER] = "; ".join(over_limits(result, limits).values()) or None
    for limit in limits.given:
        if limit.slack and result.get(limit.figure) is not None:
            facts[limit.slack] = limits.of(limit) - int(result[limit.figure])
    facts[attributes.INACTIVE] = inactive_of(result) or None
    stages: Mapping[str, Record] = result.get("stage_seconds") or {}
    if outcome.reports and outcome.kind == "pruned" and not outcome.process_s:
        facts[attributes.STAGE_REUSE] = replayed_facts(outcome.reports)
    elif stages:
        facts[attributes.STAGE_REUSE] = stage_facts(result, spent_s=outcome.process_s)
    facts[attributes.STAGE_SECONDS] = {s: seconds.get("timed") for s, seconds in stages.items()} or None
    if peaks := result.get(attributes.STAGE_MEMORY):
        facts[attributes.STAGE_MEMORY] = {
            "bytes": peaks,
            "anew": result.get("stage_memory_counts_anew", False),
        }
    facts[attributes.BPB_CHAIN] = result.get(attributes.BPB_CHAIN) or None
    facts[attributes.FINDINGS] = list(result.get("findings") or ()) or None
    if result:
        passport = {name: result.get(name) for name in PASSPORT_FIELDS}
        facts[attributes.PASSPORT] = {**passport, attributes.HARDWARE: hardware}
    facts[attributes.COST_ERRORS] = errors_of({**trial.user_attrs, **result}) or None
    facts[attributes.PROTOCOL] = result.get(attributes.PROTOCOL)
    for name, value in facts.items():
        if value is not None:
            trial.set_user_attr(name, value)


def judged(outcome: Outcome, baseline: Mapping[str, Any]) -> Outcome:
    """A trial that did not print the score that the baseline has has failed, whatever else it printed; one
    with a further score counts, and says so."""
    result = outcome.result or {}
    wanted, *_ = [*(baseline.get(LABELS) or ()), ""]
    labels = result.get(LABELS) or [""]
    if outcome.kind != "finished" or not wanted or labels[0] == wanted:
        return outcome
    told = f"it is scored by {labels[0]!r}, the baseline by {wanted!r}"
    if wanted in labels:
        return replace(outcome, result={**result, "findings": [*(result.get("findings") or ()), told]})
    reason = f"another score: {told}, which was not printed: an evaluation failed or is switched off"
    return replace(outcome, kind="failed", reason=reason)


def stage_facts(result: Mapping[str, Any], *, spent_s: float) -> dict[str, Any]:
    """True seconds by stage, stages that were taken over, seconds that its process took and saved."""
    stages: Mapping[str, Mapping[str, float]] = result.get("stage_seconds") or {}
    seconds = {name: round(float(clocks["true"]), 3) for name, clocks in stages.items()}
    reused = [str(name) for name in result.get("reused") or ()]
    saved_s = sum(seconds.get(name, 0.0) for name in reused)
    return {"seconds": seconds, "reused": reused, "spent_s": round(spent_s, 3), "saved_s": round(saved_s, 3)}


def replayed_facts(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of a trial that recorded reports pruned before any trainer started."""
    saved_s = round(float(reports[-1].get("elapsed_s") or 0.0), 3)
    return {"seconds": {}, "reused": ["train"], "spent_s": 0.0, "saved_s": saved_s}


def inactive_of(result: Record) -> dict[str, str]:
    """technique -> the activity audit's verdict, of those that changed nothing."""
    activity: dict[str, Record] = result.get("activity") or {}
    verdicts = {name: str(facts.get("verdict")) for name, facts in activity.items()}
    return {name: verdict for name, verdict in verdicts.items() if verdict != ACTIVE}


def show(trial: Trial, outcome: Outcome, folders: Folders, *, limits: Limits) -> None:
    """The trial's page in the dashboard: note, files, loss curve."""
    folder = folders.trial(trial.number)
    save_note(trial, note(trial, outcome, limits))
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


def save_note(trial: Trial, text: str) -> None:
    """What optuna_dashboard.save_note does for a trial without a note. Its import would cost each worker a
    second, and it reads the notes of all trials twice."""
    storage = trial.storage
    study_id = trial.study._study_id  # pyright: ignore[reportPrivateUsage]
    prefix = f"dashboard:{trial._trial_id}:note_"  # pyright: ignore[reportPrivateUsage]
    storage.set_study_system_attr(study_id, f"{prefix}ver", 1)
    for k, start in enumerate(range(0, len(text), NOTE_PART)):
        storage.set_study_system_attr(study_id, f"{prefix}str:{k}", text[start : start + NOTE_PART])


def note(trial: Trial, outcome: Outcome, limits: Limits) -> str:
    """Markdown: what came out against the limits, what was on, and whether it did anything."""
    result = outcome.result or {}
    told: dict[str, Any] = {attributes.OUTCOME: outcome.kind, attributes.REASON: outcome.reason}
    told[attributes.INACTIVE] = inactive_of(result)
    return trial_note({**result, **trial.user_attrs, **told}, limits)


def trial_note(facts: Mapping[str, Any], limits: Limits) -> str:
    """A trial's page in Markdown; its first line says how it ended. `facts` by the names of stored
    attributes, and `val_bpb` (bits per byte)."""
    parts = [f"**{plain(headline(facts, limits))}**"]
    if facts.get(attributes.OUTCOME) == FINISHED:
        rows = [("val_bpb, bits per byte", f"{facts[VAL_BPB]:.4f}", "")]
        rows += [_row(limit, facts.get(limit.figure), limits.of(limit)) for limit in limits.given]
        parts += [table(("", "measured", "limit"), rows)]
    if on := facts.get(attributes.TECHNIQUES):
        parts += [table(("audit", "techniques"), audit_rows(facts, on))]
    parts += [f"**finding**: {plain(str(text))}" for text in facts.get(attributes.FINDINGS) or ()]
    if links := facts.get(attributes.BPB_CHAIN):
        parts += [f"BPB chain, on the tokens of a report: {plain(chain_text(links))}"]
    parts += [f"legality: {plain(str(facts.get(attributes.LEGALITY, 'not known')))}"]
    return "\n\n".join(parts)


def headline(facts: Mapping[str, Any], limits: Limits) -> str:
    """over a limit: evaluation 4.2 s of 3.0; or the score, or why there is none."""
    outcome = str(facts.get(attributes.OUTCOME))
    if outcome != FINISHED:
        reason = facts.get(attributes.REASON)
        return f"{outcome}: {reason}" if reason else outcome
    given = [(limit, facts.get(limit.figure), limits.of(limit)) for limit in limits.given]
    if over := [limit.excess(figure, most) for limit, figure, most in given if figure and figure > most]:
        return f"over a limit: {'; '.join(over)}"
    if facts.get(attributes.OVER):  # by what was stored at its end, under limits of then
        return f"over a limit: {facts[attributes.OVER]}"
    return f"{facts[VAL_BPB]:.4f} bits per byte, within all limits"


def audit_rows(facts: Mapping[str, Any], on: Sequence[str]) -> list[tuple[str, str]]:
    """(verdict, techniques) of the trainer's audit: what changed nothing first."""
    verdicts: Mapping[str, Any] = facts.get(attributes.INACTIVE) or {}
    judged = ACTIVE if facts.get(attributes.OUTCOME) == FINISHED else "not judged"
    found: dict[str, list[str]] = {}
    for name in sorted(on, key=lambda name: name not in verdicts):
        found.setdefault(str(verdicts.get(name, judged)), []).append(name)
    return [(verdict, ", ".join(names)) for verdict, names in found.items()]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return MARKUP.sub(r"\\\1", " ".join(text.split()))


def chain_text(links: Iterable[tuple[str, float]]) -> str:
    """weights 2.6104, ema 2.5871 (-0.0233), packed 2.6012 (+0.0141), sliding_window 2.5833 (-0.0179)."""
    before: float | None = None
    told: list[str] = []
    for name, bpb in links:
        told.append(f"{name} {bpb:.4f}" + ("" if before is None else f" ({bpb - before:+.4f})"))
        before = bpb
    return ", ".join(told)


def _row(limit: Limit, figure: float | None, most: float) -> tuple[str, str, str]:
    found = "not known" if figure is None else limit.measured(figure)
    return f"{limit.label}, {limit.unit}", found, limit.allowed(most)


def tail_of(source: Path, target: Path) -> None:
    """The last TAIL_BYTES of a log, from a line's start."""
    if not source.exists():
        return
    with source.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        data = file.read()
    target.write_bytes(data if size <= TAIL_BYTES else data.partition(b"\n")[2])


def save_trial_artifact(trial: Trial, path: Path, store: "FileSystemArtifactStore") -> str:
    """Keeps a copy of the file with the trial; returns the artifact's id."""
    from optuna.artifacts import upload_artifact  # with boto3: 0.1 s of CPU

    return upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)


def save_curve(
    trial: Trial, points: Mapping[float, float], *, label: str, store: "FileSystemArtifactStore"
) -> str:
    """Keeps a curve (x -> y, at least two points) with the trial as an image; returns the artifact's id."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{label.replace('/', '_')}.svg"
        path.write_text(_curve_svg(points, label), encoding="utf-8")
        return save_trial_artifact(trial, path, store)


def _curve_svg(points: Mapping[float, float], label: str) -> str:
    width, height = CURVE_SIZE
    left = 70
    right = width - 15
    top = 30
    bottom = height - 30
    xs = sorted(points)
    ys = list(points.values())
    x_span = (xs[-1] - xs[0]) or 1.0
    y_span = (max(ys) - min(ys)) or 1.0

    def at(x: float) -> str:
        across = left + (x - xs[0]) / x_span * (right - left)
        return f"{across:.1f},{bottom - (points[x] - min(ys)) / y_span * (bottom - top):.1f}"

    text = 'font-family="sans-serif" font-size="13"'
    name = label.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
        f'<rect width="100%" height="100%" fill="white"/>'
        f'<path d="M{left},{top}V{bottom}H{right}" fill="none" stroke="#888"/>'
        f'<polyline points="{" ".join(at(x) for x in xs)}" fill="none" stroke="#1565c0" stroke-width="2"/>'
        f'<text x="{left}" y="20" {text}>{name}</text>'
        f'<text x="5" y="{top + 5}" {text}>{max(ys):.4g}</text>'
        f'<text x="5" y="{bottom}" {text}>{min(ys):.4g}</text>'
        f'<text x="{left}" y="{height - 10}" {text}>{xs[0]:.4g}</text>'
        f'<text x="{right}" y="{height - 10}" text-anchor="end" {text}>{xs[-1]:.4g}</text></svg>\n'
    )
