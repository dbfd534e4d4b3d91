"""The storage: URLs and their errors, no password anywhere, outages waited out, clean retries."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState
from sqlalchemy import event

from search.common.errors import redact
from search.storage import patient as storage
from search.storage.patient import StorageError
from search.storage.url import normalise_url, resolve_url
from tests.search.db_helpers import alive, first_line, held_server, server_pids, until, worker

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
