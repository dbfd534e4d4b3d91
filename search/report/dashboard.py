"""serve(url, study_name): optuna-dashboard for one study on 127.0.0.1.

optuna-dashboard 0.21 knows neither Optuna 5's named constraints nor feasibility when it picks the best trial:
the storage handed to it here translates the first and decides the second. What a page reads comes from
ShownStorage: attributes as short texts, curves over steps, our figures and notes, none of which is stored;
what a page writes goes to the study as it is. It has no log-in and its delete buttons work, so it is bound to
this machine, and `guarded` lets in only who has the token of the printed address: no other user of this
machine, and no page of another site, by whatever name it reaches us.
"""

import copy
import hashlib
import html
import json
import re
import secrets
import signal
import warnings
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl, quote, urlencode
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import optuna_dashboard  # pyright: ignore[reportMissingTypeStubs]
from optuna.distributions import BaseDistribution
from optuna.storages import _CachedStorage  # pyright: ignore[reportPrivateUsage]
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard._inmemory_cache import (  # pyright: ignore[reportMissingTypeStubs]
    _CachedExtraStudyProperty,  # pyright: ignore[reportPrivateUsage]
)

from search.common.tables import in_nats
from search.report.rows import confirmed_in, ranked
from search.report.shown import Course, course_of, note_of, shown_attributes, shown_trial
from search.storage.patient import StorageError, artifact_store, connect_check, normalise_url, open_storage
from search.study.limits import Limits

HOST = "127.0.0.1"
OURS = re.compile(r"(?i)(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?")  # what Host may say; any tunnel's port
Wsgi = Callable[[dict[str, Any], Any], Iterable[bytes]]
OLD_KEY = "constraints"  # the system attribute that optuna-dashboard reads: a list without names
DETAIL = re.compile(r"/api/studies/(\d+)")
# A trial's note among its study's system attributes: its version, or a piece of its text.
NOTE = re.compile(r"dashboard:(\d+):note_(?:ver|str:(\d+))")
STUDY_NOTE = "dashboard:note_"
# Of the report: its own scripts and styles, no network.
STYLE = (  # the dashboard's pages grow with their longest line
    "<style>.MuiBox-root{min-width:0;overflow-wrap:anywhere}"
    "main>.MuiBox-root>.MuiBox-root>.MuiBox-root:first-child:not(:last-child){flex-shrink:0}"  # trials' list
    "[id^=user-defined-plot]{height:auto!important;min-height:450px}"  # it cuts ours, which may be taller
    "@media(max-width:1100px){.MuiGrid-root:has(>*>*>[id^=user-defined-plot])"
    "{max-width:100%!important;flex-basis:100%!important;width:100%!important}}"
    "table:not([class]){margin:8px 0}th{text-align:left}"
    "td,th{padding-right:1em;vertical-align:top;overflow-wrap:break-word}</style></head>"
)
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


class Live(Protocol):
    """What is made of a study as it stands now."""

    limits: Limits
    num_reports: int  # of a trial
    in_nats: bool  # whether a score is a loss in nats per token, not bits per byte

    def note(self) -> str:
        """Of the study, in Markdown."""
        ...

    def best(self) -> int | None:
        """The number of the trial that the note calls the best; None while it names none."""
        ...

    def plots(self) -> Mapping[str, str]:
        """System attributes as optuna_dashboard.save_plotly_graph_object writes them."""
        ...

    def page(self) -> bytes:
        """The report, in HTML."""
        ...


class FeasibleStorage(_CachedStorage):
    """A cached storage that shows constraints where the dashboard looks, and a feasible best trial."""

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """All trials; `constraints` of Optuna 5 repeated under the old key (in our own cached copies)."""
        trials = super().get_all_trials(study_id, deepcopy=False, states=states)
        for trial in trials:
            if OLD_KEY not in trial.system_attrs and trial.constraints:
                told = {**trial.system_attrs, OLD_KEY: list(trial.constraints.values())}
                trial.system_attrs = told  # another thread may be going through the old one
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


class ShownStorage(FeasibleStorage):
    """What a page shows of `source`; only to be read."""

    def __init__(self, source: FeasibleStorage, study_id: int, live: Live | None) -> None:
        super().__init__(source._backend)
        self.source = source
        self.study_id = study_id
        self.live = live
        self._shown: dict[int, tuple[FrozenTrial, Course, FrozenTrial]] = {}

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = self.source.get_all_trials(study_id, deepcopy=False)
        course = self.course(trials)
        shown = [self.shown(t, course) for t in trials if states is None or t.state in states]
        return copy.deepcopy(shown) if deepcopy else shown

    def course(self, trials: list[FrozenTrial]) -> Course:
        return course_of(trials, self.live.num_reports if self.live else 0)

    def shown(self, trial: FrozenTrial, course: Course) -> FrozenTrial:
        """A finished trial is the same object each time: it is made once."""
        number = id_of(trial)
        before = self._shown.get(number)
        if before is None or before[0] is not trial or before[1] != course:
            before = self._shown[number] = (trial, course, shown_trial(trial, course))
        return before[2]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """The one that the note names: by what is believed, which is not worked out for each request."""
        trials = self.source.get_all_trials(study_id, deepcopy=False)
        number = self.live.best() if self.live and study_id == self.study_id else None
        named = [t for t in trials if t.number == number]
        return self.shown(named[0] if named else self.source.get_best_trial(study_id), self.course(trials))

    def get_all_studies(self) -> list[Any]:
        """Of the served one with its note and its figures, and without the notes of its trials: the
        dashboard goes through all of them for each trial (`noted` puts them in)."""
        found: list[Any] = self.source.get_all_studies()
        for study in found:
            study.user_attrs = shown_attributes(study.user_attrs)
            if study._study_id == self.study_id:
                study.system_attrs = {k: v for k, v in study.system_attrs.items() if not NOTE.fullmatch(k)}
                study.system_attrs |= self.made(study.system_attrs)
        return found

    def made(self, attrs: Mapping[str, Any]) -> dict[str, Any]:
        """The figures, and the note where no person wrote one; as version 0, which a person's follows."""
        if self.live is None:
            return {}
        mine = {f"{STUDY_NOTE}ver": 0, f"{STUDY_NOTE}str:0": self.live.note()}
        return {**self.live.plots(), **({} if f"{STUDY_NOTE}ver" in attrs else mine)}

    def notes(self, ids: Container[int]) -> dict[int, dict[str, Any]]:
        """Trial -> its note: what a person wrote, else what its worker would write today."""
        pieces: dict[int, dict[int, str]] = {}
        found: dict[int, dict[str, Any]] = {}
        for name, value in self.source.get_study_system_attrs(self.study_id).items():
            at = NOTE.fullmatch(name)
            if at is None or (trial := int(at[1])) not in ids:
                continue
            if at[2] is None:
                found[trial] = {"version": int(value)}
            else:
                pieces.setdefault(trial, {})[int(at[2])] = value
        for trial, note in found.items():
            note["body"] = "".join(pieces.get(trial, {})[k] for k in sorted(pieces.get(trial, {})))
        if self.live is not None:
            for t in self.source.get_all_trials(self.study_id, deepcopy=False):
                number = id_of(t)
                note = found.get(number, {"version": 0})
                if number in ids and note["version"] <= 1 and (body := note_of(t, self.live.limits)):
                    found[number] = note | {"body": in_nats(body) if self.live.in_nats else body}
        return found


def id_of(trial: FrozenTrial) -> int:
    """The database's own number of a trial."""
    return trial._trial_id  # pyright: ignore[reportPrivateUsage]


class SeenOnce(_CachedExtraStudyProperty):
    """What optuna-dashboard keeps of a study's space; its own goes through all finished trials each time."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()  # numbers of finished trials
        self.met: dict[str, list[BaseDistribution]] = {}  # parameter -> its distributions so far

    def update(self, trials: list[FrozenTrial]) -> None:
        new = [trial for trial in trials if trial.number not in self.seen]
        self._cursor = -1  # all of these
        super().update(new)
        self.seen.update(trial.number for trial in new if trial.state.is_finished())

    def _update_search_space(self, trial: FrozenTrial) -> None:
        """Distributions that were all met before widen nothing; their own way compares each with all."""
        told = trial.distributions
        new = {name: d for name, d in told.items() if d not in self.met.get(name, ())}
        if new or self._intersection_search_space is None:
            for name, distribution in new.items():
                self.met.setdefault(name, []).append(distribution)
            super()._update_search_space(trial)
        else:
            self._intersection_search_space = {x for x in self._intersection_search_space if x[0] in told}


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


def routed(pages: Wsgi, stored: Wsgi, shown: ShownStorage) -> Wsgi:
    """What is read of studies from `pages`, all else from `stored`; the report at /report."""

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "").rstrip("/")
        read = environ["REQUEST_METHOD"] == "GET"
        if read and path == "/report" and shown.live is not None:
            body = shown.live.page()
            head = [("Content-Type", "text/html; charset=utf-8"), ("Content-Security-Policy", POLICY)]
            start("200 OK", [*head, ("Cache-Control", "no-store"), ("Content-Length", str(len(body)))])
            return [body]
        if read and (path or "/dashboard").startswith("/dashboard"):
            return styled(stored, environ, start)
        if not read or not path.startswith("/api/studies"):
            return stored(environ, start)
        at = DETAIL.fullmatch(path)
        here = at is not None and int(at[1]) == shown.study_id
        return noted(pages, environ, start, shown) if here else pages(environ, start)

    return answer


def noted(pages: Wsgi, environ: dict[str, Any], start: Any, shown: ShownStorage) -> Iterable[bytes]:
    """The answer of `pages` about the study, each trial with its note."""

    def change(body: bytes) -> bytes:
        answer = json.loads(body)
        trials = [*answer["trials"], *answer["best_trials"]]
        notes = shown.notes({trial["trial_id"] for trial in trials})
        for trial in trials:
            trial["note"] = notes.get(trial["trial_id"], trial["note"])
        return json.dumps(answer).encode()

    return changed(pages, environ, start, change)


def styled(stored: Wsgi, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    """The dashboard's page, as wide as the window."""
    plain = {
        name: value for name, value in environ.items() if not name.startswith(("HTTP_IF_", "HTTP_RANGE"))
    }
    return changed(stored, plain, start, lambda body: body.replace(b"</head>", STYLE.encode(), 1))


def changed(app: Wsgi, environ: dict[str, Any], start: Any, change: Callable[[bytes], bytes]) -> list[bytes]:
    """What `app` answers; a body that is whole, changed."""
    told: list[Any] = []

    def keep(status: str, heads: Any, *_: Any) -> None:
        told.extend((status, heads))

    body = b"".join(app(environ, keep))
    status, heads = told
    body = change(body) if status.startswith("200") else body
    kept = [
        (name, value)
        for name, value in heads
        if name.lower() not in ("content-length", "last-modified", "etag")
    ]
    start(status, [*kept, ("Content-Length", str(len(body)))])
    return [body]


def make_dashboard(
    storage_url: str,
    study_name: str,
    *,
    port: int,
    artifact_dir: Path,
    live: Callable[[optuna.Study], Live] | None = None,
) -> tuple[WSGIServer, str]:
    """(a server that listens, the address of the study's page). Raises StorageError or ValueError."""
    url = normalise_url(storage_url)
    connect_check(url)
    stored = FeasibleStorage(open_storage(url, worker=True).bulk)
    try:
        study_id = stored.get_study_id_from_name(study_name)
    except KeyError:
        names = ", ".join(sorted(s.study_name for s in stored.get_all_studies())[:10]) or "none"
        raise StorageError(
            f"The study must exist, but there is no {study_name!r} here. Known: {names}."
        ) from None
    shown = ShownStorage(stored, study_id, live and live(optuna.Study(study_name, stored)))
    wsgi = cast("Any", optuna_dashboard).wsgi  # its types name packages that are not installed
    token = secrets.token_urlsafe(24)
    ours = wsgi(shown, artifact_store=artifact_store(artifact_dir))
    ours._inmemory_cache._cached_extra_study_property_cache[study_id] = SeenOnce()
    theirs = wsgi(stored, artifact_store=artifact_store(artifact_dir))
    app = guarded(routed(ours, theirs, shown), token)
    try:
        server = make_server(HOST, port, app, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise ValueError(
            f"The dashboard needs a free port on {HOST}, but {port} says: {error.strerror}. Use --port 0."
        ) from error
    return server, f"http://{HOST}:{server.server_port}/dashboard/studies/{study_id}?token={token}"


def serve(
    storage_url: str,
    study_name: str,
    *,
    port: int = 8080,
    artifact_dir: Path,
    live: Callable[[optuna.Study], Live] | None = None,
) -> None:
    """Prints the addresses of the study's page and of its report, and serves both until Ctrl-C."""
    warnings.filterwarnings("ignore", module=r"optuna\.")  # about importances, to nobody
    server, page = make_dashboard(storage_url, study_name, port=port, artifact_dir=artifact_dir, live=live)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us with Ctrl-C ignored
        signal.signal(number, signal.default_int_handler)
    with server:
        print(f"Dashboard of {study_name}: {page}  (Ctrl-C stops it)", flush=True)
        if live is not None:
            address, _, token = page.partition("?")
            print(f"Its report, as of now: {address.partition('/dashboard/')[0]}/report?{token}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
