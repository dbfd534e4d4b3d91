"""The private server: starts, joins, survives kills, stops, and says clearly what it cannot do."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy
from sqlalchemy import exc

from search.storage import places as pgplace
from search.storage import server as postgres
from tests.search.db_helpers import (
    HOLD,
    REPO,
    alive,
    first_line,
    fresh_home,
    hold,
    kill,
    python,
    server_pids,
    until,
)

pytestmark = pytest.mark.slow
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
ODD = "a b'c\"d%e{f}é$(g);h " + 60 * "x"


def connected(url: str) -> bool:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    try:
        with engine.connect() as connection:
            return connection.execute(sqlalchemy.text("select 1")).scalar_one() == 1
    except exc.OperationalError:
        return False


def test_eight_processes_start_one_server_on_a_fresh_folder():
    with fresh_home() as home:
        holders = [hold(home) for _ in range(8)]
        try:
            urls = {first_line(process) for process in holders}
            pids = server_pids(home)
            assert len(urls) == 1
            assert (home / "postgres.log").read_text().count("starting PostgreSQL") == 1
            assert stat.S_IMODE((home / "password").stat().st_mode) == 0o600
            assert stat.S_IMODE((home / "cluster").stat().st_mode) == 0o700
        finally:
            for process in holders:
                kill(process)
        assert until(lambda: not any(map(alive, pids.values()))) < 10


def test_the_server_has_no_tcp_and_asks_for_the_password():
    with fresh_home() as home:
        holder = hold(home)
        try:
            url = sqlalchemy.make_url(first_line(holder))
            with sqlalchemy.create_engine(url).connect() as connection:
                assert connection.execute(sqlalchemy.text("show listen_addresses")).scalar_one() == ""
                assert connection.execute(sqlalchemy.text("show max_connections")).scalar_one() == "200"
                assert connection.execute(sqlalchemy.text("show synchronous_commit")).scalar_one() == "on"
            assert len(url.password or "") == 48
            with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
                psycopg2.connect(host=url.query["host"], user="caddie", password="wrong", dbname="postgres")
        finally:
            kill(holder)


def test_kills_of_postmaster_supervisor_and_user():
    with fresh_home() as home:
        first, second = hold(home), hold(home)
        try:
            url = first_line(first)
            assert first_line(second) == url
            old = server_pids(home)
            os.kill(old["postmaster"], signal.SIGKILL)
            until(lambda: (home / "server.json").exists() and server_pids(home) != old)
            assert until(lambda: connected(url)) < 5
            new = server_pids(home)
            assert new["supervisor"] == old["supervisor"]

            os.kill(new["supervisor"], signal.SIGKILL)
            until(lambda: not alive(new["postmaster"]))
            third = hold(home, 0.0)
            assert first_line(third) == url
            kill(third)
            assert connected(url)  # held by the first two
            kill(first)
            time.sleep(0.6)
            assert connected(url)
            pids = server_pids(home)
            kill(second)
            assert until(lambda: not any(map(alive, pids.values()))) < 10
            assert not (home / "server.json").exists()
        finally:
            kill(first)
            kill(second)


def test_a_long_path_with_odd_characters():
    with fresh_home() as home:
        odd = home.parent / ODD / "postgres"
        holder = hold(odd)
        try:
            url = first_line(holder)
            assert len(os.fsencode(odd)) > 107 and connected(url)
            socket = Path(str(sqlalchemy.make_url(url).query["host"]))
            assert stat.S_IMODE(socket.stat().st_mode) == 0o700
            pids = server_pids(odd)
        finally:
            kill(holder)
        until(lambda: not any(map(alive, pids.values())))
        assert not socket.exists()


@as_root
def test_root_leaves_the_modes_of_closed_folders_alone():
    with fresh_home() as home:
        closed = home.parent / "closed"
        closed.mkdir(mode=0o700)
        code = "import sys; from pathlib import Path; from search.storage import server as postgres; "
        code += "postgres.ROOTS_HOME = Path(sys.argv[2]); print(postgres.url_of(Path(sys.argv[1])))"
        process = python("-c", code, str(closed / "postgres"), str(home.parent / "lib"))
        url = first_line(process)
        kill(process, signal.SIGCONT)
        place = Path((closed / "postgres" / "location").read_text())
        assert place.parent == home.parent / "lib" and (place / "cluster" / "data").exists()
        assert str(place) in str(sqlalchemy.make_url(url).query["host"])
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def as_user(uid: int, home: Path) -> subprocess.Popen[str]:
    """url_of(home) by an interpreter of our version that this user can run."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for candidate in (Path(sys.executable).resolve(), Path("/usr/bin") / version):
        if candidate.exists() and pgplace.traversable(candidate.parent, (uid, uid)):
            break
    else:
        pytest.skip("no interpreter of this version that an ordinary user can run")
    packages = sysconfig.get_path("purelib")
    if not pgplace.traversable(Path(packages), (uid, uid)):
        pytest.skip("the virtual environment is in a folder that an ordinary user cannot enter")
    return subprocess.Popen(
        [str(candidate), "-c", HOLD, str(home), "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={"PATH": os.defpath, "PYTHONPATH": f"{REPO}:{packages}", "PYTHONDONTWRITEBYTECODE": "1"},
        user=uid,
        group=uid,
        extra_groups=[],
    )


@as_root
def test_an_ordinary_user():
    nobody = pwd.getpwnam("nobody")
    with fresh_home() as home:
        home.mkdir()
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        process = as_user(nobody.pw_uid, home)
        assert "postgresql+psycopg2://" in first_line(process)
        assert (home / "cluster" / "data").stat().st_uid == nobody.pw_uid
        kill(process, signal.SIGCONT)


@as_root
def test_a_user_without_an_entry_is_told_what_to_do():
    with fresh_home() as home:
        errors = as_user(54321, home).communicate(timeout=30)[1]
        assert "StorageError" in errors and "uid 54321 has no entry" in errors and "--storage" in errors


def test_a_folder_that_cannot_be_written():
    with pytest.raises(postgres.StorageError, match="must be able to write under its folder"):
        postgres.url_of(Path("/proc/caddie/postgres"))


def test_a_failing_start_gives_its_reason():
    with fresh_home() as home:
        holder = hold(home, 0.0)
        first_line(holder)
        kill(holder, signal.SIGCONT)
        until(lambda: not (home / "server.json").exists())
        (home / "cluster" / "data" / "PG_VERSION").write_text("9\n")
        errors = hold(home, 0.0).communicate(timeout=30)[1]
        assert "StorageError" in errors and "major version 9 (which made this cluster)" in errors


def test_no_binaries(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pgplace, "binary_folders", list)
    with pytest.raises(pgplace.ServerFailed, match=r"found none.*pip install"):
        pgplace.find_binaries(None)
