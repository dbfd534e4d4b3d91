"""Workers with a fake trainer on a real private PostgreSQL: exact counts, failures told apart, none lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.search.fake_studies import (
    FINISHED,
    begin,
    caddie,
    pids,
    read_trials,
    search,
    states,
    wait_for,
    workers_of,
    write_study,
)

CONSTRAINTS = {"bytes", "train", "eval", "run"}
pytestmark = pytest.mark.slow


def test_configuration_failures_are_told_as_constraints(home: Path) -> None:
    study = write_study(home, "diverged", "diverged")
    ran = caddie(*search(study, home, 3, 2))
    assert ran.returncode == 0, ran.stderr
    trials = read_trials(study, home)
    assert states(trials) == {"PRUNED": 3}
    assert {t["constraints"]["run"] for t in trials} == {1.0}
    assert trials[0]["attrs"]["reason"] == "diverged: train_loss is nan at step 7"
    assert "3 × diverged" in caddie("status", f"--study={study}", f"--home={home}").stdout


def test_a_crash_is_tried_again_and_then_blamed_on_the_configuration(home: Path) -> None:
    study = write_study(home, "crash", "crash")
    ran = caddie(*search(study, home, 1, 1))
    assert ran.returncode == 0, ran.stderr
    trials = read_trials(study, home)
    assert states(trials) == {"FAIL": 3, "PRUNED": 1}
    assert trials[-1]["attrs"]["reason"].startswith("crashed 4 times: ")
    assert len({t["attrs"]["hash"] for t in trials}) == 1
    assert all(set(t["constraints"]) == CONSTRAINTS and t["constraints"]["run"] == 1.0 for t in trials)


def test_the_same_refusal_again_and_again_stops_the_session(home: Path) -> None:
    study = write_study(home, "refuse", "refuse")
    ran = caddie(*search(study, home, 50, 1))
    assert ran.returncode == 2
    assert "error: The trainer must take" in ran.stderr and "shard 3 is cut" in ran.stderr
    assert states(read_trials(study, home)) == {"PRUNED": 5}


def test_a_full_disk_stops_the_session_and_loses_nothing(home: Path) -> None:
    study = write_study(home, "disk", "disk")
    ran = caddie(*search(study, home, 5, 1))
    assert ran.returncode == 2
    assert "error: Trials must be able to write" in ran.stderr and "Traceback" not in ran.stderr
    assert states(read_trials(study, home)) == {"FAIL": 1, "WAITING": 1}


def test_ctrl_c_stops_cleanly_and_the_next_session_goes_on(home: Path) -> None:
    study = write_study(home, "stopped")
    running = begin(*search(study, home, 3, 2), FAKE_SECONDS="300")
    wait_for(lambda: len(pids(home, "stopped")) == 2)
    trainers = pids(home, "stopped")
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in errors
    assert pids(home, "stopped") == [] and workers_of("stopped") == [] and len(trainers) == 2
    trials = read_trials(study, home)
    assert states(trials) == {"FAIL": 2, "WAITING": 2}
    left = {t["attrs"]["hash"] for t in trials}
    assert caddie(*search(study, home, 3, 2)).returncode == 0
    after = read_trials(study, home)
    assert states(after) == {"COMPLETE": 3, "FAIL": 2}
    assert left < {t["attrs"]["hash"] for t in after if t["state"] == "COMPLETE"}  # what was stopped was run


def test_niceness_lowers_the_priority_of_trainers_alone(home: Path) -> None:
    study = write_study(home, "nice")
    running = begin(*search(study, home, 1, 1), "--niceness=7", FAKE_SECONDS="6")
    wait_for(lambda: pids(home, "nice") or running.poll() is not None)
    (trainer,), (worker,) = pids(home, "nice"), workers_of("nice")
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, trainer) == min(19, mine + 7)
    assert os.getpriority(os.PRIO_PROCESS, worker) == mine
    out, err = running.communicate(timeout=100)
    assert running.returncode == 0, out + err
    assert states(read_trials(study, home)) == {"COMPLETE": 1}


def test_kill_9_of_a_worker_and_of_a_trainer_loses_no_trial(home: Path) -> None:
    study = write_study(home, "killed")
    running = begin(*search(study, home, 4, 2), FAKE_SECONDS="6")
    wait_for(lambda: len(pids(home, "killed")) == 2)
    os.kill(pids(home, "killed")[0], signal.SIGKILL)
    wait_for(lambda: (home / "runs" / "killed" / "2" / "pid").exists())  # that one, again
    both = workers_of("killed")
    for worker in both:  # each in the middle of a trial
        os.kill(worker, signal.SIGKILL)
    _, errors = running.communicate(timeout=150)
    assert running.returncode == 0, errors
    trials = read_trials(study, home)
    finished = [t for t in trials if t["state"] in FINISHED]
    assert len(both) == 2 and states(trials) == {"COMPLETE": 4, "FAIL": 3}
    assert all(set(t["constraints"]) == CONSTRAINTS for t in trials)
    assert {t["attrs"]["hash"] for t in trials} == {t["attrs"]["hash"] for t in finished}
    assert pids(home, "killed") == []


def test_kill_9_of_the_session_stops_its_workers(home: Path) -> None:
    study = write_study(home, "orphans")
    running = begin(*search(study, home, 3, 2), FAKE_SECONDS="300")
    wait_for(lambda: len(pids(home, "orphans")) == 2)
    running.kill()
    running.communicate()
    wait_for(lambda: not workers_of("orphans") and not pids(home, "orphans"), 30)
    assert states(read_trials(study, home)) == {"FAIL": 2, "WAITING": 2}


def test_two_sessions_at_once_join(home: Path) -> None:
    study = write_study(home, "joined")
    both = [begin(*search(study, home, 6, 2), FAKE_SECONDS="0.5") for _ in range(2)]
    for session in both:
        _, errors = session.communicate(timeout=180)
        assert session.returncode == 0, errors
    trials = read_trials(study, home)
    assert states(trials) == {"COMPLETE": 6}
    assert len({t["attrs"]["hash"] for t in trials}) == 6
    assert all(t["steps"] == 3 for t in trials)
