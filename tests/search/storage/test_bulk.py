"""Bulk reads give what Optuna's own reader gives; a batch is stored whole, once, or not at all."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator
from typing import Any, cast

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from search.session.session import Session
from search.storage import bulk as bulk_module
from search.storage import patient as storage
from search.storage.bulk import BatchStorage, collected
from tests.search.db_helpers import held_server

TIMING = storage.Timing(patience_s=10.0, heartbeat_s=1, grace_s=3)
ODD = ['quote " and \\ back', "new\nline", "ünï", "{}", "a'b", "%s :x"]

MIXED = [None, True, "x", 1.5]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with held_server() as (_, held):
        yield held


@pytest.fixture
def study(url: str, request: pytest.FixtureRequest) -> optuna.Study:
    opened = storage.open_storage(url, worker=False, timing=TIMING)
    return storage.open_study(opened, request.node.name, url=url)


def random_trial(rng: random.Random) -> FrozenTrial:
    """A trial with every kind of parameter, attribute, value and state, or little of it."""
    state = rng.choice(list(TrialState))
    kinds: dict[str, tuple[Any, optuna.distributions.BaseDistribution]] = {
        "f": (rng.uniform(0.1, 1.0), optuna.distributions.FloatDistribution(0.1, 1.0, log=True)),
        "wide": (rng.uniform(-1e9, 1e9), optuna.distributions.FloatDistribution(-1e9, 1e9)),
        "i": (rng.randrange(2, 9, 2), optuna.distributions.IntDistribution(2, 8, step=2)),
        "c": (rng.choice(MIXED), optuna.distributions.CategoricalDistribution(MIXED)),
        rng.choice(ODD): (rng.choice(ODD), optuna.distributions.CategoricalDistribution(ODD)),
    }
    names = rng.sample(list(kinds), rng.randrange(len(kinds) + 1))
    attributes = [None, 1, -2.5e-300, math.inf, "text", {"a": [1, {"b": ODD}]}, [], True]
    steps = [0.25, 1e308, -math.inf, math.inf]
    return optuna.create_trial(
        state=state,
        value=rng.choice([0.1, -1e-320, math.inf, -math.inf]) if state == TrialState.COMPLETE else None,
        params={name: kinds[name][0] for name in names},
        distributions={name: kinds[name][1] for name in names},
        user_attrs={key: rng.choice(attributes) for key in rng.sample([*ODD, "plain"], rng.randrange(5))},
        system_attrs={key: rng.choice(attributes) for key in rng.sample(ODD, rng.randrange(5))},
        intermediate_values={k: rng.choice(steps) for k in range(rng.randrange(4))},
    )


def test_a_brief_reading_leaves_out_parameters_and_configurations_alone(study: optuna.Study, url: str):
    rng = random.Random(5)
    for _ in range(30):
        trial = random_trial(rng)
        trial.set_user_attr("config", {"model_dim": rng.randrange(99)})
        trial.set_user_attr("violation_bytes", -0.5)
        trial.set_user_attr("worker", "host:1:0")  # a report's timeline is by worker
        trial.system_attrs["dashboard:note_str:0"] = "a note"
        study.add_trial(trial)
    expected = study.get_trials()
    opened = storage.open_storage(url, worker=True)
    opened.bulk.brief = True
    brief = optuna.load_study(study_name=study.study_name, storage=opened)
    session = Session(cast("Any", None), cast("Any", None), url, brief, cast("Any", None))
    found = brief.get_trials(deepcopy=False)
    assert not any(t.params or t.distributions or "config" in t.user_attrs for t in found)
    assert session.whole(found) == expected and session.whole(found[3:5]) == expected[3:5]
    for trial, short in zip(expected, found, strict=True):
        trial.params, trial.distributions = {}, {}
        del trial.user_attrs["config"], trial.user_attrs["violation_bytes"]
        del trial.system_attrs["dashboard:note_str:0"]
        assert short == trial


@pytest.mark.parametrize("many", [3, bulk_module.MANY])
def test_trials_are_those_of_optunas_reader(
    study: optuna.Study, url: str, many: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bulk_module, "MANY", many)
    rng = random.Random(3)
    for _ in range(60):
        study.add_trial(random_trial(rng))
    plain = RDBStorage(url)
    study_id = plain.get_study_id_from_name(study.study_name)
    expected = plain.get_all_trials(study_id)
    assert study.get_trials() == expected
    assert [list(t.params) for t in study.get_trials()] == [list(t.params) for t in expected]
    bulk = study._storage._backend  # type: ignore[attr-defined]
    for trial in rng.sample(expected, 5):
        assert bulk.get_trial(trial._trial_id) == trial
    after, also = expected[40]._trial_id, {t._trial_id for t in rng.sample(expected, 5)}
    states = (TrialState.RUNNING, TrialState.COMPLETE)
    args = (study_id, states, also, after)
    assert bulk._get_trials(*args) == plain._get_trials(*args)
    assert bulk._get_trials(study_id, None, set(), expected[-1]._trial_id) == []
    with pytest.raises(KeyError):
        bulk.get_trial(10**8)
    with pytest.raises(KeyError):
        study._storage.get_all_trials(10**8)


def asked(study: optuna.Study) -> optuna.Trial:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return study.ask()


def test_what_waits_is_what_optunas_reader_finds_waiting(study: optuna.Study, url: str):
    rng = random.Random(4)
    for _ in range(40):
        study.add_trial(random_trial(rng))
    study.enqueue_trial({"x": 0.5})
    plain, waits = RDBStorage(url), (TrialState.WAITING,)
    expected = plain.get_all_trials(plain.get_study_id_from_name(study.study_name), states=waits)
    fresh = optuna.load_study(study_name=study.study_name, storage=storage.open_storage(url, worker=True))
    assert expected and fresh.get_trials(states=waits) == expected
    taken = asked(fresh)
    assert taken.number == expected[0].number and fresh.get_trials(states=waits) == expected[1:]
    taken.suggest_int("n", 1, 9)
    assert fresh.get_trials() == plain.get_all_trials(plain.get_study_id_from_name(study.study_name))


def test_a_heartbeat_is_optunas_and_tells_the_state(study: optuna.Study, url: str):
    trial = asked(study)
    ours, plain = study._storage._backend, RDBStorage(url, heartbeat_interval=1, grace_period=2)  # type: ignore[attr-defined]
    query = "select heartbeat, now() at time zone current_setting('timezone') from trial_heartbeats"
    for _ in range(2):
        assert ours.beat(trial._trial_id) == TrialState.RUNNING
        (beat, now), *others = ours.rows(query, {})
        assert not others and abs((now - beat).total_seconds()) < 1.0
        plain.record_heartbeat(trial._trial_id)
        assert len(ours.rows(query, {})) == 1
    assert plain._get_stale_trial_ids(ours.get_study_id_from_name(study.study_name)) == []
    study.tell(trial, 1.0)
    assert ours.beat(trial._trial_id) == TrialState.COMPLETE
    with pytest.raises(KeyError):
        ours.beat(10**8)


def test_a_batch_is_what_single_writes_store(study: optuna.Study):
    def fill(trial: optuna.Trial) -> None:
        trial.suggest_float("x", 0.1, 2.0, log=True)
        trial.suggest_int("n", 1, 9)
        trial.suggest_categorical("c", ["a", None, 3])
        trial.set_user_attr("plain", {"deep": [1, "%s", ODD]})
        trial.set_user_attr("plain", "again")
        trial.set_constraint("bytes", -0.5)
        assert trial.constraints == {"bytes": -0.5}
        with pytest.warns(UserWarning, match="already set"):
            trial.set_constraint("bytes", 0.5)
        for step, value in ((1, 0.5), (2, math.nan), (3, 0.25)):
            trial.report(value, step)

    study.sampler = optuna.samplers.RandomSampler(seed=1)
    one = asked(study)
    fill(one)
    study.sampler = optuna.samplers.RandomSampler(seed=1)
    two = asked(study)
    with collected(two):
        fill(two)
        with collected(two):  # part of the outer one
            two.set_user_attr("inner", 1)
        assert "inner" not in study.trials[1].user_attrs
    a, b = study.trials
    assert b.user_attrs.pop("inner") == 1
    assert repr(a.intermediate_values) == repr(b.intermediate_values)
    for kind in ("params", "distributions", "user_attrs", "system_attrs", "constraints"):
        assert getattr(a, kind) == getattr(b, kind)
    assert list(a.params) == list(b.params) == ["x", "n", "c"]


def test_what_a_failing_block_wrote_is_kept(study: optuna.Study):
    trial = asked(study)
    with pytest.raises(ZeroDivisionError), collected(trial):
        trial.suggest_float("x", 0.0, 1.0)
        raise ZeroDivisionError
    assert study.trials[0].params == trial.params != {}


def test_a_finished_trial_takes_no_batch(study: optuna.Study):
    trial = asked(study)
    with pytest.raises(UpdateFinishedTrialError), collected(trial):
        trial.suggest_float("x", 0.0, 1.0)
        other = optuna.load_study(study_name=study.study_name, storage=study._storage)
        other.tell(trial.number, state=TrialState.FAIL)
    assert study.trials[0].params == {} and isinstance(study._storage, BatchStorage)


def finished(study: optuna.Study) -> optuna.Trial:
    """A trial whose result is known and not yet told."""
    trial = asked(study)
    trial.set_user_attr("config", 1)
    with collected(trial, until_told=True):
        trial.set_user_attr("outcome", "finished")
    with collected(trial):
        trial.set_constraint("bytes", -0.5)
    assert study.trials[trial.number].user_attrs == {"config": 1}
    return trial


def test_a_result_is_stored_with_the_trial_s_end_or_not_at_all(study: optuna.Study):
    told, pruned, lost, failed = (finished(study) for _ in range(4))
    storage = study._storage
    assert isinstance(storage, BatchStorage)
    study.tell(told, 1.5)
    study.tell(pruned, state=TrialState.PRUNED)
    elsewhere = optuna.load_study(study_name=study.study_name, storage=storage.bulk)
    elsewhere.tell(lost.number, state=TrialState.FAIL)  # its worker died between writing and telling
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(lost._trial_id, TrialState.COMPLETE, [1.0])
    study.tell(failed, state=TrialState.FAIL)
    seen = [
        (t.state.name, t.values, t.user_attrs.get("outcome"), dict(t.constraints)) for t in elsewhere.trials
    ]
    assert seen == [
        ("COMPLETE", [1.5], "finished", {"bytes": -0.5}),
        ("PRUNED", None, "finished", {"bytes": -0.5}),
        ("FAIL", None, None, {}),
        ("FAIL", None, None, {"bytes": -0.5}),
    ]
    assert not storage._batches and not storage.bulk.last_writes


def test_a_batch_needs_no_database_of_ours():
    trial = optuna.create_study().ask()
    with collected(trial):
        trial.set_user_attr("a", 1)
    assert trial.study.trials[0].user_attrs == {"a": 1}
