"""serve(url, study_name): optuna-dashboard for one study on 127.0.0.1.

optuna-dashboard 0.21 knows neither Optuna 5's named constraints nor feasibility when it picks the best trial:
the storage handed to it here translates the first and decides the second. It has no log-in and its delete
buttons work, so it is bound to this machine, and `guarded` lets in only who has the token of the printed
address: no other user of this machine, and no page of another site, by whatever name it reaches us.
"""

import copy
import hashlib
import html
import re
import secrets
import signal
import warnings
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, cast
from urllib.parse import parse_qsl, quote, urlencode
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna_dashboard  # pyright: ignore[reportMissingTypeStubs]
from optuna.storages import RDBStorage, _CachedStorage  # pyright: ignore[reportPrivateUsage]
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.report.rows import confirmed_in, ranked
from search.storage.patient import (
    StorageError,
    artifact_store,
    connect_arguments,
    connect_check,
    normalise_url,
)

HOST = "127.0.0.1"
OURS = re.compile(r"(?i)(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?")  # what Host may say; any tunnel's port
Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]
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
        """The best complete trial that breaks no constraint (the leaderboard's, once some are confirmed);
        else the one that breaks them least.

        (The dashboard asks as soon as any trial is complete, and shows an error page for an exception.)
        """
        trials = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.COMPLETE,))
        if not trials:
            raise ValueError("No trials are completed yet.")
        confirmed = confirmed_in(self.get_study_user_attrs(study_id), trials)
        if confirmed and (good := ranked(trials, confirmed)[0]):
            return good[0]
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


def guarded(app: Wsgi, token: str) -> Wsgi:
    """`app` for requests to this machine, from its own pages, by who has the token. The address with
    `?token=` leaves a cookie and goes on without it, so that no later request and no history shows it."""
    cookie = f"caddie_{hashlib.sha256(token.encode()).hexdigest()[:8]}"  # cookies do not know ports

    def same(given: str) -> bool:
        return secrets.compare_digest(given.encode(), token.encode())

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST", "")
        origin = environ.get("HTTP_ORIGIN")
        query = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        pairs = [part.strip().partition("=") for part in environ.get("HTTP_COOKIE", "").split(";")]
        local = OURS.fullmatch(host) and origin in (None, f"http://{host}")
        if local and environ["REQUEST_METHOD"] == "GET" and any(n == "token" and same(v) for n, v in query):
            rest = urlencode([(n, v) for n, v in query if n != "token"])
            path = f"/{quote(environ.get('PATH_INFO', '').lstrip('/'))}{f'?{rest}' if rest else ''}"
            # Not a redirect: behind another site's link that would not send the cookie.
            page = f'<meta http-equiv="refresh" content="0; url={html.escape(path)}">'
            kept = f"{cookie}={token}; Path=/; HttpOnly; SameSite=Strict"
            plain = [("Cache-Control", "no-store"), ("Referrer-Policy", "no-referrer")]
            start("200 OK", [("Content-Type", "text/html"), ("Set-Cookie", kept), *plain])
            return [page.encode()]
        home = environ.get("HTTP_SEC_FETCH_SITE", "none") in ("none", "same-origin")
        if local and home and any(name == cookie and same(value) for name, _, value in pairs):
            return app(environ, start)
        start("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"Open the address that `python search.py dashboard` printed, with its token.\n"]

    return answer


def make_dashboard(
    storage_url: str, study_name: str, *, port: int, artifact_dir: Path
) -> tuple[WSGIServer, str]:
    """(a server that listens, the address of the study's page). Raises StorageError or ValueError."""
    url = normalise_url(storage_url)
    connect_check(url)
    engine = {"pool_pre_ping": True, "pool_size": 2, "connect_args": connect_arguments(url)}
    storage = FeasibleStorage(RDBStorage(url, engine_kwargs=engine))
    try:
        study_id = storage.get_study_id_from_name(study_name)
    except KeyError:
        names = ", ".join(sorted(s.study_name for s in storage.get_all_studies())[:10]) or "none"
        raise StorageError(
            f"The study must exist, but there is no {study_name!r} here. Known: {names}."
        ) from None
    wsgi = cast("Any", optuna_dashboard).wsgi  # its types name packages that are not installed
    token = secrets.token_urlsafe(24)
    app = guarded(wsgi(storage, artifact_store=artifact_store(artifact_dir)), token)
    try:
        server = make_server(HOST, port, app, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise ValueError(
            f"The dashboard needs a free port on {HOST}, but {port} says: {error.strerror}. Use --port 0."
        ) from error
    return server, f"http://{HOST}:{server.server_port}/dashboard/studies/{study_id}?token={token}"


def serve(storage_url: str, study_name: str, *, port: int = 8080, artifact_dir: Path) -> None:
    """Prints the address of the study's page and serves it until Ctrl-C."""
    warnings.filterwarnings("ignore", module=r"optuna\.")  # about importances, to nobody
    server, page = make_dashboard(storage_url, study_name, port=port, artifact_dir=artifact_dir)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us with Ctrl-C ignored
        signal.signal(number, signal.default_int_handler)
    with server:
        print(f"Dashboard of {study_name}: {page}  (Ctrl-C stops it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
