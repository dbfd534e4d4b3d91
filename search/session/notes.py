"""What a worker leaves for the dashboard: a note, files, a curve."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import optuna_dashboard  # pyright: ignore[reportMissingTypeStubs]
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.trial import Trial


def artifact_store(folder: Path) -> FileSystemArtifactStore:
    """The store of files that trials leave behind; made when it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileSystemArtifactStore(str(folder))


def save_trial_note(trial: Trial, markdown: str) -> None:
    """Shows `markdown` as the trial's note. Inside the objective only: it needs the running trial."""
    optuna_dashboard.save_note(trial, markdown)


def save_trial_artifact(trial: Trial, path: Path, store: FileSystemArtifactStore) -> str:
    """Keeps a copy of the file with the trial; returns the artifact's id."""
    return upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)


def save_curve(
    trial: Trial, points: Mapping[float, float], *, label: str, store: FileSystemArtifactStore
) -> str:
    """Keeps a curve (x -> y, at least two points) with the trial as an image; returns the artifact's id."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{label.replace('/', '_')}.svg"
        path.write_text(_curve_svg(points, label), encoding="utf-8")
        return save_trial_artifact(trial, path, store)


def _curve_svg(points: Mapping[float, float], label: str) -> str:
    if len(points) < 2:
        raise ValueError(f"A curve needs at least two points, but {label!r} has {len(points)}.")
    width, height = CURVE_SIZE
    left, right, top, bottom = 70, width - 15, 30, height - 30
    xs, ys = sorted(points), list(points.values())
    x_span, y_span = (xs[-1] - xs[0]) or 1.0, (max(ys) - min(ys)) or 1.0

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


CURVE_SIZE = (640, 320)  # pixels
