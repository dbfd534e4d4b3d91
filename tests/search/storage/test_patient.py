"""The storage: URLs and their errors, no password anywhere, outages waited out, clean retries."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import re
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
import psycopg2
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy import event, exc
from typer.testing import CliRunner

from search.cli import app
from search.common import console
from search.common.attributes import STUDY_HASH
from search.common.console import Redacted, redact
from search.storage import patient as storage
from search.storage.patient import StorageError, normalise_url, resolve_url
from search.study.load import find_study
from search.study.model import study_hash
from tests.search.db_helpers import alive, first_line, held_server, server_pids, until, worker
from tests.search.fake_studies import write_study

TIMING = storage.Timing(patience_s=30.0, heartbeat_s=1, grace_s=2)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Path, str]]:
    with held_server() as held:
        yield held


@pytest.fixture
def study(server: tuple[Path, str], request: pytest.FixtureRequest) -> optuna.Study:
    url = server[1]
    opened = storage.open_storage(url, worker=False, timing=TIMING)
    return storage.open_study(opened, request.node.name, url=url)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_urls_of_postgres_are_understood(scheme: str):
    url = normalise_url(f" {scheme}://me:p{{w}}@host:5433/db?sslmode=require\n")
    assert url == "postgresql+psycopg2://me:p%7Bw%7D@host:5433/db?sslmode=require"
    assert url.format(SCHEMA_VERSION=1) == url  # what Optuna does to it
    assert sqlalchemy.make_url(url).password == "p{w}"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///x.db",
        "mysql://a:hush@b/c",
        "journal.log",
        "",
        "redis://x",
        "postgresql+psycopg://a:hush@b/c",
    ],
)
def test_other_urls_are_refused(url: str):
    with pytest.raises(StorageError, match="must be a PostgreSQL URL such as postgresql://") as caught:
        normalise_url(url)
    assert "hush" not in str(caught.value)


def test_a_url_that_cannot_be_read_is_not_repeated():
    with pytest.raises(StorageError, match="%40") as caught:
        normalise_url("postgresql://me:hush@host:port/db")
    assert "hush" not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize(
    "text",
    [
        "at postgresql://me:hush@host/db now",
        "postgresql+psycopg2://me:hush@@x/hush@host/db",
        "postgresql://host/db?user=me&password=hush&x=1",
        "invalid dsn: host=h password='hush \\' hush' user=me",
        "PASSWORD = hush",
    ],
)
def test_passwords_are_redacted(text: str):
    clean = redact(text)
    assert "hush" not in clean and "***" in clean


ODD = (
    "{s}",
    "a {s}",
    "{s} b",
    "x@{s}",
    "{s}/y",
    "{s}?z",
    "#{s}",
    "%20{s}%40",
    "{s}:1",
    "q'{s}'",
    "[{s}]",
    "{s}+&=",
)
ANY_URL = (
    "{scheme}://me:{odd}@h{n}.invalid:{n}/db",
    "{scheme}://:{odd}@h{n}.invalid/db?sslmode=require",
    "{scheme}://me:{odd}@h1.invalid:1,h2.invalid:2/db",
    "{scheme}://me:{odd}@/db?host=h1.invalid:1&host=h2.invalid:2",
    "{scheme}://h{n}.invalid/db?{key}={odd}",
    "{scheme}://h{n}.invalid:{n}?user=me&{key}={odd}&x=1",
    "{scheme}://h{n}.invalid/db@me:{odd}",
    "{scheme}://h{n}.invalid:{odd}/db",
    "{scheme}://h{n}.invalid/db#{odd}",
    "me:{odd}@h{n}.invalid/db",
    "me:{odd}@h{n}.invalid://db",
    "host=h{n}.invalid password={odd}",
)
KEYS = (
    "password",
    "sslpassword",
    "passfile",
    "token",
    "x",
    "PASSWORD",
    "application_name",
    "connect_timeout",
)


def any_url(rng: random.Random) -> tuple[str, str]:
    """(a URL as somebody may write it, the secret in it)."""
    secret = "".join(rng.choices("abcXYZ019_~!$", k=rng.randrange(6, 12))).strip("$!~") or "hushhush"
    secret = f"Q{secret}Q"
    scheme = rng.choice(
        ("postgres", "postgresql", "postgresql+psycopg2", "postgresql+asyncpg", "mysql", "s3")
    )
    odd = rng.choice(ODD).replace("{s}", secret)
    key = rng.choice(KEYS)
    n = str(rng.randrange(1, 99_999))
    text = rng.choice(ANY_URL)
    for place, word in (("{scheme}", scheme), ("{key}", key), ("{n}", n), ("{odd}", odd)):
        text = text.replace(place, word)
    return text, secret


def test_no_secret_of_any_url_is_told(monkeypatch: pytest.MonkeyPatch):
    """2,000 URLs: in refusals, in what the driver says of those that are taken, in a log, in an outage."""
    monkeypatch.setattr(console, "_secrets", set[str]())
    rng = random.Random(7)
    taken = 0
    line = Redacted("%(message)s")
    for k in range(2000):
        console._secrets.clear()
        url, secret = any_url(rng)
        texts = list[str]()
        try:
            plain = normalise_url(url)
        except StorageError as error:
            texts.append(str(error))
        else:
            parts = sqlalchemy.make_url(plain)
            if secret in str(parts.host):  # it is the host's name, by any reading
                continue
            taken += 1
            said = f'invalid value "{parts.password}" of {dict(parts.query)} in {url}'
            gone = storage._gone(plain, exc.OperationalError("select", None, Exception(said)))
            record = logging.LogRecord("x", logging.WARNING, "x", 1, f"{url} {plain}: {said}", None, None)
            texts += [redact(url), redact(plain), str(gone), line.format(record)]
            if k % 3 == 0:  # the driver itself, which tells what it cannot read
                words = {"user": parts.username, "password": parts.password, **parts.query}
                with pytest.raises(psycopg2.Error) as caught:
                    psycopg2.connect(**words | {"host": "127.0.0.1", "port": 1})
                texts.append(redact(caught.value))
        assert not any(secret in text for text in texts), (url, texts)
    assert taken > 200


def test_the_url_comes_from_the_option_then_the_environment(tmp_path: Path):
    environ = {"CADDIE_STORAGE": "postgres://b/c"}
    assert resolve_url("postgres://a/c", home=tmp_path, environ=environ).endswith("://a/c")
    assert resolve_url(None, home=tmp_path, environ=environ) == "postgresql+psycopg2://b/c"
    assert not list(tmp_path.iterdir())


def test_databases_that_cannot_be_used(server: tuple[Path, str]):
    good = sqlalchemy.make_url(server[1])
    cases = {
        "password authentication failed": good.set(password="hush"),
        'database "nope" does not exist': good.set(database="nope"),
        "Connection refused": sqlalchemy.make_url("postgresql+psycopg2://me:hush@127.0.0.1:1/db"),
        "could not translate host name": sqlalchemy.make_url("postgresql+psycopg2://me:hush@no.invalid/db"),
    }
    for reason, url in cases.items():
        began = time.monotonic()
        with pytest.raises(StorageError, match="must be a PostgreSQL database that we can reach") as caught:
            storage.open_storage(url.render_as_string(hide_password=False), worker=False)
        assert time.monotonic() - began < 10.5
        assert reason in str(caught.value) or "no answer" in str(caught.value)
        assert "hush" not in str(caught.value) and str(good.password) not in str(caught.value)


def test_a_database_we_may_only_read(server: tuple[Path, str]):
    engine = sqlalchemy.create_engine(server[1], isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("create role reader login password 'hush'"))
    url = sqlalchemy.make_url(server[1]).set(username="reader", password="hush")
    with pytest.raises(StorageError, match="may not create tables"):
        storage.connect_check(url.render_as_string(hide_password=False))


@pytest.mark.parametrize(("drops", "fails"), [(1, False), (9, True)])
def test_a_connection_that_is_dropped_while_it_is_checked(
    server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, drops: int, fails: bool
):
    left, plain = [drops], storage.side_engine

    def dropping(url: str, **options: int) -> sqlalchemy.Engine:
        engine = plain(url, **options)

        @event.listens_for(engine, "before_cursor_execute")
        def drop(connection: sqlalchemy.Connection, *_: object) -> None:
            left[0] -= 1
            if left[0] >= 0:
                with plain(url).connect() as other:
                    pid = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
                    other.execute(sqlalchemy.text(f"select pg_terminate_backend({pid})"))

        return engine

    monkeypatch.setattr(storage, "side_engine", dropping)
    with pytest.raises(StorageError, match="must be a PostgreSQL") if fails else contextlib.nullcontext():
        storage.connect_check(server[1])


@pytest.mark.slow
def test_sixteen_processes_open_a_fresh_database(server: tuple[Path, str]):
    home, url = server
    with sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(sqlalchemy.text("create database fresh"))
    fresh = sqlalchemy.make_url(url).set(database="fresh").render_as_string(hide_password=False)
    process = worker("open", home, 16, CADDIE_STORAGE=fresh)
    output, errors = process.communicate(timeout=60)
    assert output.split("\n")[:-1] == ["study 0"] * 16, errors
    assert process.returncode == 0


def test_a_retried_trial_leaves_its_results_behind(study: optuna.Study):
    study.enqueue_trial({"x": 1.0}, user_attrs={"from": "me"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trial = study.ask()
    assert trial.suggest_float("x", 0.0, 2.0) == 1.0
    trial.set_constraint("bytes", 0.5)
    trial.storage.set_trial_system_attr(trial._trial_id, "constraints", [0.5])
    trial.storage.set_trial_system_attr(trial._trial_id, "completed_rung_0", 0.5)
    trial.storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
    time.sleep(2.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.storages.fail_stale_trials(study)
        again = study.ask()
    assert study.trials[trial.number].state == TrialState.FAIL
    assert again.number == 1 and again.suggest_float("x", 0.0, 2.0) == 1.0
    assert again.user_attrs == {"from": "me"} and again.constraints == {}
    attributes = study.trials[1].system_attrs
    assert attributes["retry_history"] == [0] and attributes["failed_trial"] == 0
    assert "constraints" not in attributes and "completed_rung_0" not in attributes
    again.set_constraint("bytes", -0.5)
    assert again.constraints == {"bytes": -0.5}


def test_a_configuration_is_retried_three_times(study: optuna.Study):
    trial = optuna.create_trial(
        state=TrialState.FAIL,
        params={"x": 1.0},
        distributions={"x": optuna.distributions.FloatDistribution(0, 2)},
    )
    study.add_trial(trial)
    rounds = 0
    while storage.requeue(study, study.trials[-1], counted=True):
        rounds += 1
    assert rounds == 3
    assert study.trials[-1].system_attrs["retry_history"] == [0, 1, 2]
    assert storage.requeue(study, optuna.create_trial(state=TrialState.FAIL), counted=True) is False


@pytest.mark.slow
def test_calls_wait_for_a_database_that_restarts(server: tuple[Path, str], study: optuna.Study):
    home = server[0]
    trial = optuna.create_trial(value=1.0, user_attrs={"n": 0})
    study.add_trial(trial)
    old = server_pids(home)
    os.kill(old["postmaster"], signal.SIGKILL)
    study.add_trial(trial)
    study.set_user_attr("after", 1)
    assert len(study.trials) == 2 and study.user_attrs == {"after": 1}
    until(lambda: (home / "server.json").exists() and server_pids(home) != old)


@pytest.mark.slow
def test_patience_ends_with_one_clear_error_or_a_revival():
    with held_server() as (home, url):
        impatient = storage.open_storage(url, worker=False, timing=storage.Timing(1.0, 1, 2))
        study = storage.open_study(impatient, "s", url=url)
        revived = storage.open_storage(
            url, worker=True, timing=TIMING, revive=lambda: first_line(worker("open", home, 1))
        )
        pids = server_pids(home)
        os.kill(pids["supervisor"], signal.SIGKILL)
        until(lambda: not alive(pids["postmaster"]))
        with pytest.raises(StorageError, match="The database must answer") as caught:
            study.set_user_attr("x", 1)
        assert str(sqlalchemy.make_url(url).password) not in str(caught.value)
        with pytest.raises(StorageError, match="The database must answer"):
            storage.open_study(impatient, "t", url=url)
        assert optuna.load_study(study_name="s", storage=revived).user_attrs == {}


@pytest.fixture
def apart(server: tuple[Path, str], request: pytest.FixtureRequest) -> Iterator[sqlalchemy.URL]:
    """A database of its own on the server, empty."""
    name = f"apart_{abs(hash(request.node.name)) % 10**9}"
    engine = sqlalchemy.create_engine(server[1], isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"create database {name}"))
        yield sqlalchemy.make_url(server[1]).set(database=name)
        connection.execute(sqlalchemy.text(f"drop database {name} with (force)"))


def told(url: sqlalchemy.URL) -> str:
    """The URL as it is written, password and all."""
    return url.render_as_string(hide_password=False)


def run_sql(url: sqlalchemy.URL, *statements: str) -> None:
    with sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).begin() as connection:
        for statement in statements:
            connection.execute(sqlalchemy.text(statement))


def status(tmp_path: Path, url: str) -> tuple[int, str]:
    """(exit status, both outputs) of `search.py status`."""
    study = write_study(tmp_path, "seen")
    ran = CliRunner().invoke(app, ["status", f"--study={study}", f"--storage={url}", f"--home={tmp_path}"])
    gc.enable()
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    return ran.exit_code, ran.output


def test_a_database_without_tables_holds_no_study(apart: sqlalchemy.URL, tmp_path: Path):
    code, said = status(tmp_path, told(apart))
    assert code == 2 and said.count("\n") == 1 and "there is no 'seen' in this database" in said
    storage.open_storage(told(apart), worker=False)
    code, said = status(tmp_path, told(apart))
    assert code == 2 and said.count("\n") == 1 and "there is no 'seen' in this database" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("update alembic_version set version_num = 'v2.6.0.a'", "schema v2.6.0.a, made by Optuna"),
        ("update alembic_version set version_num = 'v9.0.0.z'", "needs v3.2.0.a"),
        ("drop table trial_params", "it lacks trial_params"),
        ("drop table trial_values, trial_heartbeats", "it lacks trial_heartbeats, trial_values"),
    ],
)
def test_tables_that_are_not_ours_are_one_error(
    apart: sqlalchemy.URL, tmp_path: Path, change: str, says: str
):
    storage.open_storage(told(apart), worker=False)
    run_sql(apart, change)
    code, said = status(tmp_path, told(apart))
    assert code == 2 and said.count("error: ") == said.count("\n") == 1 and says in said
    with pytest.raises(StorageError, match=re.escape(says)):  # nothing is made anew in its place
        storage.open_storage(told(apart), worker=False)


def test_who_may_only_read_can_read(apart: sqlalchemy.URL, tmp_path: Path):
    opened = storage.open_storage(told(apart), worker=False)
    study = storage.open_study(opened, "seen", url=told(apart))
    read = find_study(write_study(tmp_path, "seen"))
    study.set_user_attr(STUDY_HASH, study_hash(read))
    study.add_trial(optuna.create_trial(value=1.5, user_attrs={"config": {}}))
    run_sql(
        apart,
        "create role onlooker login password 'hush'",
        "grant select on all tables in schema public to onlooker",
        "create role nobody_here login password 'hush'",
    )
    code, said = status(tmp_path, told(apart.set(username="onlooker", password="hush")))
    assert code == 0 and "1 trial done" in said, said
    run_sql(apart, "revoke select on trials from onlooker")
    code, said = status(tmp_path, told(apart.set(username="onlooker", password="hush")))
    assert code == 2 and said.count("\n") == 1 and "permission denied for table trials" in said, said
    code, said = status(tmp_path, told(apart.set(username="nobody_here", password="hush")))
    assert code == 2 and said.count("\n") == 1 and "permission denied" in said, said
    run_sql(apart, "drop owned by onlooker", "drop role onlooker, nobody_here")


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_outage_at_the_start_is_told_as_one(
    server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, wrapped: bool
):
    def gone(url: str, **settings: object) -> None:
        outage = exc.OperationalError("select 1", None, Exception("server closed it\nnow"))
        if wrapped:
            raise StorageInternalError("the commit failed") from outage
        raise outage

    monkeypatch.setattr(storage, "PatientStorage", gone)
    with pytest.raises(StorageError, match=r"must answer, but .*: server closed it\. All") as caught:
        storage.open_storage(server[1], worker=False)
    assert "Optuna" not in str(caught.value)
