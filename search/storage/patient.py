"""open_storage(url) -> an Optuna storage on PostgreSQL that outlives restarts of its database.

Every call is repeated until the database answers again, for at most `patience_s`; then one StorageError.
Tables and studies are made under an advisory lock, dead workers' trials are retried without their results,
and no text that leaves this module holds a password.
"""

import contextlib
import functools
import random
import re
import threading
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import exc
from sqlalchemy.pool import NullPool

from search.common.attributes import FAILED_TRIAL, FIXED_PARAMS, RETRY_HISTORY, RETRY_OF
from search.common.console import conceal, redact
from search.common.options import ENVIRONMENT
from search.storage import sql
from search.storage.bulk import BatchStorage, BulkStorage
from search.storage.server import WAY_OUT, StorageError, url_of

if TYPE_CHECKING:
    from optuna.artifacts import FileSystemArtifactStore

LOCK_CLASS = 0xCADD1E  # first key of our advisory locks; the second is 0 (creation) or a study's id
CREATION_WAIT = "60s"  # for the others that make tables and studies just now
CHECK_S = 9.0  # a database that does not answer by then is unreachable
MAX_RETRY = 3  # times that one configuration is tried again after dead workers or broken infrastructure
OUTAGES = (exc.PendingRollbackError, exc.DisconnectionError, exc.TimeoutError)
DATABASE_GONE = (exc.DBAPIError, StorageInternalError, *OUTAGES)
REPEATED = (
    "create_new_study delete_study set_study_user_attr set_study_system_attr get_study_id_from_name "
    "get_study_name_from_id get_study_directions get_study_user_attrs get_study_system_attrs "
    "get_all_studies _create_new_trial _set_trial_param get_trial_param "
    "get_trial_id_from_study_id_trial_number get_best_trial _get_best_trial_id "
    "set_trial_state_values set_trial_intermediate_value set_trial_user_attr set_trial_system_attr "
    "get_trial trials_of rows waiting beat write_trial get_trial_user_attrs get_trial_system_attrs "
    "get_all_trials _get_trials record_heartbeat _get_stale_trial_ids"
).split()
KEPT_ON_RETRY = (FIXED_PARAMS, "grid_id", "search_space")  # they belong to the configuration
DRIVER = "postgresql+psycopg2"
SUPPORTED = "postgresql://user:password@host:5432/database"
OTHERS = ("sqlite", "mysql", "mariadb", "oracle", "mssql", "redis", "http", "https", "postgresql")
# user-info, hosts, database, query: as a browser cuts them, so that SQLAlchemy cannot cut them otherwise
FORM = re.compile(r"[\w+]+://(?:[^\s:/?#@]*(?::[^\s/?#@]*)?@)?[^\s/?#@]*(?:/[^\s/?#@]*)?(?:\?[^\s?#@]*)?")
TABLES = tuple(models.BaseModel.metadata.tables)
VARIABLE = "CADDIE_TIMING"


@dataclass(frozen=True)
class Timing:
    """Seconds. `CADDIE_TIMING="heartbeat_s=1 grace_s=4"` changes them: for tests, and for networks that need
    more patience. All processes of a study should have the same."""

    patience_s: float = 300.0  # an outage of the database that is waited out
    heartbeat_s: int = 10  # a running trial says that it lives
    grace_s: int = 120  # silence after which a running trial counts as dead
    link_s: int = 20  # a TCP link that does not answer for so long is dead


def side_engine(url: str, *, connect_timeout_s: int = 10) -> sqlalchemy.Engine:
    """An engine for connections of our own beside Optuna's: none is kept."""
    arguments = connect_arguments(url) | {"connect_timeout": connect_timeout_s}
    return sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=arguments)


def is_outage(error: BaseException) -> bool:
    """Whether repeating may help: the database is away, starting, full or out of connections."""
    if isinstance(error, StorageInternalError):
        return error.__cause__ is not None and is_outage(error.__cause__)
    if isinstance(error, exc.OperationalError | exc.InterfaceError):
        return True
    return error.connection_invalidated if isinstance(error, exc.DBAPIError) else isinstance(error, OUTAGES)


class PatientStorage(BulkStorage):
    """BulkStorage whose every call waits out an outage of the database."""

    def __init__(self, url: str, *, worker: bool, timing: Timing, revive: Callable[[], object] | None):
        self.timing = timing
        self.revive = revive
        pool = {"pool_pre_ping": True, "pool_size": 2, "max_overflow": 2}
        super().__init__(
            url,
            engine_kwargs=pool | {"connect_args": connect_arguments(url, link_s=timing.link_s)},
            heartbeat_interval=timing.heartbeat_s,
            grace_period=timing.grace_s,
            heartbeat_stale_trial_callback=functools.partial(requeue, counted=True),
            skip_table_creation=worker,
            skip_compatibility_check=worker,
        )

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return functools.partial(self._persist, name, found) if name in REPEATED else found

    def _persist(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        began: float | None = None
        delay_s = 0.1
        while True:
            try:
                return call(*args, **kwargs)
            except UpdateFinishedTrialError:
                if began is None or name != "set_trial_state_values" or not self._was_ours(*args, **kwargs):
                    raise
                return True
            except DATABASE_GONE as error:
                if not is_outage(error):
                    raise
                began = began or time.monotonic()
                self.scoped_session.remove()
                if time.monotonic() - began > self.timing.patience_s:
                    raise _gone(self.url, error) from None
            time.sleep(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(delay_s * 1.6, 2.0)
            if self.revive is not None:
                with contextlib.suppress(StorageError):  # it may succeed later; our own patience decides
                    self.revive()

    def _was_ours(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        """A commit whose answer was lost in an outage: the trial is finished the way we wanted."""
        stored = self.get_trial(trial_id)
        return stored.state == state and (values is None or stored.values == list(values))


def _gone(url: str, error: BaseException) -> StorageError:
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    return StorageError(
        f"The database must answer, but {redact(url)} does not: {_first_line(cause)}. All finished trials "
        "are stored. Start the database again and run the same command to go on."
    )


def _first_line(error: BaseException) -> str:
    error = error.__cause__ or error if isinstance(error, StorageInternalError) else error
    return redact(str(getattr(error, "orig", None) or error).strip().split("\n")[0])


def connect_check(url: str, *, write: bool = True) -> bool:
    """Whether Optuna's tables are there. Raises one clear StorageError within ten seconds when the database
    cannot be used for a study; `write=False`: to read one, which a standby and a reader's role may do."""
    answer: list[str | None] = []
    absent: list[str] = []

    def ask() -> None:
        engine = side_engine(url, connect_timeout_s=5)
        began = time.monotonic()
        for attempt in range(4):
            try:
                with engine.connect() as connection:
                    row = connection.execute(sqlalchemy.text(sql.USABLE), {"names": list(TABLES)}).one()
                    absent[:] = row.absent
                    answer.append(_obstacle(connection, row, write=write))
                return
            except exc.SQLAlchemyError as error:  # a connection that was dropped is made again
                if attempt == 3 or not is_outage(error) or time.monotonic() - began > 1.0:
                    answer.append(_first_line(error))
                    return

    thread = threading.Thread(target=ask, daemon=True)  # a name server that hangs must not hang us
    thread.start()
    thread.join(CHECK_S)
    problem = answer[0] if answer else f"no answer within {CHECK_S:.0f} s"
    if problem is not None:
        use = "write" if write else "read"
        raise StorageError(
            f"The storage must be a PostgreSQL database that we can reach and {use}, but {redact(url)}: "
            f"{problem}. Check host, port, user, password and database name. {WAY_OUT}"
        )
    return not absent


def _obstacle(connection: sqlalchemy.Connection, row: Any, *, write: bool) -> str | None:
    """Why a database that answers cannot be used."""
    if write and row.standby:
        return "it is a read-only standby"
    if write and not row.writable:
        return "this user may not create tables in its schema"
    if 0 < len(row.absent) < len(TABLES):
        return f"of Optuna's tables it lacks {', '.join(row.absent)}: restore a backup of them"
    stamped = row.stamped and not row.absent
    found = connection.execute(sqlalchemy.text(sql.STAMP)).one_or_none() if stamped else None
    if found is None or found.version == sql.SCHEMA:
        return None
    return (
        f"its tables are of Optuna's schema {found.version}, made by Optuna {found.maker}, and Optuna "
        f"{optuna.__version__} here needs {sql.SCHEMA}: use the version that made them, or another database"
    )


@contextmanager
def creation_lock(url: str) -> Generator[None]:
    """Holds the advisory lock under which tables and studies are made, for all processes of a database."""
    with ExitStack() as stack:
        for attempt in range(4):  # a connection may be dropped while it waits
            try:
                connection = stack.enter_context(side_engine(url).connect())
                connection.execute(sqlalchemy.text(f"set local lock_timeout = '{CREATION_WAIT}'"))
                connection.execute(sqlalchemy.text("select pg_advisory_xact_lock(:c, 0)"), {"c": LOCK_CLASS})
                break
            except exc.OperationalError as error:
                stack.close()
                if attempt == 3 or not is_outage(error):
                    raise _gone(url, error) from None
        yield  # the lock goes with the connection


def _made(url: str, **settings: Any) -> PatientStorage:
    """A PatientStorage; its making, which it does not repeat itself, is repeated when a connection drops."""
    for _ in range(4):
        with contextlib.suppress(exc.OperationalError, StorageInternalError):
            return PatientStorage(url, **settings)
    return PatientStorage(url, **settings)


def open_storage(
    url: str, *, worker: bool, timing: Timing | None = None, revive: Callable[[], object] | None = None
) -> BatchStorage:
    """Optuna's cache over it. `worker=False` makes or checks tables; `revive` may restart the database."""
    url = normalise_url(url)
    timing = timing or Timing()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if worker:
            patient = _made(url, worker=True, timing=timing, revive=revive)
        else:
            connect_check(url)
            try:
                with creation_lock(url):
                    patient = _made(url, worker=False, timing=timing, revive=revive)
            except (exc.SQLAlchemyError, StorageInternalError, RuntimeError) as error:
                if is_outage(error):
                    raise _gone(url, error) from None
                raise StorageError(
                    f"The tables must be those of Optuna {optuna.__version__}, but {redact(url)}: "
                    f"{_first_line(error)}. Use another database, or an Optuna of the version that made it."
                ) from None
    return BatchStorage(patient)


def open_study(storage: optuna.storages.BaseStorage, name: str, *, url: str, **kept: Any) -> optuna.Study:
    """Makes or joins the study; `kept` (sampler, pruner, direction) goes to optuna.create_study."""
    with creation_lock(normalise_url(url)):
        return optuna.create_study(storage=storage, study_name=name, load_if_exists=True, **kept)


def requeue(study: optuna.Study, trial: FrozenTrial, *, counted: bool) -> bool:
    """Queues the configuration of a failed trial again, once; False when it has none, or used up its retries.
    User attributes are handed on; constraints, artifacts, pruner rungs and intermediate values stay with the
    dead run (Optuna's own callback hands constraints on, and they can never be overwritten)."""
    old = trial.system_attrs
    history = list(cast("list[int]", old.get(RETRY_HISTORY, []))) + ([trial.number] if counted else [])
    if len(history) > MAX_RETRY or not (trial.params or old.get(FIXED_PARAMS)):
        return False
    kept = {key: old[key] for key in KEPT_ON_RETRY if key in old}
    system_attrs = kept | {FAILED_TRIAL: old.get(FAILED_TRIAL, trial.number), RETRY_HISTORY: history}
    system_attrs[RETRY_OF] = trial.number
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=trial.user_attrs,
            system_attrs=system_attrs,
        )
    )
    return True


def normalise_url(url: str) -> str:
    """The URL for SQLAlchemy and Optuna: psycopg2 named, braces and spaces percent-encoded. Raises
    StorageError, which repeats nothing of a URL that is refused; the secrets of others are concealed."""
    url = url.strip()
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgres", "postgresql", DRIVER):
        known = scheme.partition("+")[0] if scheme.partition("+")[0] in OTHERS else "something else"
        shown = f"{known}://" if separator else "no URL" if not url else "a name without ://"
        raise StorageError(
            f"The storage must be a PostgreSQL URL such as {SUPPORTED} (postgres:// and {DRIVER}:// work "
            f"too), but got {shown}. Leave --storage out for the built-in PostgreSQL."
        )
    plain = f"{DRIVER}://{rest}"
    for odd in "{} ":
        plain = plain.replace(odd, f"%{ord(odd):02X}")
    try:
        if not FORM.fullmatch(plain) or not 0 < (sqlalchemy.make_url(plain).port or 1) < 65536:
            raise ValueError
    except (exc.ArgumentError, ValueError):
        raise StorageError(
            f"The storage must be a URL of the form {SUPPORTED}, but this one cannot be read. Percent-encode "
            "odd characters of the password (@ is %40, / is %2F, : is %3A), and check the port."
        ) from None
    conceal(f"{DRIVER}://{rest}")
    conceal(plain)
    return plain


def resolve_url(option: str | None, *, home: Path, environ: Mapping[str, str]) -> str:
    """The URL to use: --storage, else CADDIE_STORAGE, else the private server under `home` (claimed)."""
    given = environ.get(ENVIRONMENT, "") if option is None else option
    return normalise_url(given) if given or option is not None else url_of(home)


def connect_arguments(url: str, *, link_s: int = Timing.link_s) -> dict[str, Any]:
    """psycopg2's arguments: over TCP a dead link is noticed within about `link_s`, twice that when idle."""
    parts = sqlalchemy.make_url(url)
    arguments: dict[str, Any] = {"connect_timeout": 10, "application_name": "caddie"}
    if parts.host:
        arguments |= {"keepalives_idle": link_s, "keepalives_interval": max(1, link_s // 4)}
        arguments |= {"keepalives_count": 3, "tcp_user_timeout": 1000 * link_s}
    return arguments


def timing_of(environ: Mapping[str, str]) -> Timing:
    """The defaults, less what CADDIE_TIMING says. Raises ValueError."""
    names = [field.name for field in fields(Timing)]
    given: dict[str, int] = {}
    for word in environ.get(VARIABLE, "").split():
        name, _, value = word.partition("=")
        if name not in names or not value.isdigit() or int(value) == 0:
            raise ValueError(
                f"{VARIABLE} is a list of NAME=SECONDS with whole positive seconds and the names "
                f"{', '.join(names)}, but holds {word!r}. Correct it, or unset it."
            )
        given[name] = int(value)
    timing = Timing(**given)
    if timing.grace_s < 2 * timing.heartbeat_s:
        raise ValueError(
            f"A trial must miss more than one heartbeat before it counts as dead, but {VARIABLE} gives "
            f"grace_s={timing.grace_s} and heartbeat_s={timing.heartbeat_s}. Make grace_s twice that or more."
        )
    return timing


def artifact_store(folder: Path) -> "FileSystemArtifactStore":
    folder.mkdir(parents=True, exist_ok=True)
    from optuna.artifacts import FileSystemArtifactStore  # with boto3: 0.1 s of CPU

    return FileSystemArtifactStore(str(folder))
