"""BulkStorage: a study's trials in six statements; BatchStorage: what one trial writes, in one transaction.

Optuna reads a trial as some eighty ORM objects and commits every parameter and attribute on its own. Here
PostgreSQL puts attributes together as JSON and parameters as arrays, a distribution is parsed once a process,
and `with collected(trial):` holds a trial's writes back until the block ends. Tables and rows are Optuna's
(schema of 5.0): its own reader gives equal trials, which a test compares.
"""

import json
import math
from collections.abc import Container, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import repeat
from typing import Any, cast

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import RDBStorage, _CachedStorage  # pyright: ignore[reportPrivateUsage]
from optuna.storages._cached_storage import _StudyInfo  # pyright: ignore[reportPrivateUsage]
from optuna.storages._rdb import models
from optuna.storages._rdb import storage as rdb
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import Connection, orm, text

from search.common.attributes import RETRY_OF
from search.storage import sql

MANY = 200  # trials, from which a second connection is worth its while
Head = tuple[int, int, str, datetime | None, datetime | None]  # a row of TRIALS
# A row for each parameter and not for each trial: its name and its distribution go over the wire once.
Columns = tuple[dict[int, dict[str, Any]], dict[int, dict[str, BaseDistribution]]]
PARAMS = """
select param_name, distribution_json, array_agg(param_id), array_agg(trial_id), array_agg(param_value)
from trial_params where trial_id = any(:ids) group by 1, 2"""


@dataclass
class Batch:
    """What one trial wants to write. Attributes as JSON: their values of that moment."""

    params: dict[str, tuple[float, BaseDistribution]] = field(default_factory=dict)  # pyright: ignore[reportUnknownVariableType]
    user: dict[str, str] = field(default_factory=dict[str, str])
    system: dict[str, str] = field(default_factory=dict[str, str])
    steps: dict[int, float] = field(default_factory=dict[int, float])
    until_told: bool = False  # it waits for the trial's end
    stored: FrozenTrial | None = None  # the trial as the database has it, once somebody asked

    def write(self, connection: Connection, trial_id: int) -> None:
        if self.params:
            rest = [distribution_to_json(d) for _, d in self.params.values()]
            values = {n: v for n, (v, _) in self.params.items()}
            _write(connection, sql.WRITE_PARAMS, trial_id, values, rest=rest)
        for kind, attributes in (("user", self.user), ("system", self.system)):
            if attributes:
                _write(connection, sql.WRITE_ATTRIBUTES.format(kind=kind), trial_id, attributes)
        if self.steps:
            _write(connection, sql.WRITE_STEPS, trial_id, self.steps)


def _write(
    connection: Connection, statement: str, trial_id: int, rows: dict[Any, Any], **more: list[str]
) -> None:
    values = {"trial": trial_id, "names": list(rows), "values": list(rows.values())} | more
    connection.execute(text(statement), values)


@contextmanager
def unversioned() -> Generator[None]:
    """While a storage is made: who joins a database does not look for its version once more. Alembic, which
    does, costs 0.2 s of CPU."""
    kept = rdb._VersionManager  # pyright: ignore[reportPrivateUsage]
    rdb._VersionManager = lambda *_: None  # pyright: ignore
    try:
        yield
    finally:
        rdb._VersionManager = kept  # pyright: ignore[reportPrivateUsage]


class BulkStorage(RDBStorage):
    """RDBStorage on PostgreSQL that reads trials, and writes a trial's batch, without ORM objects.

    While `brief` is set, the trials of a study come without parameters and without BRIEF
    (search/storage/sql.py); `trials_of` has them whole."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.brief = False
        self.last_writes: dict[int, Batch] = {}  # trial -> what is stored with its end
        self._known: dict[str, BaseDistribution] = {}  # by their JSON
        with unversioned() if settings.get("skip_compatibility_check") else nullcontext():
            super().__init__(url, **settings)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """One trial. KeyError when there is none of this id."""
        found = self.trials_of([trial_id])
        if not found:
            raise KeyError(f"No trial has the id {trial_id}.")
        return found[0]

    def trials_of(self, ids: Sequence[int]) -> list[FrozenTrial]:
        return self._selected(sql.THESE_TRIALS, {"ids": list(ids)})

    def waiting(self, study_id: int) -> list[FrozenTrial]:
        return self._selected(sql.WAITING, {"study": study_id})

    def _selected(self, query: str, which: dict[str, Any]) -> list[FrozenTrial]:
        with self.engine.connect() as connection:
            rows = connection.execute(text(query), which).all()
            return self._build(connection, cast("Sequence[Head]", rows))

    def rows(self, query: str, values: dict[str, Any]) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(text(query), values).all())

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Trials with a larger id, and the included ones, by id. KeyError when there is no such study."""
        which = {"study": study_id, "after": trial_id_greater_than, "also": list(included_trial_ids)}
        with self.engine.connect() as connection:
            rows = cast("Sequence[Head]", connection.execute(text(sql.TRIALS), which).all())
            if not rows and not connection.execute(text(sql.STUDY), which).all():
                raise KeyError(f"No study has the id {study_id}.")
            if states is not None:
                rows = [row for row in rows if TrialState[row[2]] in states]
            return self._build(connection, rows, brief=self.brief)

    def beat(self, trial_id: int) -> TrialState:
        """Writes a heartbeat; the trial's state. KeyError when there is no such trial."""
        with self.engine.begin() as connection:
            state = connection.execute(text(sql.BEAT), {"trial": trial_id}).scalar_one_or_none()
        if state is None:
            raise KeyError(f"No trial has the id {trial_id}.")
        return TrialState[state]

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: orm.Session
    ) -> models.TrialModel:
        """A trial is retried once: a repeated request gets the retry that is there. (The study is locked.)"""
        number = template_trial.system_attrs.get(RETRY_OF) if template_trial else None
        if number is not None:
            which = {"study": study_id, "key": RETRY_OF, "number": str(number)}
            found = session.execute(text(sql.RETRY), which).scalar_one_or_none()
            if found is not None:
                return session.get_one(models.TrialModel, found)
        return super()._get_prepared_new_trial(study_id, template_trial, session)

    def write_trial(self, trial_id: int, batch: Batch) -> None:
        """Stores the batch. UpdateFinishedTrialError, and nothing stored, when the trial is over."""
        with self.engine.begin() as connection:
            state = connection.execute(text(sql.LOCK_TRIAL), {"trial": trial_id}).scalar_one()
            self.check_trial_is_updatable(trial_id, TrialState[state])
            batch.write(connection, trial_id)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """As Optuna's, and what waited for the trial's end in the same transaction. (The row first: who
        writes a trial locks it so.)"""
        if batch := self.last_writes.get(trial_id):
            session = self.scoped_session()  # the one that Optuna commits
            session.execute(text(sql.LOCK_TRIAL), {"trial": trial_id})
            batch.write(session.connection(), trial_id)
        return super().set_trial_state_values(trial_id, state, values)

    def _build(
        self, connection: Connection, rows: Sequence[Head], *, brief: bool = False
    ) -> list[FrozenTrial]:
        """FrozenTrials of these rows of `trials`. The state was read first: what is finished is whole."""
        ids = [row[0] for row in rows]
        if not ids:
            return []
        own, which = [] if brief else ids, {"ids": ids, "without": sql.BRIEF if brief else []}
        facts: dict[str, dict[int, Any]] = {kind: {} for kind in sql.FACTS}
        with ThreadPoolExecutor(1) as beside:  # PostgreSQL puts the next answer together while we read one
            rest = beside.submit(self._read_params, own) if len(own) > MANY else None
            for query in [sql.ALL_FACTS] if len(ids) <= MANY else sql.FACTS.values():
                for kind, trial_id, value in connection.execute(text(query), which):
                    facts[kind][trial_id] = json.loads(value)
            params, distributions = rest.result() if rest else self._read_params(own, connection)
        values, steps, user, system = (facts[kind] for kind in sql.FACTS)
        return [
            FrozenTrial(
                number=number,
                state=TrialState[state],
                value=None,
                values=values.get(trial_id),
                datetime_start=_local(start),
                datetime_complete=_local(end),
                params=params.get(trial_id, {}),
                distributions=distributions.get(trial_id, {}),
                user_attrs=user.get(trial_id, {}),
                system_attrs=system.get(trial_id, {}),
                intermediate_values=dict(steps.get(trial_id, ())),
                trial_id=trial_id,
            )
            for trial_id, number, state, start, end in rows
        ]

    def _read_params(self, ids: Sequence[int], connection: Connection | None = None) -> Columns:
        """trial -> its parameters in the order of suggestion, and their distributions."""
        if connection is None:
            with self.engine.connect() as own:
                return self._read_params(ids, own)
        params: dict[int, dict[str, Any]] = {trial_id: {} for trial_id in ids}
        distributions: dict[int, dict[str, BaseDistribution]] = {trial_id: {} for trial_id in ids}
        heads: list[tuple[str, BaseDistribution]] = []
        keys = list[int]()
        owners = list[int]()
        kinds = list[int]()
        values = list[Any]()
        for name, written, its_keys, its_owners, its_values in connection.execute(text(PARAMS), {"ids": ids}):
            if written not in self._known:
                self._known[written] = json_to_distribution(written)
            keys += its_keys
            owners += its_owners
            kinds += repeat(len(heads), len(its_keys))
            values += map(self._known[written].to_external_repr, its_values)
            heads.append((name, self._known[written]))
        for k in sorted(range(len(keys)), key=keys.__getitem__):  # as they were suggested
            name, dist = heads[kinds[k]]
            params[owners[k]][name] = values[k]
            distributions[owners[k]][name] = dist
        return params, distributions


def _local(utc: datetime | None) -> datetime | None:
    """Optuna stores naive UTC and shows naive local time."""
    return None if utc is None else utc.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


class BatchStorage(_CachedStorage):
    """Optuna's cache over a BulkStorage; inside `collect(trial_id)` that trial's writes wait."""

    def __init__(self, backend: BulkStorage) -> None:
        super().__init__(backend)
        self.bulk = backend
        self.grace_s = backend.grace_period or 0
        self._batches: dict[int, Batch] = {}

    @contextmanager
    def collect(self, trial_id: int, *, until_told: bool = False) -> Generator[None]:
        """Writes to the trial are stored together at the block's end, also when it raises; may be nested.
        `until_told`: with the trial's end, so that none has a result and is not finished."""
        if trial_id in self._batches:
            yield
            return
        batch = self._batches[trial_id] = Batch(until_told=until_told)
        try:
            yield
        finally:
            if not until_told:
                del self._batches[trial_id]
                self.bulk.write_trial(trial_id, batch)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """With what waited for it; of a trial that failed that is no result, whatever its trainer said."""
        batch = self._batches.get(trial_id)
        if batch is None or not batch.until_told:
            return super().set_trial_state_values(trial_id, state, values)
        if state == TrialState.FAIL:
            batch.user.clear()
        self.bulk.last_writes[trial_id] = batch
        try:
            return super().set_trial_state_values(trial_id, state, values)
        finally:
            del self._batches[trial_id], self.bulk.last_writes[trial_id]

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        if batch := self._batches.get(trial_id):
            batch.params[param_name] = (float(param_value_internal), distribution)
        else:
            super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if batch := self._batches.get(trial_id):
            batch.user[key] = json.dumps(value)
        else:
            super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if batch := self._batches.get(trial_id):
            batch.system[key] = json.dumps(value)
        else:
            super().set_trial_system_attr(trial_id, key, value)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        batch = self._batches.get(trial_id)
        if batch is None or not math.isfinite(intermediate_value):
            super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        else:
            batch.steps[step] = float(intermediate_value)

    # with those that wait: who asks wants to know what is set already
    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        return self._with_waiting(trial_id, "system")

    def get_trial_user_attrs(self, trial_id: int) -> dict[str, Any]:
        return self._with_waiting(trial_id, "user")

    def _with_waiting(self, trial_id: int, kind: str) -> dict[str, Any]:
        batch = self._batches.get(trial_id)
        trial = batch.stored if batch is not None and batch.stored is not None else self.get_trial(trial_id)
        found = cast("dict[str, Any]", getattr(trial, f"{kind}_attrs"))
        if batch is None:
            return found
        batch.stored = trial
        waiting: Iterable[tuple[str, str]] = getattr(batch, kind).items()
        return found | {key: json.loads(value) for key, value in waiting}

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """As Optuna's; but who asks for a trial reads only those that wait."""
        if states != (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        found = self.bulk.waiting(study_id)
        with self._lock:
            known = self._studies.setdefault(study_id, _StudyInfo())
            self._add_trials_to_cache(study_id, found)
            known.unfinished_trial_ids |= {t._trial_id for t in found}  # pyright: ignore[reportPrivateUsage]
        return found

    def remove_session(self) -> None:
        self.bulk.remove_session()


@contextmanager
def collected(trial: Trial, *, until_told: bool = False) -> Generator[None]:
    """Writes to `trial` inside the block become one transaction, where its storage can do that."""
    storage = trial.storage
    if not isinstance(storage, BatchStorage):
        yield
        return
    with storage.collect(trial._trial_id, until_told=until_told):  # pyright: ignore[reportPrivateUsage]
        yield
