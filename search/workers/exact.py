"""run_exactly(study, objective, target=N): the study ends with exactly N finished trials, for any workers.

Finished is COMPLETE or PRUNED. Before each trial a worker takes the study's advisory lock in a transaction of
its own, fails what the dead left behind, counts, and asks for a trial only while finished + running < N. It
gives the lock back once the trial's first heartbeat is written: if the commit fails, the lock was lost and
the trial is dropped before it begins. From there on the trial has a heartbeat thread, and its result counts
only if nobody declared it dead meanwhile.
"""

import contextlib
import logging
import math
import random
import threading
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, TrialPruned, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from search.common.errors import InfrastructureError, Interrupted, TooManyFailures, UsedUp
from search.storage import patient
from search.storage.bulk import BatchStorage
from search.storage.patient import StorageError, is_outage, normalise_url, requeue, side_engine

TIMEOUTS = """
select set_config('lock_timeout', :wait, true),
 set_config('idle_in_transaction_session_timeout', :frozen, true)"""
SILENCES = """
select t.trial_id, cast(extract(epoch from cast(clock_timestamp() as timestamp) - h.heartbeat) as float),
 cast(extract(epoch from clock_timestamp() - pg_postmaster_start_time()) as float)
from trials t left join trial_heartbeats h on h.trial_id = t.trial_id
where t.study_id = :s and t.state = 'RUNNING' order by 1"""
LOCK_NOT_AVAILABLE = "55P03"  # SQLSTATE when lock_timeout is over
LOCK_WAIT = "2s"  # then we look at `stop` and queue up again
MIN_FROZEN_S = 5  # a holder of the lock that is frozen this long, or for half the grace, loses it
POLL_S = 1.0  # all trials are given out, but one of them may still die
MAX_FAILURES = 10  # failed trials in a row in one worker: something is wrong with all of them
log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Tally:
    """How many trials of the study are in which state."""

    complete: int = 0
    pruned: int = 0
    running: int = 0
    waiting: int = 0
    failed: int = 0

    @property
    def finished(self) -> int:
        return self.complete + self.pruned


@dataclass(frozen=True)
class _Gate:
    """The study, its storage and its lock."""

    study: optuna.Study
    storage: BaseStorage
    engine: sqlalchemy.Engine
    study_id: int
    heartbeat_s: float
    lost: threading.Event
    frozen_s: int
    more: Callable[[], bool]


def always() -> bool:
    return True


@dataclass(frozen=True)
class Hooks:
    """What a caller wants to hear: of each trial that it ended, and that the running one is no longer its.
    `more` is asked under the lock while no configuration waits: whether a new trial has anything to try."""

    after_trial: Callable[[FrozenTrial], None] | None = None
    lost: threading.Event = field(default_factory=threading.Event)
    more: Callable[[], bool] = always


def run_exactly(
    study: optuna.Study,
    objective: Callable[[Trial], float],
    *,
    target: int,
    url: str,
    stop: Callable[[], bool] | None = None,
    hooks: Hooks | None = None,
) -> Tally:
    """Runs trials until `target` are finished in the study (all workers and sessions), or `stop()` is true,
    or nothing runs, nothing waits, and there is no more to try: who runs may die, and is then queued again.

    The storage must be of `open_storage`. `stop` is asked between trials and while waiting; a running
    objective must look itself and raise Interrupted, also when `hooks.lost` is set: its trial was given to
    somebody else while we were frozen or cut off. Returns the last tally. Raises StorageError when the
    database stays away, TooManyFailures, and whatever else the objective raises (after its trial is failed).
    KeyboardInterrupt fails the trial, queues it again, and goes on up."""
    if target < 0:
        raise ValueError(f"The number of trials must not be negative, but got {target}.")
    stop = stop or (lambda: False)
    hooks = hooks or Hooks()
    gate = _gate(study, url, hooks)
    failures = 0
    while not stop():
        seen, trial = _ask(gate, target)
        if seen is None:
            continue
        if trial is None:
            used_up = seen.running == 0 and seen.finished < target
            if seen.finished >= target or used_up:
                return seen
            _pause(stop)
            continue
        try:
            told = _run(gate, trial, objective)
        except KeyboardInterrupt:
            _fail(gate, _id(trial), again=True)
            raise
        if hooks.after_trial is not None:
            hooks.after_trial(told or gate.storage.get_trial(_id(trial)))
        failures = failures + 1 if told is not None and told.state == TrialState.FAIL else 0
        if failures >= MAX_FAILURES:
            raise TooManyFailures(
                f"A study makes progress only if trials can finish, but {failures} in a row failed in this "
                "worker. Read the last trials' reasons, fix the cause, and run the same command to go on."
            )
    with gate.engine.connect() as connection:
        return _count(gate, connection)


def _gate(study: optuna.Study, url: str, hooks: Hooks) -> _Gate:
    storage = study._storage  # pyright: ignore[reportPrivateUsage]
    interval = getattr(storage, "get_heartbeat_interval", lambda: None)()
    if interval is None:
        raise ValueError(
            "An exact count needs a storage with heartbeats, but this study's has none. "
            "Open it with search.storage.open_storage."
        )
    study_id = storage.get_study_id_from_name(study.study_name)
    frozen_s = max(MIN_FROZEN_S, int(getattr(storage, "grace_s", 0)) // 2)
    engine = storage.bulk.engine if isinstance(storage, BatchStorage) else side_engine(normalise_url(url))
    return _Gate(study, storage, engine, study_id, float(interval), hooks.lost, frozen_s, hooks.more)


def _id(trial: Trial) -> int:
    return trial._trial_id  # pyright: ignore[reportPrivateUsage]


def _pause(stop: Callable[[], bool]) -> None:
    until = time.monotonic() + POLL_S * random.uniform(0.5, 1.0)
    while time.monotonic() < until and not stop():
        time.sleep(0.05)


@contextmanager
def _turn(gate: _Gate) -> Generator[sqlalchemy.Connection]:
    """The study's lock; the end succeeds only if it was ours up to there."""
    with gate.engine.connect() as connection:
        connection.execute(sqlalchemy.text(TIMEOUTS), {"wait": LOCK_WAIT, "frozen": f"{gate.frozen_s}s"})
        keys = {"c": patient.LOCK_CLASS, "s": gate.study_id}
        connection.execute(sqlalchemy.text("select pg_advisory_xact_lock(:c, :s)"), keys)
        yield connection
        connection.execute(sqlalchemy.text("select 1"))
        connection.commit()


def _await_turn(gate: _Gate, error: Exception) -> bool:
    """After a turn that was lost: once the next may come; whether we had the lock. Else the error again."""
    if not is_outage(error):
        raise error
    if getattr(getattr(error, "orig", None), "pgcode", "") == LOCK_NOT_AVAILABLE:
        return False
    gate.storage.get_study_id_from_name(gate.study.study_name)  # waits until the database is back
    return True


def locked(study: optuna.Study, url: str) -> Callable[[Callable[[], T]], T]:
    """What calls a function under the study's lock, and again when the lock was lost meanwhile."""
    gate = _gate(study, url, Hooks())

    def call(function: Callable[[], T]) -> T:
        while True:
            try:
                with _turn(gate):
                    return function()
            except patient.DATABASE_GONE as error:
                _await_turn(gate, error)

    return call


def _ask(gate: _Gate, target: int) -> tuple[Tally | None, Trial | None]:
    """One turn under the lock: (tally, a trial that is ours or None); no tally when the turn was lost."""
    trial: Trial | None = None
    try:
        with _turn(gate) as connection:
            _fail_dead(gate, connection)
            tally = _count(gate, connection)
            given_out = tally.finished + tally.running >= target
            if given_out or not (tally.waiting or gate.more()):
                return tally, None
            with warnings.catch_warnings():  # "heartbeat is supposed to be used with optimize": ours is below
                warnings.simplefilter("ignore")
                trial = gate.study.ask()
            beat(gate.storage, _id(trial))
            return tally, trial
    except patient.DATABASE_GONE as error:
        if _await_turn(gate, error) and trial is not None:
            log.warning("trial %d: the lock was lost while it was made; dropped", trial.number)
            _fail(gate, _id(trial), again=True)
        return None, None


def _fail_dead(gate: _Gate, connection: sqlalchemy.Connection) -> None:
    """Fails trials whose worker died: between ask and first heartbeat (under this lock), or later."""
    running = connection.execute(sqlalchemy.text(SILENCES), {"s": gate.study_id}).all()
    for trial_id in [trial_id for trial_id, silent_s, _ in running if silent_s is None]:
        _fail(gate, trial_id, again=True)
    grace_s = getattr(gate.storage, "grace_s", 0) or 2 * gate.heartbeat_s
    if not any(silent_s is not None and silent_s > grace_s for _, silent_s, _ in running):
        return
    if min(up_s for _, _, up_s in running) < 2 * gate.heartbeat_s:
        return  # after a long outage everybody looks silent: let the living speak first
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.fail_stale_trials(gate.study)


def _count(gate: _Gate, connection: sqlalchemy.Connection) -> Tally:
    query = sqlalchemy.text("select cast(state as text), count(*) from trials where study_id = :s group by 1")
    rows = connection.execute(query, {"s": gate.study_id}).all()
    counts = {str(state): int(number) for state, number in rows}
    return Tally(*(counts.get(state, 0) for state in ("COMPLETE", "PRUNED", "RUNNING", "WAITING", "FAIL")))


def beat(storage: BaseStorage, trial_id: int) -> TrialState:
    """One heartbeat; the trial's state."""
    if isinstance(storage, BatchStorage):
        return storage.bulk.beat(trial_id)
    write: Callable[[int], None] = getattr(storage, "record_heartbeat")  # noqa: B009 (not in BaseStorage)
    write(trial_id)
    return storage.get_trial(trial_id).state


@contextmanager
def heartbeat(
    storage: BaseStorage, trial_id: int, *, every_s: float, lost: threading.Event
) -> Generator[None]:
    """Beats on a thread, also through outages; sets `lost` once somebody else finished the trial."""
    over = threading.Event()
    lost.clear()

    def work() -> None:
        while not over.wait(every_s):
            try:
                if beat(storage, trial_id) != TrialState.RUNNING and not over.is_set():
                    lost.set()
                    break
            except StorageError as error:
                log.warning("heartbeat: %s", error)
        storage.remove_session()

    thread = threading.Thread(target=work, name=f"heartbeat-{trial_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=every_s)


def _run(gate: _Gate, trial: Trial, objective: Callable[[Trial], float]) -> FrozenTrial | None:
    """Runs the objective and tells: the trial as it ended; None when it was taken from us, or interrupted."""
    try:
        with heartbeat(gate.storage, _id(trial), every_s=gate.heartbeat_s, lost=gate.lost):
            value = objective(trial)
    except TrialPruned:
        return _tell(gate, trial, None, TrialState.PRUNED)
    except UpdateFinishedTrialError:
        log.warning("trial %d: it was silent for too long and was given to somebody else", trial.number)
        return None
    except InfrastructureError as error:
        log.warning("trial %d: %s", trial.number, error)
        _fail(gate, _id(trial), again=True, counted=True)
        return gate.storage.get_trial(_id(trial))
    except Interrupted:
        _fail(gate, _id(trial), again=True)
        return None
    except UsedUp:
        _fail(gate, _id(trial), again=False)
        return None
    except (KeyboardInterrupt, StorageError):
        raise  # the caller fails the trial; or the database is away, and it is failed once that is back
    except BaseException:
        _fail(gate, _id(trial), again=False)
        raise
    return _tell(gate, trial, value, None)


def _tell(gate: _Gate, trial: Trial, value: float | None, state: TrialState | None) -> FrozenTrial | None:
    try:
        told = gate.study.tell(trial, value, state=state, skip_if_finished=True)
    except UpdateFinishedTrialError:
        return None
    if told.state == TrialState.FAIL and (value is None or not math.isnan(value)):
        log.warning("trial %d: it was silent for too long; its result is not counted", trial.number)
        return None
    return told


def _fail(gate: _Gate, trial_id: int, *, again: bool, counted: bool = False) -> None:
    """Fails a trial; whoever fails it is the one who queues it again."""
    with contextlib.suppress(UpdateFinishedTrialError):
        if gate.storage.set_trial_state_values(trial_id, TrialState.FAIL) and again:
            requeue(gate.study, gate.storage.get_trial(trial_id), counted=counted)
