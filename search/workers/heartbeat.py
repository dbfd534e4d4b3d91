"""A running trial's lease: a thread that writes heartbeats, and notices when the trial was given away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from optuna.storages import BaseStorage
from optuna.trial import TrialState

from search.storage.bulk import BatchStorage
from search.storage.patient import StorageError

log = logging.getLogger(__name__)


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
    """Writes a heartbeat on a thread until the block ends; an outage does not end the thread.

    `lost` is set as soon as the trial is found finished by somebody else: after a silence beyond the grace.
    """
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
