"""Replicates in reports: a configuration counts once, by its mean; each run is one observation."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from pages.facts import facts_of
from pages.words import headline
from search.common.attributes import CONFIRMED, OUTCOME, REPLICATE, UNUSED
from search.common.paths import Folders
from search.report.effects import find_effects
from search.report.leaderboard import print_leaderboard
from search.report.rows import confirmed_of, ranked, snapshot
from search.report.trial import print_trial
from search.session.session import Session
from search.study.load import find_study
from search.trainers.trainer import trainer_of
from tests.search.fake_studies import write_study
from tests.search.report.test_report import GOOD, printed, trial_of


def again(of: int, seed: int, value: float | None, **more: Any) -> FrozenTrial:
    return trial_of(value, **{REPLICATE: {"of": of, "seed": seed}, **more})


@pytest.fixture
def session(tmp_path: Path) -> Session:
    path = write_study(tmp_path, "told")
    path.write_text(path.read_text().replace("[sampler]", "[sampler]\nreplicates = 3"))
    study = find_study(path)
    stored = optuna.create_study()
    stored.add_trials([trial_of(2.00), trial_of(2.03), trial_of(2.05)])
    stored.add_trials([again(0, 7, 2.10), again(1, 7, 2.02), again(0, 9, 2.09)])  # the first was lucky
    return Session(study, Folders(tmp_path, "told"), "", stored, trainer_of(study))


def test_a_configuration_is_ranked_once_by_its_mean(session: Session) -> None:
    trials = session.optuna_study.trials
    good, bad = ranked(trials)
    assert [t.number for t in good] == [1, 2, 0] and not bad
    best = snapshot(trials, 9).best
    assert best is not None and best.number == 1 and best.confirmed.startswith("2.0250 ± 0.0071 (2 seeds)")
    assert snapshot(trials, 9).complete == 6  # runs are runs
    session.optuna_study.set_user_attr("baseline", {"val_bpb": 2.125, "hash": "abc"})
    text = printed(print_leaderboard, session)
    assert "told: 3 feasible trials" in text and "mean of seeds" in text and "confirmed BPB" not in text
    assert "One seed each but for #1, #0: a seed alone" in text  # one of the three has one
    assert "the mean of trial #1's 2 seeds stands -0.1000 from it." in text
    assert "Best: #1, 2.0250 ± 0.0071 (2 seeds), first run 2.0300 bits/byte" in text
    session.optuna_study.add_trials([trial_of(2.02, hash="abc"), again(6, 7, 2.00)])
    assert "the best, trial #6, is that configuration." in printed(print_leaderboard, session)


def test_where_all_have_replicates_nobody_is_told_of_one_seed(session: Session) -> None:
    session.optuna_study.add_trial(again(2, 7, 2.05))
    assert "One seed each" not in printed(print_leaderboard, session)


def test_one_that_fails_or_breaks_a_limit_on_another_seed_stands_behind(session: Session) -> None:
    session.optuna_study.add_trial(again(1, 9, 2.01, broken="eval"))
    assert [t.number for t in ranked(session.optuna_study.trials)[0]] == [2, 0, 1]
    text = printed(print_leaderboard, session)
    assert "2.0200 ± 0.0100 (3 seeds)!" in text
    session.optuna_study.add_trial(again(2, 7, None, state=TrialState.PRUNED, broken="run"))
    assert [t.number for t in ranked(session.optuna_study.trials)[0]] == [0, 1, 2]
    lost = again(0, 11, None, state=TrialState.FAIL)
    session.optuna_study.add_trial(lost)  # the machine's fault says nothing of its configuration
    assert [t.number for t in ranked(session.optuna_study.trials)[0]] == [0, 1, 2]


def test_a_confirmation_stands_over_replicates(session: Session) -> None:
    study = session.optuna_study
    facts = {"bpb": 2.2, "sd": 0.1, "seeds": {"1": 2.2}, "sound": True, "beaten_by": ""}
    study.set_user_attr(CONFIRMED, {"0": facts})
    confirmed = confirmed_of(study, study.trials)
    assert confirmed[0]["bpb"] == 2.2 and confirmed[1]["bpb"] == pytest.approx(2.025)
    assert [t.number for t in ranked(study.trials, confirmed)[0]] == [0, 1, 2]


def test_show_tells_of_what_a_trial_is_a_replicate(session: Session) -> None:
    assert "of trial #0, on seed 7" in printed(print_trial, session, 3)
    assert "mean of seeds" in (text := printed(print_trial, session, 0)) and "2.0633" in text


def test_a_trial_that_found_nothing_left_is_not_told_as_lost() -> None:
    stored = optuna.create_study()
    stored.add_trial(trial_of(None, TrialState.FAIL, **{OUTCOME: UNUSED}))
    assert snapshot(stored.trials, 9).failed == 0


def test_effects_take_each_run_as_one_noisy_observation() -> None:
    """A switch that does nothing, tried by one lucky configuration: its replicates take the luck away."""
    rng = random.Random(3)
    space = {n: CategoricalDistribution((False, True)) for n in ("a", "b", "c", "d")}

    def run(params: dict[str, bool], value: float, **attrs: Any) -> FrozenTrial:
        return create_trial(
            params=params, distributions=dict(space), value=value, constraints=GOOD, user_attrs=attrs
        )

    stored = optuna.create_study()
    for k in range(16):
        params = {name: bool(k >> i & 1) for i, name in enumerate(space)}
        stored.add_trial(run(params, 2.0 - 0.1 * params["a"] + rng.gauss(0.0, 0.02)))
    for k in range(16):
        for seed in range(3):
            value = 2.0 - 0.1 * bool(k & 1) + rng.gauss(0.0, 0.02)
            stored.add_trial(run(stored.trials[k].params, value, **{REPLICATE: {"of": k, "seed": seed}}))
    found = find_effects(stored.trials)
    effects = {e.name: e for e in found.techniques}
    assert found.trials == 64 and 0.01 < found.noise_sd < 0.03
    assert effects["a"].mean == pytest.approx(-0.1, abs=0.015) and effects["a"].verdict == "helps"
    assert all(abs(effects[name].mean) < 0.012 for name in "bcd" if name in effects)


def test_the_page_of_a_study_has_a_configuration_once(session: Session) -> None:
    facts = facts_of(session)
    assert facts.best == (1, 2, 0) and [g.label for g in facts.groups] == ["#1", "#0"]
    assert "2.0250 ± 0.0071 (2 seeds)" in headline(facts)
