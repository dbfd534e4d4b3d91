"""Exactly N trials are finished, whatever is killed or frozen; none is left running, no number used twice."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from search.storage import patient as storage
from search.workers import exact
from search.workers.exact import Hooks, locked, run_exactly
from tests.search.db_helpers import first_line, held_server, kill, server_pids, until, worker

WORKERS = 4
TARGET = 12


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Path, str]]:
    with held_server() as held:
        yield held


@pytest.fixture
def url(server: tuple[Path, str]) -> str:
    return server[1]


@pytest.fixture
def study(url: str, request: pytest.FixtureRequest) -> optuna.Study:
    opened = storage.open_storage(url, worker=False, timing=storage.Timing(30.0, 1, 3))
    return storage.open_study(opened, request.node.name, url=url)


def quadratic(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", -5.0, 5.0) ** 2


def states(study: optuna.Study) -> Counter[str]:
    numbers = [trial.number for trial in study.trials]
    assert numbers == list(range(len(numbers)))
    return Counter(trial.state.name for trial in study.trials)


def finished(study: optuna.Study) -> int:
    return states(study)["COMPLETE"] + states(study)["PRUNED"]


def errors_of(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Waits for the workers; the error output of those that failed by themselves."""
    outputs = [process.communicate(timeout=120) for process in processes]
    return [o[1] for o, p in zip(outputs, processes, strict=True) if p.returncode not in (0, -signal.SIGKILL)]


@pytest.mark.slow
def test_exact_count_through_kills_of_a_worker_and_of_the_database():
    with held_server() as (home, url):
        workers = [worker("run", home, TARGET, DURATION_S="0.5") for _ in range(WORKERS)]
        try:
            for process in workers:
                assert first_line(process).startswith("began")
            kill(workers[0])
            os.kill(server_pids(home)["postmaster"], signal.SIGKILL)
            workers.append(worker("run", home, TARGET, DURATION_S="0.5"))  # a second session joins
            assert errors_of(workers) == []
        finally:
            for process in workers:
                kill(process)
        study = optuna.load_study(study_name="s", storage=url)
        assert finished(study) == TARGET
        assert set(states(study)) <= {"COMPLETE", "PRUNED", "FAIL"}
        assert states(study)["FAIL"] >= 1
        killed = next(t for t in study.trials if t.state == TrialState.FAIL)
        assert any(
            t.params == killed.params and t.state.is_finished() for t in study.trials[killed.number + 1 :]
        )


@pytest.mark.slow
def test_a_worker_frozen_past_its_grace_is_not_counted_twice():
    with held_server() as (home, url):
        frozen = worker("run", home, 4, DURATION_S="1.0")
        try:
            assert first_line(frozen) == "began 0"
            frozen.send_signal(signal.SIGSTOP)
            other = worker("run", home, 4, DURATION_S="0.3")
            assert other.communicate(timeout=60)[0].endswith("done 4 0\n")
            frozen.send_signal(signal.SIGCONT)
            output, errors = frozen.communicate(timeout=60)
            assert frozen.returncode == 0 and output.endswith("done 4 0\n"), errors
            assert "silent for too long" in errors
        finally:
            kill(frozen, signal.SIGCONT)
            kill(frozen)
        study = optuna.load_study(study_name="s", storage=url)
        assert finished(study) == 4 and states(study)["FAIL"] == 1 and len(study.trials) == 5
        assert study.trials[0].state == TrialState.FAIL
        assert sum(t.params == study.trials[0].params for t in study.trials[1:]) == 1


def test_a_second_run_of_the_same_target_does_nothing(study: optuna.Study, url: str):
    assert run_exactly(study, quadratic, target=3, url=url).finished == 3
    assert run_exactly(study, quadratic, target=3, url=url).finished == 3
    assert run_exactly(study, quadratic, target=4, url=url).finished == 4
    assert len(study.trials) == 4
    with pytest.raises(ValueError, match="must not be negative"):
        run_exactly(study, quadratic, target=-1, url=url)


def test_queued_configurations_come_first_and_never_overshoot(study: optuna.Study, url: str):
    for x in (1.0, 2.0, 3.0):
        study.enqueue_trial({"x": x})
    assert run_exactly(study, quadratic, target=2, url=url).waiting == 1
    assert [t.params for t in study.trials[:2]] == [{"x": 1.0}, {"x": 2.0}]


def test_broken_infrastructure_is_retried_a_bounded_number_of_times(study: optuna.Study, url: str):
    calls: list[float] = []

    def breaks_below_zero(trial: optuna.Trial) -> float:
        calls.append(trial.suggest_float("x", -1.0, 1.0))
        trial.set_constraint("bytes", 0.5)
        if calls[-1] < 0 and trial.number < 6:
            raise exact.InfrastructureError("the node is gone")
        return calls[-1]

    study.enqueue_trial({"x": -0.5})
    study.enqueue_trial({"x": 0.5})
    tally = run_exactly(study, breaks_below_zero, target=1, url=url)
    assert tally.finished == 1 and tally.failed == 1 and tally.waiting == 1
    assert calls == [-0.5, 0.5]
    study.enqueue_trial({"x": 0.25})
    tally = run_exactly(study, breaks_below_zero, target=2, url=url)
    assert calls[2:] == [-0.5, 0.25]
    for _ in range(3):
        study.enqueue_trial({"x": 0.125})
    tally = run_exactly(study, breaks_below_zero, target=5, url=url)
    assert tally.finished == 5 and tally.running == 0


def test_nothing_but_failures_ends_with_an_error(study: optuna.Study, url: str):
    with pytest.raises(exact.TooManyFailures, match="10 in a row failed"):
        run_exactly(study, lambda trial: float("nan"), target=2, url=url)
    assert states(study) == {"FAIL": 10}


def test_a_bug_in_the_objective_fails_the_trial_and_is_raised(study: optuna.Study, url: str):
    def buggy(trial: optuna.Trial) -> float:
        raise KeyError("typo")

    with pytest.raises(KeyError, match="typo"):
        run_exactly(study, buggy, target=1, url=url)
    assert states(study) == {"FAIL": 1}


@pytest.mark.parametrize("reason", [KeyboardInterrupt, exact.Interrupted])
def test_an_interrupted_trial_waits_for_the_next_session(
    study: optuna.Study, url: str, reason: type[BaseException]
):
    stopped: list[bool] = []

    def interrupted(trial: optuna.Trial) -> float:
        trial.suggest_float("x", -5.0, 5.0)
        stopped.append(True)
        raise reason

    if reason is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            run_exactly(study, interrupted, target=2, url=url)
    else:
        tally = run_exactly(study, interrupted, target=2, url=url, stop=lambda: bool(stopped))
        assert tally.failed == 1 and tally.waiting == 1
    run_exactly(study, quadratic, target=2, url=url)
    assert states(study) == {"FAIL": 1, "COMPLETE": 2}
    assert study.trials[1].params == study.trials[0].params


def test_what_died_between_ask_and_its_first_heartbeat_is_queued_again(study: optuna.Study, url: str):
    study.enqueue_trial({"x": 1.5})
    with pytest.warns(UserWarning):
        orphan = study.ask()
    seen: list[int] = []
    tally = run_exactly(study, quadratic, target=2, url=url, hooks=Hooks(lambda t: seen.append(t.number)))
    assert tally.finished == 2 and tally.running == 0 and tally.failed == 1
    assert study.trials[orphan.number].state == TrialState.FAIL
    assert study.trials[1].params == {"x": 1.5} and seen == [1, 2]


class _Cutter(optuna.samplers.RandomSampler):
    """Ends the connection that holds the lock, once, while the trial is being made."""

    def __init__(self, url: str) -> None:
        super().__init__(seed=0)
        self.url = url
        self.cut = 0

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if self.cut == 0:
            query = "select count(pg_terminate_backend(pid)) from pg_locks where locktype = 'advisory'"
            with sqlalchemy.create_engine(self.url, isolation_level="AUTOCOMMIT").connect() as connection:
                self.cut = connection.execute(sqlalchemy.text(query)).scalar_one()


def test_a_trial_made_without_the_lock_is_dropped(study: optuna.Study, url: str):
    sampler = _Cutter(url)
    study.sampler = sampler
    tally = run_exactly(study, quadratic, target=2, url=url)
    assert sampler.cut == 1
    assert tally.finished == 2 and tally.failed == 1 and tally.running == 0


def test_a_storage_without_heartbeats_is_refused(url: str):
    with pytest.raises(ValueError, match="needs a storage with heartbeats"):
        run_exactly(optuna.create_study(), quadratic, target=1, url=url)


def test_stop_is_obeyed_while_waiting_for_others(study: optuna.Study, url: str):
    with pytest.warns(UserWarning):
        other = study.ask()
    getattr(other.storage, "record_heartbeat")(other._trial_id)  # noqa: B009
    began = time.monotonic()
    tally = run_exactly(study, quadratic, target=1, url=url, stop=lambda: time.monotonic() > began + 0.5)
    assert tally.running == 1 and tally.finished == 0
    until(lambda: run_exactly(study, quadratic, target=1, url=url).finished == 1)


def test_a_space_that_is_used_up_ends_the_study_once_nobody_runs(study: optuna.Study, url: str):
    with pytest.warns(UserWarning):
        other = study.ask()
    x = other.suggest_float("x", -5.0, 5.0)
    getattr(other.storage, "record_heartbeat")(other._trial_id)  # noqa: B009
    until_s = time.monotonic() + 0.5
    hooks = Hooks(more=lambda: False)
    tally = run_exactly(
        study, quadratic, target=9, url=url, hooks=hooks, stop=lambda: time.monotonic() > until_s
    )
    assert tally.running == 1 and tally.finished == 0  # it waits: the other may die
    study.enqueue_trial({"x": 1.5})
    tally = run_exactly(study, quadratic, target=9, url=url, hooks=hooks)
    assert tally.finished == 2 and tally.running == tally.waiting == 0 and tally.failed == 1
    assert {t.params["x"] for t in study.trials if t.state == TrialState.COMPLETE} == {1.5, x}


def test_a_trial_that_finds_nothing_left_is_none_and_is_not_run_again(study: optuna.Study, url: str):
    left = [1.0]

    def last(trial: optuna.Trial) -> float:
        if not left:
            raise exact.UsedUp("nothing new is left")
        return trial.suggest_float("x", left[0], left.pop())

    asked: list[bool] = []
    hooks = Hooks(more=lambda: not asked.append(True) and len(asked) < 3)
    tally = run_exactly(study, last, target=5, url=url, hooks=hooks)
    assert tally.finished == 1 and tally.failed == 1 and tally.waiting == 0 and len(asked) == 3


def test_what_was_done_under_a_lock_that_was_lost_is_done_again(study: optuna.Study, url: str):
    cutter = _Cutter(url)
    done = list[int]()

    def act() -> str:
        done.append(cutter.cut)
        cutter.before_trial(study, optuna.trial.create_trial(value=0.0))
        return "stored"

    assert locked(study, url)(act) == "stored"
    assert done == [0, 1]
    with sqlalchemy.create_engine(url).connect() as connection:  # and it was given back
        held = "select count(*) from pg_locks where locktype = 'advisory'"
        assert connection.execute(sqlalchemy.text(held)).scalar_one() == 0
