"""The choice between new weights and cached ones: the share is kept, configurations are new and admitted."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial

from search.common.attributes import FROM_CHECKPOINT, REPORTS, STAGE_REUSE
from search.costs.preflight import Preflight
from search.report.rows import reuse_of_study, reuse_of_trial
from search.samplers.caddie import CaddieSampler
from search.samplers.checkpoints import BEST, PATIENCE, StageChooser
from search.samplers.choose import sampled_by
from search.space.native import build_space
from search.space.space import Space, is_later, training_key
from search.study.limits import set_all, violations
from search.study.model import Study
from techniques.base import Technique
from techniques.config import Resolved
from tests.search.fakes import HEADER, KNOWN, FineRound, Slide, make_study

SPACE = """
[techniques]
fit = "off"
cooling = "off"
rival = "off"
peek = "off"
[space]
matrix_lr = {low = 0.005, high = 0.5, log = true}
[sampler]
startup_trials = 6
"""


class LateRound(FineRound):
    stage = "quantize"


class LateSlide(Slide):
    stage = "evaluate"


STAGED: dict[str, type[Technique]] = {
    **{n: t for n, t in KNOWN.items() if n not in ("coarse_round",)},
    "fine_round": LateRound,
    "slide": LateSlide,
}
TRAIN_S, REST_S = 20.0, 5.0


class Rig:
    """A study on an analytic objective in which training takes TRAIN_S and the rest REST_S."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        share: float = 0.25,
        header: str = HEADER,
        kind: str = "tpe",
        cached: bool = True,
        seed: int = 0,
    ):
        monkeypatch.setattr("tests.search.fakes.KNOWN", STAGED)
        self.study: Study = sampled_by(make_study(folder, SPACE, header=header), kind)
        self.space: Space = build_space(self.study, STAGED)
        preflight = Preflight(self.study)
        preflight._file_sizes = {"": 1000}  # type: ignore[reportPrivateUsage]
        self.trained: set[str] = set()
        self.chooser = StageChooser(self.space, share, self.is_cached)
        stages = self.chooser if cached else None
        self.sampler = CaddieSampler(self.space, preflight, seed=seed, stages=stages)
        self.optuna = optuna.create_study(sampler=self.sampler)
        self.over = False  # whether trials break a limit

    def is_cached(self, resolved: Resolved) -> bool:
        return training_key(resolved) in self.trained

    def run(self, count: int) -> list[FrozenTrial]:
        for _ in range(count):
            trial = self.optuna.ask()
            params = self.space.suggest(trial)
            key = training_key(self.space.resolve(params))
            hit = key in self.trained
            self.trained.add(key)
            seconds = {"train": TRAIN_S, "evaluate": REST_S}
            spent_s = REST_S if hit else TRAIN_S + REST_S
            reused = ["train"] if hit else []
            facts = {"seconds": seconds, "reused": reused, "spent_s": spent_s, "saved_s": TRAIN_S * hit}
            trial.set_user_attr(STAGE_REUSE, facts)
            result = {
                "artifact_bytes": 10**9 if self.over else 1000,
                "train_seconds": TRAIN_S,
                "eval_seconds": REST_S,
            }
            for name, figure in result.items():  # what the preflight learns the stages' seconds from
                trial.set_user_attr(name, figure)
            set_all(trial, violations(result, self.study.limits))
            self.optuna.tell(trial, bpb(params))
        return self.optuna.get_trials()


def bpb(params: dict[str, Any]) -> float:
    value = 2.0 + abs(params["matrix_lr"] - 0.05) - 0.05 * bool(params.get("fine_round"))
    return value + 0.1 * abs(params.get("fine_round.damp", 0.1) - 0.02) - 0.02 * bool(params.get("slide"))


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path, monkeypatch)


def sent(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [t for t in trials if FROM_CHECKPOINT in t.user_attrs]


def test_parameters_belong_to_the_stage_that_first_reads_them(rig: Rig) -> None:
    later = {name for name in rig.space.distributions if is_later(rig.space, name)}
    assert later == {"fine_round", "fine_round.damp", "slide", "slide.stride"}


def test_the_share_of_seconds_is_kept_and_what_is_sent_is_a_hit(rig: Rig) -> None:
    trials = rig.run(50)
    on_cached = sent(trials)
    assert len(on_cached) > 15  # 5 s against 25 s: a quarter of the seconds is many trials
    assert all(t.user_attrs[STAGE_REUSE]["reused"] == ["train"] for t in on_cached)
    spent = [t.user_attrs[STAGE_REUSE]["spent_s"] for t in trials]
    assert sum(t.user_attrs[STAGE_REUSE]["spent_s"] for t in on_cached) <= 0.25 * sum(spent) + 1e-9
    keys = {rig.space.resolve(t.params).hash() for t in trials}
    assert len(keys) == len(trials)  # no configuration twice


def test_only_later_parameters_move_on_cached_weights(rig: Rig) -> None:
    trials = rig.run(40)
    for trial in sent(trials):
        key = trial.user_attrs[FROM_CHECKPOINT]
        assert training_key(rig.space.resolve(trial.params)) == key
        first = next(t for t in trials if training_key(rig.space.resolve(t.params)) == key)
        same = [n for n in trial.params if not is_later(rig.space, n)]
        assert {n: trial.params[n] for n in same} == {n: first.params[n] for n in same}


def test_the_best_checkpoints_are_taken_and_left_when_nothing_comes_of_them(rig: Rig) -> None:
    trials = rig.run(60)
    for trial in sent(trials):
        before = trials[: trial.number]
        values: dict[str, float] = {}
        for other in before:
            key = training_key(rig.space.resolve(other.params))
            values[key] = min(values.get(key, 9.0), other.value or 9.0)
        assert trial.user_attrs[FROM_CHECKPOINT] in sorted(values, key=lambda k: values[k])[:BEST]
    by_key: dict[str, int] = {}
    best: dict[str, float] = {}
    for trial in trials:
        key = training_key(rig.space.resolve(trial.params))
        value = trial.value or 9.0
        better = value < best.get(key, 9.0)
        best[key] = min(value, best.get(key, 9.0))
        if FROM_CHECKPOINT in trial.user_attrs:
            by_key[key] = 0 if better else by_key.get(key, 0) + 1
            assert by_key[key] <= PATIENCE


def test_without_a_checkpoint_at_hand_everything_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evicted = Rig(tmp_path, monkeypatch)
    monkeypatch.setattr(evicted.chooser, "cached", lambda _: False)
    assert sent(evicted.run(12)) == []
    over = Rig(tmp_path, monkeypatch)
    over.over = True  # what breaks a limit is no checkpoint
    assert sent(over.run(12)) == []
    none = Rig(tmp_path, monkeypatch, share=0.0)
    assert sent(none.run(12)) == []


def test_an_exhausted_checkpoint_does_not_stop_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, monkeypatch, share=1.0)
    rig.chooser.later = {"slide.stride"}  # where the scorer is off, nothing is left to vary
    trials = rig.run(12)
    assert len({rig.space.resolve(t.params).hash() for t in trials}) == 12
    assert any(t.params["slide"] is False for t in trials)


def test_running_trials_count_against_the_share(rig: Rig) -> None:
    rig.run(20)
    taken = [rig.chooser.choose(rig.optuna.get_trials())]
    asked = [rig.optuna.ask() for _ in range(6)]
    for trial in asked:
        rig.space.suggest(trial)
    running = [t for t in rig.optuna.get_trials() if not t.state.is_finished()]
    whole = sum(
        t.user_attrs[STAGE_REUSE]["spent_s"] for t in rig.optuna.get_trials() if STAGE_REUSE in t.user_attrs
    )
    on_cached = sum(
        t.user_attrs[STAGE_REUSE]["spent_s"]
        for t in sent(rig.optuna.get_trials())
        if STAGE_REUSE in t.user_attrs
    )
    on_cached += REST_S * len(sent(running))
    whole += REST_S * len(sent(running)) + (TRAIN_S + REST_S) * (len(running) - len(sent(running)))
    assert on_cached <= 0.25 * whole + 1e-9 and len(running) == 6 and len(taken) == 1


def test_what_was_saved_is_told(rig: Rig) -> None:
    trials = rig.run(30)
    saved = sum(t.user_attrs[STAGE_REUSE]["saved_s"] for t in trials)
    told = reuse_of_study(trials)
    assert f"{len(sent(trials))} of 30 trials" in told and f"{saved:,.1f} s saved" in told
    assert reuse_of_study([t for t in trials if FROM_CHECKPOINT not in t.user_attrs]) == ""
    assert "taken over: train (saved 20.0 s, spent 5.0 s)" in reuse_of_trial(
        sent(trials)[0].user_attrs[STAGE_REUSE]
    )
    assert REPORTS not in trials[0].user_attrs
    by_name = {"evaluate": 0.5, "pack": 0.1, "train": 7.0, "data": 0.2}
    text = reuse_of_trial({"seconds": by_name, "reused": [], "saved_s": 0.0, "spent_s": 8.0})
    assert text.startswith("data 0.2 s, train 7.0 s, pack 0.1 s, evaluate 0.5 s"), "as they come"


def test_the_structured_sampler_keeps_finished_training_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of equal gains it takes the one that costs an evaluation, for at most the share of the seconds that the
    study allows; without a cache it has no reason to."""
    hits = {True: 0, False: 0}
    for seed, cached in itertools.product(range(2), hits):
        rig = Rig(tmp_path, monkeypatch, kind="structured", cached=cached, seed=seed)
        assert rig.sampler.stages is None
        trials = rig.run(40)
        hit = sum(bool(t.user_attrs[STAGE_REUSE]["reused"]) for t in trials)
        assert not sent(trials) and len({rig.space.resolve(t.params).hash() for t in trials}) == len(trials)
        if cached:
            spent_s = hit * REST_S
            assert hit >= 8 and spent_s <= 0.25 * (spent_s + (40 - hit) * (TRAIN_S + REST_S)) + REST_S
        hits[cached] += hit
    assert hits[True] > 2 * hits[False], hits
