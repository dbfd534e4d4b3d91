"""The best is who is believed to be, not who was lucky: the posterior mean ranks what nobody confirmed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, create_trial
from rich.console import Console

from claims.confirm import contenders_of
from search.common.paths import Folders
from search.report import rows
from search.report.leaderboard import print_leaderboard
from search.report.rows import LEAST, beliefs_of_study, ranked
from search.report.status import print_status
from search.samplers.structured.beliefs import LARGEST
from search.session.session import Session
from search.study.load import find_study
from search.trainers.trainer import trainer_of
from tests.search.fake_studies import write_study
from tests.search.report.test_report import GOOD

DISTS = {"xsa": CategoricalDistribution((False, True)), "matrix_lr": FloatDistribution(0.01, 0.1)}
LUCK = 0.2


def session_of(folder: Path, trials: Sequence[FrozenTrial]) -> Session:
    study = find_study(write_study(folder, "believed"))
    stored = optuna.create_study()
    stored.add_trials(trials)
    return Session(study, Folders(folder, "believed"), "", stored, trainer_of(study))


def trials_of(count: int, *, lucky: int) -> list[FrozenTrial]:
    """`xsa` takes 0.1 off, noise is 0.005, and one trial without it has luck that nobody repeats."""
    rng = np.random.default_rng(0)
    found: list[FrozenTrial] = []
    for k in range(count):
        on = k % 2 == 1
        value = 2.5 - 0.1 * on + float(rng.normal(0.0, 0.005)) - LUCK * (k == lucky)
        params: dict[str, Any] = {"xsa": on, "matrix_lr": float(rng.uniform(0.01, 0.1))}
        attrs = {"config": {"xsa": on, "matrix_lr": params["matrix_lr"]}, "hash": str(k), "steps": 10}
        found.append(
            create_trial(value=value, params=params, distributions=DISTS, constraints=GOOD, user_attrs=attrs)
        )
    return found


def told(show: Any, session: Session) -> str:
    console = Console(file=io.StringIO(), width=80)
    show(console, session)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_luck_does_not_win(tmp_path: Path) -> None:
    """Both values are shown; a confirmation races who is believed to be good."""
    session = session_of(tmp_path, trials_of(60, lucky=10))
    trials = session.optuna_study.trials
    beliefs = beliefs_of_study(session.optuna_study, trials)
    good, _ = ranked(trials, beliefs=beliefs)
    assert ranked(trials)[0][0].number == 10 and good[0].number % 2 == 1
    assert abs(beliefs[10] - trials[10].value) > 0.2 * LUCK  # type: ignore[operator]
    text = told(print_leaderboard, session)
    best = good[0].number
    assert f"Best: #{best}, believed {beliefs[best]:.4f}, observed {good[0].value:.4f} bits/byte" in text
    assert "Ranked by what is believed." in " ".join(text.split()), "nothing is confirmed"
    assert max(map(len, text.split("To confirm")[0].splitlines())) <= 80
    assert "Best observed: #10, 2." in told(print_status, session)  # without a fit
    arm = contenders_of(session, contenders_of(session, _reference(session), 1)[0].arm, 1)
    assert arm[0].number % 2 == 1


def _reference(session: Session) -> Any:
    from claims.arms import arm_of_trial

    return arm_of_trial(session, 0)


def test_new_trials_are_known_at_once(tmp_path: Path) -> None:
    session = session_of(tmp_path, trials_of(40, lucky=10))
    before = beliefs_of_study(session.optuna_study, session.optuna_study.trials)
    session.optuna_study.add_trials(trials_of(20, lucky=-1))
    after = beliefs_of_study(session.optuna_study, session.optuna_study.trials)
    assert len(after) == 60 and before[10] != after[10]


def test_few_trials_are_told_as_observed(tmp_path: Path) -> None:
    session = session_of(tmp_path, trials_of(LEAST - 1, lucky=2))
    assert not beliefs_of_study(session.optuna_study, session.optuna_study.trials)
    text = " ".join(told(print_leaderboard, session).split())
    assert "Best: #2, observed 2." in text and "nothing else is believed before 20 complete" in text


def test_where_nothing_varies_nothing_is_believed(tmp_path: Path) -> None:
    """Neighbours of the kind: trials without parameters, and with those of another program."""
    one: dict[str, BaseDistribution] = {"a": CategoricalDistribution((1,))}
    for params, dists in ((dict[str, Any](), {}), ({"a": 1}, one)):
        trials = [
            create_trial(value=2.0 + k, params=params, distributions=dists, constraints=GOOD)
            for k in range(30)
        ]
        session = session_of(tmp_path, trials)
        assert not beliefs_of_study(session.optuna_study, session.optuna_study.trials)


def test_a_large_study_reads_the_newest_and_the_best(tmp_path: Path, monkeypatch: Any) -> None:
    """The best of all is old: it is still ranked by what is believed."""
    monkeypatch.setattr("search.samplers.believed.LARGEST", 60)
    monkeypatch.setattr("search.samplers.believed.BEST", 10)
    session = session_of(tmp_path, trials_of(200, lucky=10))
    beliefs = beliefs_of_study(session.optuna_study, session.optuna_study.trials)
    assert len(beliefs) == 60 < LARGEST and 10 in beliefs and {*range(150, 200)} <= beliefs.keys()
    assert rows.ranked(session.optuna_study.trials, beliefs=beliefs)[0][0].number != 10
