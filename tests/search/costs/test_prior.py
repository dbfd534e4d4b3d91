"""The shipped prior, and admission by the probability of keeping all limits."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from benchmarks.costs.accuracy import held_out
from benchmarks.costs.first_trials import GPU, coverage_of, simulated
from benchmarks.costs.prior import cold_models, committed, departing, told_by
from search.costs import bills
from search.costs.factors import Bill, CostModel, Estimate, Learnt, Part, read_prior
from search.costs.preflight import EXPLORE, Preflight
from search.report.costs import accuracy_of
from search.samplers.caddie import CaddieSampler
from search.space.native import build_space
from search.study.load import find_study
from search.workers.warm_start import teach_baseline
from techniques import catalog
from tests.conftest import ROOT
from tests.search.fakes import HEADER, KNOWN, make_study
from tests.search.replay import LAPTOP, read_trials

SPACE = """
[space]
num_layers = {low = 2, high = 5}
matrix_lr = {low = 0.01, high = 0.1, log = true}
"""
FREE = """
[techniques]
others = "off"
[space]
matrix_lr = {low = 0.01, high = 0.1, log = true}
"""


def test_the_file_is_small_and_speaks_of_factors_that_there_are() -> None:
    told = json.loads(bills.PRIOR.read_text(encoding="utf-8"))
    assert bills.PRIOR.stat().st_size < 40_000
    assert {"command", "studies", "commit", "machine"} <= told.keys() and sum(told["studies"].values()) > 200
    assert set(bills.learnt_before()) == {"bytes", "train", "eval"}
    known = catalog.metadata()
    for kind, learnt in bills.learnt_before().items():
        sds = bills.BYTE_SDS if kind == "bytes" else bills.SECOND_SDS
        assert 0.0 < learnt.spread < 0.2
        for name, (mean, sd, centre) in learnt.factors.items():
            family, _, rest = name.partition(":")
            assert 0.0 < sd <= sds[family], name
            assert abs(mean) < 4.0 * sds[family] and (centre == 0.0 or family.startswith("log ")), name
            if family in ("technique", "passes", "passes head", "own work", "own bytes"):
                assert rest in known, f"{name}: run `python -m benchmarks.costs.prior --write`"
    trials = read_trials(LAPTOP)
    names = {n for t in trials for b in (bills.eval_bill(t.resolved),) for p in b.parts for n in p.factors}
    assert len(names & bills.learnt_before()["eval"].factors.keys()) > 5  # the bills' names


def test_a_prior_is_where_the_models_begin_and_trials_move_it() -> None:
    learnt = Learnt({"all": (-0.3, 0.05, 0.0), "log size:dim": (0.5, 0.1, math.log(100))}, 0.02, 10.0)
    model = CostModel({"all": 0.2, "log size": 0.1}, spread=0.1, least_spread=0.001, learnt=learnt)
    bill = Bill((Part(1000.0, {}),), {"all": 1.0, "log size:dim": math.log(200)})
    first = model.estimate(bill)
    assert first.log == pytest.approx(math.log(1000.0) - 0.3 + 0.5 * math.log(2))
    assert first.doubt == pytest.approx(math.hypot(0.05, 0.1 * math.log(2)))
    assert (first.spread, first.dof) == (0.02, 10.0)
    for _ in range(40):
        model.add(bill, 1000.0)  # the prior is wrong by as much as 4 of its sds
    assert model.estimate(bill).value == pytest.approx(1000.0, rel=0.01)
    assert not model.forget_carried() and model.rows


def test_the_chance_is_that_of_a_monte_carlo(tmp_path: Path) -> None:
    """All limits at once, from what is sampled of factors and noise."""
    study = make_study(tmp_path, SPACE, header=HEADER.replace("100_000_000", "300_000"))
    space = build_space(study, KNOWN)
    preflight = Preflight(study, prior={})
    rng = np.random.default_rng(0)
    plain = space.resolve({})
    limits = study.limits
    size = 0.93 * (limits.artifact_bytes - preflight.code_bytes(plain))
    for k in range(12):
        result = {"code_bytes": 1.0, "artifact_bytes": 1.0 + size * math.exp(rng.normal(0, 0.03))}
        result |= {"train_seconds": 0.85 * limits.train_seconds * math.exp(rng.normal(0, 0.1))}
        result |= {"eval_seconds": 1.05 * limits.eval_seconds * math.exp(rng.normal(0, 0.1))}
        preflight.learn([(space.resolve({"matrix_lr": 0.02 + 0.005 * k}), result)])
    preflight._known_code.clear()  # pyright: ignore[reportPrivateUsage]
    for resolved in (plain, space.resolve({"matrix_lr": 0.09}), space.resolve({"num_layers": 2})):
        kept = np.ones(400_000, dtype=bool)
        for limit, estimate, most in preflight._judged(resolved):  # pyright: ignore[reportPrivateUsage]
            assert limit.constraint in ("bytes", "train", "eval")
            noise = rng.standard_t(estimate.dof, len(kept)) * estimate.spread
            noise += rng.normal(0.0, estimate.doubt, len(kept))
            kept &= estimate.value * np.exp(noise) <= most
        assert 0.005 < kept.mean() < 0.98
        assert preflight.chance(resolved) == pytest.approx(kept.mean(), abs=0.01)


def test_a_certain_estimate_keeps_a_limit_or_does_not() -> None:
    """A budget of 600 s is the prediction: exactly the limit."""
    sure = Estimate(math.log(600.0), 0.0, 0.0)
    assert (sure.chance(600.0), sure.chance(599.0), sure.chance(0.0), sure.chance(-5.0)) == (
        1.0,
        0.0,
        0.0,
        0.0,
    )
    assert Estimate(0.0, 0.1, 0.1).chance(1.0) == pytest.approx(0.5)


def test_what_follows_a_budget_is_bounded_on_its_own() -> None:
    """Of 600 s and some seconds that are hardly known, only these have a spread."""
    told = Estimate(math.log(2.0), 0.5, 1.0, sure=600.0)
    more = replace(told, sure=0.0)
    assert told.value == pytest.approx(602.0)
    assert told.upper(0.975) == pytest.approx(600.0 + more.upper(0.975)) and more.upper(0.975) > 15.0
    assert told.chance(610.0) == pytest.approx(more.chance(10.0)) and told.chance(600.0) == 0.0
    assert told.chance(told.upper(0.9)) == pytest.approx(0.9)


def test_a_study_that_departs_does_not_speak_for_all() -> None:
    """Many trials of one study whose matrices are larger, few of three others that agree."""
    trials = [t for t in committed() if t.study.startswith("laptop/")][:12]
    model = cold_models()["bytes"]
    for name, times in (("odd", 6), ("a", 1), ("b/home", 1), ("c", 1)):
        more = 1.4 if name == "odd" else 1.0
        for bill in [bills.model_bill(t.resolved) for t in trials] * times:
            model.add(
                departing(bill, name),
                sum(p.amount * (more if "role:mlp" in p.factors else 1.0) for p in bill.parts),
            )
    learnt = read_prior({"bytes": told_by("bytes", model)})["bytes"]
    assert not any("odd" in name for name in learnt.factors)
    told = bills.byte_model(learnt)
    for bill in (bills.model_bill(t.resolved) for t in trials):
        share = sum(p.amount for p in bill.parts if "role:mlp" in p.factors) / bill.total
        assert told.estimate(bill).log - math.log(bill.total) < 0.3 * math.log(1.0 + 0.4 * share)


def rig(folder: Path, admit: float = 0.85) -> tuple[Any, Preflight]:
    """(a run with `slide`, which no trial had; who judges it): 1.3 times its seconds are allowed."""
    study = make_study(folder, f"{SPACE}\n[sampler]\nadmit = {admit}\n")
    space = build_space(study, KNOWN)
    preflight = Preflight(study, prior={})
    for k in range(8):
        seen = space.resolve({"matrix_lr": 0.02 + 0.01 * k})
        preflight.learn([(seen, {"eval_seconds": 10.0 + 0.1 * k, "train_seconds": 1.0 + 0.01 * k})])
    preflight.seconds("eval").sds = {**bills.SECOND_SDS, "passes": 1.5}
    dear = space.resolve({"slide": True, "slide.stride": 128})
    allowed = 1.3 * (preflight.predict(dear).eval_seconds or 0.0)
    preflight.study = replace(study, limits=replace(study.limits, eval_seconds=allowed))
    return dear, preflight


def test_doubt_counts_against_a_configuration_but_not_for_ever(tmp_path: Path) -> None:
    dear, preflight = rig(tmp_path)
    said = preflight.predict(dear)
    assert said.eval_seconds and said.eval_seconds < preflight.study.limits.eval_seconds
    reason = preflight.rejection(dear) or ""
    assert reason.startswith("eval: evaluation, ") and "within all limits with a probability of " in reason
    assert preflight.rejection(dear, doubtful=True) is None
    tried = list[int]()
    for number in range(3 * EXPLORE):
        preflight.begin(number)
        tried += [] if preflight.rejection(dear) else [number]
    assert tried == [EXPLORE, 2 * EXPLORE]  # none of the first twenty
    preflight.begin(1)
    preflight.learn([(dear, {"eval_seconds": 0.9 * said.eval_seconds})])  # one such trial ends the doubt
    assert preflight.rejection(dear) is None
    dear, lenient = rig(tmp_path, admit=0.3)
    assert lenient.rejection(dear) is None


def test_where_nothing_reaches_it_the_most_probable_is_tried(tmp_path: Path) -> None:
    """The smallest is as likely as not to keep the limit: no study ends for that."""
    study = make_study(tmp_path, FREE, header=HEADER.replace("train_seconds = 100", "train_seconds = 1"))
    space = build_space(study, KNOWN)
    preflight = Preflight(study, prior={})
    for k in range(6):
        seen = space.resolve({"matrix_lr": 0.02 + 0.01 * k})
        preflight.learn([(seen, {"train_seconds": 1.0 + 0.02 * (k - 3)})])
    sampler = CaddieSampler(space, preflight, seed=0)
    sampler.max_resamples = 5
    trial = optuna.create_study(sampler=sampler).ask()
    params = space.suggest(trial)
    assert 0.3 < preflight.chance(space.resolve(params)) < 0.85
    assert sampler.rejections["train"] > 50


def test_what_the_structured_search_turns_away_is_counted(tmp_path: Path) -> None:
    """It asks before it proposes: nothing is proposed in vain, and still something was refused."""
    study = make_study(tmp_path, SPACE, header=HEADER.replace("100_000_000", "190_000"))
    space = build_space(study, KNOWN)
    preflight = Preflight(study, prior={})
    sampler = CaddieSampler(space, preflight, seed=0)
    optimizer = optuna.create_study(sampler=sampler)
    for _ in range(4):
        space.suggest(optimizer.ask())
    stored = [t.user_attrs["rejections"].get("bytes", 0) for t in optimizer.trials]
    assert sum(stored) == sampler.rejections["bytes"] > 0


def test_the_baseline_is_the_first_row_of_every_model(tmp_path: Path) -> None:
    study = make_study(tmp_path, SPACE)
    space = build_space(study, KNOWN)
    preflight = Preflight(study, hardware="here, 1 thread")
    start = space.resolve({})
    told = {"hash": start.hash(), "train_seconds": 5.0, "eval_seconds": 0.5, "code_bytes": 20_000}
    told |= {"artifact_bytes": 170_000, "steps": 100}
    for old in (told, told | {"hardware": "here, 1 thread", "hash": "another"}):
        teach_baseline(preflight, space, old)  # of an earlier version, and of another study: says nothing
        assert not preflight.model_bytes.rows and preflight.predict(start).train_seconds is None
    teach_baseline(preflight, space, told | {"hardware": "elsewhere, 1 thread"})
    assert preflight.predict(start).train_seconds is None and len(preflight.model_bytes.rows) == 1
    preflight = Preflight(study, hardware="here, 1 thread")
    teach_baseline(preflight, space, told | {"hardware": "here, 1 thread"})
    said = preflight.predict(start)
    assert said.train_seconds == pytest.approx(5.0, rel=0.05)
    assert said.eval_seconds == pytest.approx(0.5, rel=0.05)
    assert len(preflight.model_bytes.rows) == len(preflight.seconds("eval").rows) == 1


def test_seconds_of_a_gpu_begin_without_the_prior(tmp_path: Path) -> None:
    preflight = Preflight(make_study(tmp_path, SPACE), hardware="8 x NVIDIA H100")
    assert not preflight.seconds("train").learnt.factors and preflight.model_bytes.learnt.factors
    preflight.hardware = "Cray-1, 2 cores, 1 thread"
    assert preflight.seconds("train").learnt.factors


def test_bounds_hold_from_the_first_trial_on_recorded_figures() -> None:
    """Searches that the prior did not see: learnt from the others, told only the baseline of their own."""
    for name, found in held_out(read_trials(LAPTOP)).items():
        assert len(found) >= 80, name
        assert 0.94 <= accuracy_of(found).coverage <= 0.99, name
        width = np.median([p.upper / p.predicted for p in found])
        assert width < (1.15 if name == "bytes" else 1.6), (name, width)


def test_a_study_of_record_scale_keeps_its_limits_from_the_start() -> None:
    """The simulated machine of benchmarks/costs: 600 s and 16 MB, on GPUs that no prior knows."""
    study = find_study(ROOT / "studies" / "record_8xh100.toml")
    homes = [simulated(study, seed=seed, trials=8, surprise=1.0, hardware=GPU) for seed in (0, 1)]
    assert sum(t["ok"] for trials in homes for t in trials) >= 14
    assert {row[0] for row in coverage_of(homes)} == {"artifact", "training", "evaluation"}


def test_a_configuration_is_judged_in_milliseconds() -> None:
    preflight = Preflight(find_study(ROOT / "studies" / "laptop.toml"))
    trials = read_trials(LAPTOP)[:20]
    preflight.learn([(t.resolved, t.result or {}) for t in trials])
    took = list[float]()
    for trial in trials:
        began = time.process_time()
        preflight.rejection(trial.resolved)
        took.append(time.process_time() - began)
    assert min(took) < 0.01
