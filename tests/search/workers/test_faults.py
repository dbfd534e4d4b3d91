"""Faults that really happen to real workers on a real PostgreSQL; after each all is exact: docs/faults.md."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from tests.search.db_helpers import alive, held_server
from tests.search.engines.test_external import over_tcp
from tests.search.fake_studies import (
    FINISHED,
    assert_exact,
    begin,
    caddie,
    command,
    environment,
    pids,
    read_trials,
    search,
    states,
    wait_for,
    workers_of,
    write_study,
)

pytestmark = pytest.mark.slow
QUICK = {"CADDIE_TIMING": "heartbeat_s=1 grace_s=4 link_s=3 patience_s=100"}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount, or to make a network")


def ended(running: subprocess.Popen[str]) -> None:
    """Waits for a session, which must end well."""
    _, errors = running.communicate(timeout=150)
    assert running.returncode == 0 and "Traceback" not in errors, errors


def sh(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextlib.contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A small disk mounted at the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        sh("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine lets nobody mount a tmpfs")
    try:
        yield folder
    finally:
        sh("umount", "--lazy", str(folder))


def ballast(folder: Path) -> Path:
    """Fills the disk to its last byte."""
    path = folder / "ballast"
    with contextlib.suppress(OSError), path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free)
        while file.write(bytes(4096)):
            file.flush()
    return path


@pytest.mark.long
def test_a_worker_frozen_past_its_lease_drops_its_trial(home: Path) -> None:
    study = write_study(home, "frozen")
    running = begin(*search(study, home, 5, 2), FAKE_SECONDS="4", **QUICK)
    wait_for(lambda: len(pids(home, "frozen")) == 2)
    worker = workers_of("frozen")[0]
    os.kill(worker, signal.SIGSTOP)
    try:
        wait_for(lambda: "FAIL" in states(read_trials(study, home)), 60)
    finally:
        os.kill(worker, signal.SIGCONT)
    ended(running)
    trials = read_trials(study, home)
    assert_exact(trials, 5)
    assert states(trials)["COMPLETE"] == 5 and states(trials)["FAIL"] >= 1
    assert not alive(worker) and pids(home, "frozen") == []


@pytest.mark.long
def test_a_woken_worker_ends_a_trainer_that_says_nothing(home: Path) -> None:
    study = write_study(home, "mute", "mute")  # no report tells its worker that the trial is gone
    first = begin(*search(study, home, 1, 1), FAKE_SECONDS="90", **QUICK)
    wait_for(lambda: len(pids(home, "mute")) == 1)
    (worker,), (trainer,) = workers_of("mute"), pids(home, "mute")
    second = begin(*search(study, home, 1, 1), FAKE_SECONDS="90", **QUICK)
    os.kill(worker, signal.SIGSTOP)
    try:
        wait_for(lambda: (home / "runs" / "mute" / "1" / "pid").exists(), 60)
    finally:
        os.kill(worker, signal.SIGCONT)
    wait_for(lambda: not alive(trainer), 20)  # long before its 90 s are over
    for session in (first, second):
        session.send_signal(signal.SIGINT)
        session.communicate(timeout=60)
    trials = read_trials(study, home)
    assert set(states(trials)) == {"FAIL", "WAITING"} and states(trials)["WAITING"] == 1


def test_a_hung_trainer_is_ended_with_its_children(home: Path) -> None:
    study = write_study(home, "hung", "children-hang")
    study.write_text(study.read_text().replace("timeout_seconds = 60.0", "timeout_seconds = 2.0"))
    ran = caddie(*search(study, home, 2, 2))
    assert ran.returncode == 0, ran.stderr
    trials = read_trials(study, home)
    assert_exact(trials, 2)
    assert {t["attrs"]["reason"] for t in trials} == {"timeout: still running after 2 s"}
    assert {t["constraints"]["run"] for t in trials} == {1.0}
    for path in (home / "runs" / "hung").glob("*/children"):
        assert not any(alive(pid) for pid in json.loads(path.read_text()))


@as_root
@pytest.mark.parametrize("culprit", ["trainer", pytest.param("somebody else", marks=pytest.mark.long)])
def test_a_full_disk_under_the_runs(home: Path, culprit: str) -> None:
    name = f"full-{culprit[0]}"
    study = write_study(home, name)
    with disk(home / "runs" / name, 230) as small:
        if culprit == "trainer":
            ran = caddie(*search(study, home, 3, 2), FAKE_FILL="1")
            status, errors = ran.returncode, ran.stderr
        else:  # after the trainers began: their results find no room
            running = begin(*search(study, home, 3, 2), FAKE_SECONDS="2")
            wait_for(lambda: len(pids(home, name)) == 2)
            ballast(small)
            errors = running.communicate(timeout=60)[1]
            status = running.returncode
        assert status == 2 and "error: Trials must be able to write" in errors, errors
        assert "Traceback" not in errors
        left = read_trials(study, home)
        assert set(states(left)) <= {"COMPLETE", "FAIL", "WAITING"} and "FAIL" in states(left)
        for path in small.rglob("ballast"):
            path.unlink()
        assert caddie(*search(study, home, 3, 2)).returncode == 0
        assert_exact(read_trials(study, home), 3)


@as_root
@pytest.mark.long
def test_a_full_disk_under_the_database() -> None:
    folder = Path(tempfile.mkdtemp(prefix="caddie-test-"))
    folder.chmod(0o755)
    study = write_study(folder, "nospace")
    try:
        with disk(folder / ".caddie", 140) as small:
            running = begin(*search(study, folder, 6, 2), FAKE_SECONDS="1", **QUICK)
            wait_for(lambda: len(pids(folder, "nospace")) == 2)
            full = ballast(small)
            time.sleep(5)
            full.unlink()
            ended(running)
            assert_exact(read_trials(study, folder), 6)
            wait_for(lambda: not (small / "server.json").exists(), 30)
    finally:
        shutil.rmtree(folder)


def test_a_database_that_drops_idle_connections(tmp_path: Path) -> None:
    study, over, dropped = write_study(tmp_path, "idle"), threading.Event(), [0]
    query = "select count(pg_terminate_backend(pid)) from pg_stat_activity where state = 'idle' "
    query += "and application_name = 'caddie' and pid <> pg_backend_pid()"
    with held_server() as (_, url):
        engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")

        def drop() -> None:
            with engine.connect() as connection:
                while not over.wait(0.25):
                    dropped[0] += connection.execute(sqlalchemy.text(query)).scalar_one()

        thread = threading.Thread(target=drop)
        thread.start()
        try:
            ran = caddie(
                *search(study, tmp_path, 6, 2), cwd=Path("/"), CADDIE_STORAGE=url, FAKE_SECONDS="1", **QUICK
            )
        finally:
            over.set()
            thread.join()
        assert ran.returncode == 0 and "Traceback" not in ran.stderr, ran.stderr
        assert_exact(read_trials(study, tmp_path, CADDIE_STORAGE=url), 6)
    assert dropped[0] >= 10


@contextlib.contextmanager
def machine() -> Iterator[tuple[str, str, str]]:
    """(network namespace, our address as it sees it, our end of the cable) of a second machine."""
    name = f"cad{os.getpid()}"
    cable, ours, theirs = f"{name}a", "10.213.77.1", "10.213.77.2"
    inside = ("ip", "netns", "exec", name)
    try:
        sh("ip", "netns", "add", name)
        sh("ip", "link", "add", cable, "type", "veth", "peer", "name", f"{name}b", "netns", name)
    except (OSError, subprocess.CalledProcessError):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            sh("ip", "netns", "del", name)
        pytest.skip("this machine lets nobody make a network")
    try:
        sh("ip", "addr", "add", f"{ours}/30", "dev", cable)
        sh("ip", "link", "set", cable, "up")
        sh(*inside, "ip", "addr", "add", f"{theirs}/30", "dev", f"{name}b")
        sh(*inside, "ip", "link", "set", f"{name}b", "up")
        sh(*inside, "ip", "link", "set", "lo", "up")
        yield name, ours, cable
    finally:
        sh("ip", "netns", "del", name)


@pytest.mark.long
@as_root
def test_a_machine_cut_off_from_the_database_comes_back(tmp_path: Path) -> None:
    study, homes = write_study(tmp_path, "cut"), (tmp_path / "near", tmp_path / "far")
    for home in homes:
        home.mkdir()
    with machine() as (name, address, cable), held_server() as (_, url), over_tcp(url, address) as tcp:
        settings = QUICK | {"CADDIE_STORAGE": tcp, "FAKE_SECONDS": "2"}
        near = begin(*search(study, homes[0], 10, 1), **settings)
        far = subprocess.Popen(
            ["ip", "netns", "exec", name, *command(*search(study, homes[1], 10, 1))],
            cwd="/",
            env=environment(**settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: pids(homes[0], "cut") and pids(homes[1], "cut"))
        sh("ip", "link", "set", cable, "down")
        time.sleep(9)
        sh("ip", "link", "set", cable, "up")
        ended(near)
        ended(far)
        trials = read_trials(study, homes[0], CADDIE_STORAGE=tcp)
    assert_exact(trials, 10)
    assert states(trials).get("FAIL", 0) >= 1  # what the far machine ran was given to the near one
    assert sum(t["state"] in FINISHED for t in trials) == 10
