"""CaddieSampler on analytic objectives: it finds what was planted and tells nothing that it rejected."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from search.common.attributes import PREFLIGHT, REJECTIONS
from search.common.errors import UsedUp
from search.costs.bills import model_bill
from search.costs.preflight import Preflight
from search.samplers.admission import Infeasible, draw_all
from search.samplers.caddie import CaddieSampler
from search.samplers.tpe import GroupedTpe
from search.space.native import build_space
from search.space.space import Space
from search.study.limits import set_all, violations
from search.study.model import Study
from tests.search.fakes import HEADER, KNOWN, make_study

SPACE = """
[techniques]
fit = "off"
narrow = "off"
slide = "off"
cooling = "off"
[space]
num_layers = {low = 2, high = 5}
matrix_lr = {low = 0.005, high = 0.5, log = true}
tied_embed_lr = {low = 0.005, high = 0.5, log = true}
[sampler]
kind = "tpe"
startup_trials = 15
"""
CODE = 100_000
BYTES = CODE + 230_000
TIGHT = HEADER.replace("100_000_000", str(BYTES))


def rig(
    folder: Path, *, header: str = TIGHT, text: str = SPACE, seed: int | None = 0
) -> tuple[Study, Space, CaddieSampler]:
    study = make_study(folder, text, header=header)
    space = build_space(study, KNOWN)
    preflight = Preflight(study)
    preflight.code_bytes = lambda resolved: CODE
    return study, space, CaddieSampler(space, preflight, seed=seed)


def bpb(params: dict[str, Any]) -> float:
    """Planted: matrix_lr 0.05, the table with many rows, fine rounding, `plain` at gain 3; size helps."""
    value = 2.0 + 0.05 * math.log(params["matrix_lr"] / 0.05) ** 2
    value += 0.02 * math.log(params["tied_embed_lr"] / 0.1) ** 2 - 0.02 * params["num_layers"]
    value -= 0.01 * math.log2(params["table.rows"] / 16) if params.get("table") else 0.0
    value -= {"fine_round": 0.06, "coarse_round": 0.02}.get(params["quantizer"], 0.0)
    if params.get("plain"):
        value += 0.04 * math.log(params["plain.gain"] / 3.0) ** 2 - 0.08
    return value + (0.1 if params.get("rival") else 0.0)


def run(study: Study, space: Space, optimizer: optuna.Study, trials: int) -> None:
    """Ask, measure, set constraints, tell."""
    for _ in range(trials):
        trial = optimizer.ask()
        params = space.repaired(space.suggest(trial))
        size = CODE + round(0.9 * model_bill(space.resolve(params)).total)
        result = {"artifact_bytes": size, "code_bytes": CODE, "train_seconds": 1.0, "eval_seconds": 1.0}
        for name, figure in result.items():
            trial.set_user_attr(name, figure)
        set_all(trial, violations(result, study.limits))
        optimizer.tell(trial, bpb(params))


def best(optimizer: optuna.Study) -> float:
    return min(t.value or 0.0 for t in optimizer.trials if all(v <= 0 for v in t.constraints.values()))


def test_it_beats_random_search_under_constraints(tmp_path: Path):
    found: dict[str, list[float]] = {"ours": [], "random": []}
    for seed in range(2):
        study, space, sampler = rig(tmp_path, seed=seed)
        ours = optuna.create_study(sampler=sampler)
        run(study, space, ours, 50)
        found["ours"].append(best(ours))
        rng = optuna.samplers.RandomSampler(seed=seed)
        theirs = optuna.create_study(sampler=rng)
        run(study, space, theirs, 50)
        found["random"].append(best(theirs))
    assert np.mean(found["ours"]) < np.mean(found["random"]) - 0.05, found


def test_nothing_rejected_or_repeated_is_told(tmp_path: Path):
    study, space, sampler = rig(tmp_path)
    optimizer = optuna.create_study(sampler=sampler)
    run(study, space, optimizer, 40)
    sizes = [t.user_attrs["artifact_bytes"] for t in optimizer.trials]
    assert sum(size > BYTES for size in sizes) <= 2  # the first, before anything was measured
    assert len({str(sorted(t.params.items())) for t in optimizer.trials}) == 40
    for trial in optimizer.trials:
        assert set(trial.params) == space.active(trial.params)
        space.resolve(trial.params)
    assert sampler.rejections["bytes"] > 0
    assert (
        sum(t.user_attrs[REJECTIONS].get("bytes", 0) for t in optimizer.trials) == sampler.rejections["bytes"]
    )
    assert all(t.user_attrs[PREFLIGHT]["artifact_bytes"] > 0 for t in optimizer.trials)
    assert len(optimizer.trials) == 40  # what was rejected is unknown to TPE


SMALL = """
[techniques]
others = "off"
plain = "free"
coarse_round = "free"
[fixed]
"plain.gain" = 1.0
"plain.last_n" = 1
[sampler]
startup_trials = 3
"""


def test_a_discrete_space_is_used_up_without_repeats_then_said(tmp_path: Path):
    study, space, sampler = rig(tmp_path, text=SMALL, header=HEADER)
    optimizer = optuna.create_study(sampler=sampler)
    for _ in range(8):  # (off or 3 modes) × 2
        trial = optimizer.ask()
        space.suggest(trial)
        optimizer.tell(trial, 1.0)
    assert len({str(sorted(t.params.items())) for t in optimizer.trials}) == 8
    with pytest.raises(UsedUp, match=r"duplicate: it was tried"):
        space.suggest(optimizer.ask())
    assert study.allow_duplicates is False
    _, again, freer = rig(
        tmp_path, text=SMALL, header=HEADER.replace("[limits]", "allow_duplicates = true\n[limits]")
    )
    optimizer.sampler = freer
    assert again.suggest(optimizer.ask())


def test_running_and_waiting_configurations_are_taken(tmp_path: Path):
    _, space, sampler = rig(tmp_path, text=SMALL, header=HEADER)
    optimizer = optuna.create_study(sampler=sampler)
    asked = [optimizer.ask() for _ in range(7)]  # none suggests anything yet
    keys = {str(sorted(space.suggest(t).items())) for t in asked}
    assert len(keys) == 7


def test_two_workers_that_propose_the_same_at_once_run_two_configurations(tmp_path: Path) -> None:
    """Both read the study before either has stored its proposal: whoever stores last takes another."""
    _, space, first = rig(tmp_path, seed=3)
    _, _, second = rig(tmp_path, seed=3)
    optimizer = optuna.create_study(sampler=first)
    ours = optimizer.ask()
    theirs = optimizer.ask()
    found: list[dict[str, Any]] = []
    certain = first._certain  # type: ignore[reportPrivateUsage]

    def late(*args: Any) -> Any:
        proposed = certain(*args)
        if not found:  # the other worker asks and stores between our reading and our storing
            optimizer.sampler = second
            found.append(space.suggest(theirs))
        return proposed

    first._certain = late  # type: ignore[reportPrivateUsage]
    optimizer.sampler = first
    params = space.suggest(ours)
    assert params != found[0]
    assert optimizer.get_trials()[0].user_attrs[REJECTIONS]["duplicate"] == 1


def test_an_enqueued_configuration_is_run_as_it_is(tmp_path: Path):
    study, space, sampler = rig(tmp_path)
    optimizer = optuna.create_study(sampler=sampler)
    run(study, space, optimizer, 3)
    whole = optimizer.trials[0].params  # a duplicate: a retry
    optimizer.enqueue_trial(whole)
    assert space.suggest(optimizer.ask()) == whole
    optimizer.enqueue_trial({"quantizer": "fine_round", "matrix_lr": 0.07})
    partly = space.suggest(optimizer.ask())
    assert partly["quantizer"] == "fine_round" and partly["matrix_lr"] == 0.07 and "fine_round.damp" in partly


def test_no_configuration_left_is_one_error(tmp_path: Path):
    _, space, sampler = rig(tmp_path, header=HEADER.replace("100_000_000", "90_000"))
    sampler.max_resamples = 3
    with pytest.raises(
        Infeasible, match=r"63 proposals in a row.*63 × bytes: artifact, [\d,]+ of 90,000 bytes predicted"
    ):
        space.suggest(optuna.create_study(sampler=sampler).ask())


def test_workers_without_a_seed_differ(tmp_path: Path):
    optimizer = optuna.create_study()
    points: set[float] = set()
    for _ in range(4):
        _, space, sampler = rig(tmp_path, seed=None)
        optimizer.sampler = sampler
        points.add(space.suggest(optimizer.ask())["matrix_lr"])
    assert len(points) == 4


def test_proposals_are_those_of_optunas_tpe():
    """On a space that is always active the model is TPESampler's own: same seed, same proposal."""
    space = {
        "x": optuna.distributions.FloatDistribution(-5, 5),
        "k": optuna.distributions.IntDistribution(1, 64, log=True),
        "c": optuna.distributions.CategoricalDistribution(("a", "b", "c")),
    }
    rng = np.random.default_rng(0)
    optimizer = optuna.create_study()
    for k in range(40):
        params = {
            "x": rng.uniform(-5, 5),
            "k": int(rng.integers(1, 65)),
            "c": str(rng.choice(["a", "b", "c"])),
        }
        optimizer.add_trial(
            optuna.create_trial(
                params=params,
                distributions=space,
                value=params["x"] ** 2,
                state=TrialState.COMPLETE,
                constraints={"bytes": 0.1 if k % 3 == 0 else -0.1},
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = optuna.samplers.TPESampler(multivariate=True, group=True, seed=7, n_startup_trials=10)
    trial = optimizer.ask(fixed_distributions={})
    frozen = optimizer.trials[trial.number]
    theirs = stock.sample_relative(optimizer, frozen, stock.infer_relative_search_space(optimizer, frozen))
    ours = GroupedTpe([list(space)], space, startup_trials=10, candidates=24, seed=7)
    ours.begin(optimizer, optimizer.trials[:40])
    assert ours.propose() == theirs
    assert ours.propose() != theirs  # a second proposal is another one


def test_uniform_draws_cover_their_range():
    rng = np.random.default_rng(0)
    dist = optuna.distributions.IntDistribution(4, 32, log=True)
    space: Any = type("Space", (), {"distributions": {"k": dist}})
    drawn = [draw_all(space, rng)["k"] for _ in range(3000)]
    assert min(drawn) == 4 and max(drawn) == 32 and 9 < np.median(drawn) < 14
