"""serve(url, study_name): optuna-dashboard for one study on 127.0.0.1.

optuna-dashboard 0.21 knows neither Optuna 5's named constraints nor feasibility when it picks the best trial:
the storage handed to it here translates the first and decides the second. It has no log-in and its delete
buttons work, so it is bound to this machine only.
"""

from __future__ import annotations

import copy
import signal
import socket
from collections.abc import Container
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import optuna_dashboard  # pyright: ignore[reportMissingTypeStubs]
from optuna.storages import RDBStorage, _CachedStorage  # pyright: ignore[reportPrivateUsage]
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.session.notes import artifact_store
from search.storage.patient import StorageError, connect_check
from search.storage.url import connect_arguments, normalise_url

HOST = "127.0.0.1"
OLD_KEY = "constraints"  # the system attribute that optuna-dashboard reads: a list without names


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
