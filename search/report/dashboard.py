"""serve(url, study_name): optuna-dashboard for one study on 127.0.0.1; the save_... functions fill its pages.

optuna-dashboard 0.21 knows neither Optuna 5's named constraints nor feasibility when it picks the best trial:
the storage handed to it here translates the first and decides the second. It has no log-in and its delete
buttons work, so it is bound to this machine only.
"""

from __future__ import annotations

import copy
import signal
import socket
import tempfile
from collections.abc import Container, Mapping
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import optuna_dashboard  # pyright: ignore[reportMissingTypeStubs]
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.storages import RDBStorage, _CachedStorage  # pyright: ignore[reportPrivateUsage]
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from search.storage.patient import StorageError, connect_arguments, connect_check, normalise_url

if TYPE_CHECKING:
    from plotly.graph_objects import Figure  # pyright: ignore[reportMissingTypeStubs]

HOST = "127.0.0.1"
OLD_KEY = "constraints"  # the system attribute that optuna-dashboard reads: a list without names
CURVE_SIZE = (640, 320)  # pixels


class FeasibleStorage(_CachedStorage):
    """A cached storage that shows constraints where the dashboard looks, and a feasible best trial."""

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """All trials; `constraints` of Optuna 5 repeated under the old key (in our own cached copies)."""
        trials = super().get_all_trials(study_id, deepcopy=False, states=states)
        for trial in trials:
            if OLD_KEY not in trial.system_attrs and trial.constraints:
                trial.system_attrs[OLD_KEY] = list(trial.constraints.values())
        return copy.deepcopy(trials) if deepcopy else trials

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The best complete trial that breaks no constraint; else the one that breaks them least.

        (The dashboard asks as soon as any trial is complete, and shows an error page for an exception.)
        """
        trials = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
        if not trials:
            raise ValueError("No trials are completed yet.")
        sign = 1.0 if self.get_study_directions(study_id)[0] == StudyDirection.MINIMIZE else -1.0

        def rank(trial: FrozenTrial) -> tuple[float, float]:
            violation = sum(max(0.0, value) for value in trial.constraints.values())
            return violation, sign * cast("float", trial.value)

        return min(trials, key=rank)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """One line for each request is nobody's reading."""


def artifact_store(folder: Path) -> FileSystemArtifactStore:
    """The store of files that trials leave behind; made when it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileSystemArtifactStore(str(folder))


def make_dashboard(
    storage_url: str, study_name: str, *, port: int, artifact_dir: Path
) -> tuple[WSGIServer, str]:
    """(a server that listens, the address of the study's page). Raises StorageError or ValueError."""
    url = normalise_url(storage_url)
    connect_check(url)
    engine = {"pool_pre_ping": True, "pool_size": 2, "connect_args": connect_arguments(url)}
    storage = FeasibleStorage(RDBStorage(url, engine_kwargs=engine))
    known = {
        study.study_name: study for study in optuna.get_all_study_summaries(storage, include_best_trial=False)
    }
    if study_name not in known:
        names = ", ".join(sorted(known)[:10]) or "none"
        raise StorageError(f"The study must exist, but there is no {study_name!r} here. Known: {names}.")
    wsgi = cast("Any", optuna_dashboard).wsgi  # its types name packages that are not installed
    app = wsgi(storage, artifact_store=artifact_store(artifact_dir))
    study_id = storage.get_study_id_from_name(study_name)
    try:
        server = make_server(HOST, port, app, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise ValueError(
            f"The dashboard needs a free port on {HOST}, but {port} says: {error.strerror}. "
            f"Use --port {_free_port(port + 1)}."
        ) from error
    return server, f"http://{HOST}:{server.server_port}/dashboard/studies/{study_id}"


def serve(storage_url: str, study_name: str, *, port: int = 8080, artifact_dir: Path) -> None:
    """Prints the address of the study's page and serves it until Ctrl-C."""
    server, page = make_dashboard(storage_url, study_name, port=port, artifact_dir=artifact_dir)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us with Ctrl-C ignored
        signal.signal(number, signal.default_int_handler)
    with server:
        print(f"Dashboard of {study_name}: {page}  (Ctrl-C stops it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


def _free_port(first: int) -> int:
    for port in range(max(first, 1024), 65536):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    return 0  # any: the system chooses


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


def save_figure(study: optuna.Study, figure: Figure, *, name: str) -> None:
    """Shows a Plotly figure on the study's page; a later one of the same name replaces it."""
    optuna_dashboard.save_plotly_graph_object(study, figure, graph_object_id=name)


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
