"""Costs that a new study takes over from finished ones in the same real PostgreSQL, and what it leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState, create_trial

from search.common.attributes import CODE_HASH, FIGURES, STAGE_SECONDS, TRAINER, TRUE_SECONDS
from search.common.paths import ROOT
from search.costs.bills import model_bill, num_params
from search.costs.factors import CARRIED
from search.costs.preflight import Preflight
from search.samplers.admission import Infeasible
from search.samplers.caddie import CaddieSampler
from search.session.passport import check_joining
from search.session.session import Session, open_session
from search.space.native import build_space
from search.study.load import find_study
from search.study.model import Study
from search.workers.warm_start import WarmStart, find_warm_start
from techniques import catalog
from tests.search.db_helpers import held_server
from tests.search.fake_studies import FAKE, caddie, clear, search, write_study
from tests.search.fake_studies import read_trials as read_trials_of
from tests.search.fakes import KNOWN, make_study
from tests.search.replay import FILE, read_trials

pytestmark = pytest.mark.slow
HERE = "Cray-1, 2 cores, 1 thread"
NUM = 20  # trials of the older study
TOLD = {*FIGURES, STAGE_SECONDS} - {TRUE_SECONDS}  # that the file of trials has of a result


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with held_server() as (_, url):
        yield url


def begin(url: str, home: Path, name: str, *, code: str = "", **changes: Any) -> Session:
    """A study of this name on the own_text space; `code`: it runs another trainer."""
    study = dataclasses.replace(find_study(ROOT / "studies" / "own_text.toml"), name=name, **changes)
    session = open_session(study, home=home, storage=url, environ=os.environ)
    if code:
        session.optuna_study.set_user_attr(CODE_HASH, code)
    else:
        check_joining(session, mixed=False)
    return session


def fill(session: Session, count: int, *, hardware: str = HERE, **changes: Any) -> None:
    """The first `count` measured trials of own_text, as a worker stores them."""
    told = json.loads(FILE.read_text(encoding="utf-8"))
    for trial in [t for t in told["trials"] if "result" in t][:count]:
        figures = {key: trial["result"][key] for key in TOLD}
        config = {"preset": told["preset"], **told["fixed"], **trial["config"], **changes}
        attrs = {"config": config, "passport": {"hardware": hardware, "world_size": 1}, **figures}
        session.optuna_study.add_trial(create_trial(value=2.0, user_attrs=attrs))


CLONES = """
with old as (select * from trials where study_id = :s), new as (
 insert into trials (number, study_id, state, datetime_start, datetime_complete)
 select number + :n * k, study_id, state, datetime_start, datetime_complete from old, generate_series(1, :k) k
 returning trial_id, number)
insert into trial_user_attributes (trial_id, key, value_json)
select new.trial_id, a.key, a.value_json from new join old on old.number = new.number % :n
join trial_user_attributes a on a.trial_id = old.trial_id"""


def fill_by_copies(session: Session, url: str, copies: int) -> None:
    """So many more of each of its trials (a copy costs the database alone)."""
    which = {"s": session.optuna_study._study_id, "n": NUM, "k": copies}  # pyright: ignore[reportPrivateUsage]
    with sqlalchemy.create_engine(url).begin() as database:
        database.execute(sqlalchemy.text(CLONES), which)


def learnt(session: Session) -> tuple[WarmStart, Preflight]:
    found = find_warm_start(session, HERE)
    preflight = Preflight(session.study, hardware=HERE, prior={})
    found.apply(preflight)
    return found, preflight


def test_a_new_study_begins_where_another_ended(url: str, tmp_path: Path) -> None:
    older = begin(url, tmp_path, "older")
    fill(older, NUM)
    older.optuna_study.add_trial(create_trial(state=TrialState.FAIL))
    fresh = begin(url, tmp_path, "fresh")
    found, taught = learnt(fresh)
    assert found.summary() == f"costs: learnt from {NUM} trials of study older"
    cold = Preflight(fresh.study, hardware=HERE, prior={})
    errors = dict[str, list[float]]()
    for trial in read_trials()[-40:]:
        if trial.result is None:
            continue
        said, guess = taught.predict(trial.resolved), cold.predict(trial.resolved)
        assert guess.train_seconds is None and said.train_seconds and said.eval_seconds
        for name, predicted in (("taught", said), ("cold", guess)):
            code = cold.code_bytes(trial.resolved)  # today's: the trials' own is not carried over
            packed = trial.result["artifact_bytes"] - trial.result["code_bytes"]
            error = abs(packed / (predicted.artifact_bytes - code) - 1.0)
            errors.setdefault(name, []).append(error)
            doubt = np.log(predicted.artifact_bytes_upper / predicted.artifact_bytes)
            errors.setdefault(f"doubt, {name}", []).append(doubt)
        seconds = abs(np.log(trial.result["train_seconds"] / said.train_seconds))
        errors.setdefault("seconds", []).append(seconds)
    assert np.mean(errors["taught"]) < min(0.025, np.mean(errors["cold"]))
    assert np.mean(errors["doubt, taught"]) < 0.5 * np.mean(errors["doubt, cold"])
    assert np.mean(errors["seconds"]) < 0.4
    fill(fresh, NUM)
    fill_by_copies(fresh, url, CARRIED // NUM)
    assert find_warm_start(fresh, HERE).summary() == ""  # its own would push out all of it
    assert (
        find_warm_start(begin(url, tmp_path, "older"), HERE).summary()
        == f"costs: learnt from {CARRIED} trials of study fresh"
    )
    for name in ("older", "fresh"):
        optuna.delete_study(study_name=name, storage=fresh.optuna_study._storage)  # pyright: ignore


def test_what_does_not_compare_is_left(url: str, tmp_path: Path) -> None:
    fill(begin(url, tmp_path, "elsewhere"), 6, hardware="Cray-2")
    fill(begin(url, tmp_path, "theirs", code="0123"), 4)
    fill(begin(url, tmp_path, "unread"), 3, model_dim=96)  # not the model whose parameters were counted
    fill(begin(url, tmp_path, "kernels"), 5, compute_dtype="bfloat16")
    fill(begin(url, tmp_path, "whole"), 7, val_tokens=0)
    fill(begin(url, tmp_path, "alike"), 2)
    found, preflight = learnt(begin(url, tmp_path, "now"))
    told = {trial.study: trial.result for trial in found.trials}
    assert set(told) == {"elsewhere", "kernels", "whole", "alike"}
    assert not {"train_seconds", "eval_seconds", "stage_seconds"} & {*told["elsewhere"], *told["kernels"]}
    assert "train_seconds" in told["whole"] and "eval_seconds" not in told["whole"]
    assert found.summary().startswith(
        "costs: learnt from 20 trials of studies alike, whole, kernels and 1 more, "
    )
    assert found.summary().endswith("seconds of this machine from 9")
    assert found.summary(seconds=False).endswith("and 1 more")
    assert [len(ledger.carried) for ledger in (preflight.model_bytes, preflight.seconds("eval"))] == [
        20,
        2,
    ]
    theirs = begin(url, tmp_path, "theirs too", code="0123")  # another trainer, the same version of it
    assert {trial.study for trial in find_warm_start(theirs, HERE).trials} == {"theirs"}
    assert TRAINER not in theirs.optuna_study.user_attrs


def test_two_thousand_trials_do_not_hold_up_the_start(url: str, tmp_path: Path) -> None:
    long = begin(url, tmp_path, "long")
    fill(long, NUM)
    fill_by_copies(long, url, 2000 // NUM)
    fresh, took = begin(url, tmp_path, "after long"), list[float]()
    for _ in range(3):
        began = time.process_time()
        lessons, _ = learnt(fresh)
        took.append(time.process_time() - began)
    assert len(lessons.trials) == CARRIED
    assert min(took) < 0.6, took  # 0.3 measured, of this process: wall time is the machine's


PLAIN = """
[techniques]
others = "off"
[space]
matrix_lr = {low = 0.01, high = 0.1, log = true}
[sampler]
max_resamples = 5
"""
LIMITS = """
[study]
name = "fake"
preset = "laptop"
track = "record"
[limits]
artifact_bytes = {bytes}
train_seconds = 100
eval_seconds = 10
"""


def taught(folder: Path, limits: str, *, size: float = 1.0, speed: float = 1e-9) -> tuple[Study, Preflight]:
    """A study of the fake catalogue that another one taught: its models were `size` times as large."""
    study = make_study(folder, PLAIN, header=limits)
    space, preflight = build_space(study, KNOWN), Preflight(study)
    for k in range(8):
        seen = space.resolve({"matrix_lr": 0.02 + 0.01 * k})
        bytes_ = round(size * model_bill(seen).total)
        result = {
            "code_bytes": 1000,
            "artifact_bytes": 1000 + bytes_,
            "eval_seconds": 50.0,
            "train_seconds": 50.0,
        }
        preflight.learn([(seen, result | {"eval_seconds": speed + k * 1e-3})], study="other")
    return study, preflight


def test_seconds_of_others_predict_and_turn_nobody_away(tmp_path: Path) -> None:
    study, preflight = taught(tmp_path, LIMITS.format(bytes=100_000_000), speed=500.0)
    space = build_space(study, KNOWN)
    plain = space.resolve({})
    assert preflight.predict(plain).eval_seconds == pytest.approx(500, rel=0.1)
    assert preflight.rejection(plain) is None
    assert preflight.rejection(plain) is None
    for k in range(3):  # here it is five times as fast, and too slow for the limit
        preflight.learn([(space.resolve({"matrix_lr": 0.05 + 0.001 * k}), {"eval_seconds": 100.0 + k})])
        assert preflight.rejection(plain) is not None
    assert preflight.predict(plain).eval_seconds == pytest.approx(100, rel=0.1)  # its own trials win
    assert (preflight.rejection(plain) or "").startswith("eval: ")
    preflight.learn([(space.resolve({"matrix_lr": 0.09}), {"eval_seconds": 101.0})])
    with pytest.raises(AssertionError):
        late = Preflight(study)
        late.learn([(plain, {"eval_seconds": 1.0})])
        late.learn([(plain, {"eval_seconds": 2.0})], study="other")


def test_what_leaves_nothing_to_try_is_forgotten(tmp_path: Path) -> None:
    """Models of the other study came out ten times as large: then no configuration would fit."""
    study, preflight = taught(tmp_path, LIMITS.format(bytes=1_000_000), size=10.0)
    space = build_space(study, KNOWN)
    assert (preflight.rejection(space.resolve({})) or "").startswith("bytes: ")
    sampler = CaddieSampler(space, preflight, seed=0)
    optimizer = optuna.create_study(sampler=sampler)
    space.suggest(optimizer.ask())
    assert not preflight.model_bytes.carried and preflight.rejection(space.resolve({})) is None
    tight = make_study(
        tmp_path,
        PLAIN.replace("matrix_lr = {low = 0.01, high = 0.1, log = true}", "num_layers = {low = 2, high = 3}"),
        header=LIMITS.format(bytes=10),
    )
    sampler = CaddieSampler(build_space(tight, KNOWN), Preflight(tight), seed=0)
    with pytest.raises(Infeasible):
        optuna.create_study(sampler=sampler).ask().suggest_int("num_layers", 2, 3)


@pytest.mark.long
def test_the_second_study_on_a_database_says_what_it_learnt(tmp_path: Path) -> None:
    """Real workers; their trainer tells the model's true size, without which nothing of it is believed."""
    trainer, first = tmp_path / "exact.py", write_study(tmp_path, "first")
    params = num_params(build_space(find_study(first), catalog.metadata()).resolve({}))
    told = f'"params": {params:_}, "world_size": 1,'
    trainer.write_text(FAKE.read_text().replace('"params": 100_000,', told))
    for name, line in (("first", ""), ("second", "costs: learnt from 2 trials of study first  [")):
        words = search(write_study(tmp_path, name), tmp_path, 2, 1)[:-1]
        ran = caddie(*words, f"--trainer={trainer}")
        assert ran.returncode == 0, ran.stderr
        assert line in ran.stdout if line else "costs: " not in ran.stdout, ran.stdout
    predicted = [t["attrs"]["preflight"] for t in read_trials_of(tmp_path / "second.toml", tmp_path)]
    assert all({"artifact_bytes", "train_seconds", "eval_seconds"} <= set(told) for told in predicted)
    clear(tmp_path)
