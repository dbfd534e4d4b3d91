"""The structured sampler in anybody's study: threads, spaces of every shape, odd values, what it imports."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import PartialFixedSampler, TPESampler
from optuna.trial import TrialState, create_trial

from search.common.numeric import joined, place, value_at
from search.samplers.caddie import CaddieSampler
from search.samplers.structured.beliefs import Beliefs, bounded
from search.samplers.structured.rows import RECENT, Interval, Rows, learn_rules, space_of
from search.samplers.structured.sampler import Prior, StructuredSampler
from search.samplers.structured.surrogate import settled
from search.study.limits import set_all, violations
from tests.search.samplers.test_caddie import SPACE, bpb, rig

ROOT = Path(__file__).resolve().parents[4]
UNHASHABLE: Any = ([1], {"k": 2})
Objective = Callable[[optuna.Trial], float]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Optuna warns of list choices and of fixed values outside their range: both are meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads change places a hundred times as often as they do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


def study_of(objective: Objective, trials: int, *, seed: int = 0, **settings: Any) -> optuna.Study:
    """With many proposals of TPE, so that both ways are gone. Every value lies in its distribution."""
    sampler = StructuredSampler(seed=seed, tpe_share=0.3)
    study = optuna.create_study(sampler=sampler, direction=settings.pop("direction", "minimize"))
    study.optimize(objective, n_trials=trials, **settings)
    check_values(study)
    return study


def check_values(study: optuna.Study) -> None:
    for trial in study.get_trials(deepcopy=False):
        for name, dist in trial.distributions.items():
            assert dist._contains(dist.to_internal_repr(trial.params[name])), (name, trial.params[name], dist)


def gated(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -5, 5)
    kind = trial.suggest_categorical("kind", ("a", "b", "c"))
    value = x * x + (trial.suggest_int("b.n", 1, 9) if kind == "b" else 4)
    return value + (trial.suggest_float("y", 0, 1) if trial.suggest_categorical("g", (False, True)) else 0.5)


@pytest.mark.parametrize("workers", [2, 8])
def test_threads_share_one_sampler(hurried: None, workers: int) -> None:
    for seed in range(4):
        study = study_of(gated, 40, seed=seed, n_jobs=workers)
        assert len(study.trials) == 40


@pytest.mark.parametrize("kind", ["structured", "tpe", "random"])
def test_threads_share_one_caddie_sampler(hurried: None, tmp_path: Path, kind: str) -> None:
    """Nor do two of them try one configuration."""
    study, space, sampler = rig(tmp_path, text=SPACE.replace('"tpe"', f'"{kind}"'))
    optimizer = optuna.create_study(sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        params = space.repaired(space.suggest(trial))
        result = {"artifact_bytes": 9, "code_bytes": 1, "train_seconds": 1.0, "eval_seconds": 1.0}
        set_all(trial, violations(result, study.limits))
        return bpb(params)

    optimizer.optimize(objective, n_trials=30, n_jobs=8)
    assert len({str(sorted(t.params.items())) for t in optimizer.trials}) == 30


def test_a_study_may_be_pickled_and_copied_at_any_time() -> None:
    """As process pools do; also with proposals of TPE that are not worked out yet."""
    study = study_of(gated, 30)
    sampler = study.sampler
    assert isinstance(sampler, StructuredSampler)
    sampler.tpe_share = 1.0
    study.optimize(gated, n_trials=1)
    sent: optuna.Study = pickle.loads(pickle.dumps(study))
    twin = copy.deepcopy(study)
    for one in (sent, twin):
        one.optimize(gated, n_trials=3, n_jobs=2)
        assert len(one.trials) == 34
    assert len(study.trials) == 31


def test_reseeding_waits_for_the_proposal() -> None:
    """n_jobs reseeds in every thread; and a lock may be taken again by who holds it."""
    sampler = StructuredSampler(seed=0)
    with sampler.lock:
        sampler.reseed_rng()
    assert hasattr(CaddieSampler.reseed_rng, "__wrapped__")
    assert hasattr(StructuredSampler.reseed_rng, "__wrapped__")


@pytest.mark.parametrize(
    "fixed",
    [{"x": 1.0}, {"g": True}, {"g": False, "x": 0.5}, {"x": 99.0}, {"unknown": 1}, {"x": 1.0, "kind": "b"}],
)
def test_a_partial_sampler_over_it_fixes_what_it_likes(fixed: dict[str, Any]) -> None:
    study = study_of(gated, 5)
    study.sampler = PartialFixedSampler(fixed, study.sampler)
    study.optimize(gated, n_trials=25)
    for trial in study.trials[5:]:
        assert all(trial.params.get(name, value) == value for name, value in fixed.items())


def test_only_what_is_asked_for_is_proposed() -> None:
    study = study_of(gated, 25)
    number = study.ask().number
    trial = study.get_trials(deepcopy=False)[number]
    space = study.sampler.infer_relative_search_space(study, trial)
    assert set(space) == {"x", "kind", "b.n", "g", "y"}
    for asked in ({"x"}, {"kind", "y"}, set(space)):
        found = study.sampler.sample_relative(study, trial, {n: space[n] for n in asked})
        assert set(found) == asked


def test_enqueued_and_fixed_trials() -> None:
    """Some parameters fixed, some outside, some unknown; a space that `ask` changes each time."""
    study = optuna.create_study(sampler=StructuredSampler(seed=0, tpe_share=0.3))
    for k in range(12):
        study.enqueue_trial({"x": k / 5})
        study.enqueue_trial({"y": 7.0, "nobody": "?"})
    study.optimize(gated, n_trials=40)
    assert [t.params["x"] for t in study.trials[0:24:2]] == [k / 5 for k in range(12)]
    one: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1), "n": IntDistribution(1, 9)}
    other: dict[str, BaseDistribution] = {"x": FloatDistribution(0, 1), "z": FloatDistribution(0, 1)}
    study = optuna.create_study(sampler=StructuredSampler(seed=0))
    for k in range(30):
        trial = study.ask(fixed_distributions=one if k % 2 else other)
        assert set(trial.params) == set(one if k % 2 else other)
        study.tell(trial, trial.params["x"])
    check_values(study)


def test_a_range_that_depends_on_a_number_is_learned() -> None:
    def objective(trial: optuna.Trial) -> float:
        n = trial.suggest_int("n", 1, 10)
        return abs(n - 8) + abs(trial.suggest_int("m", 1, n) - 6) + trial.suggest_float("x", 0, n / 5)

    study = study_of(objective, 40)
    assert study.best_value < 0.5
    assert space_of(study.trials)["m"] == IntDistribution(1, 10)


def test_a_narrowed_range_is_searched_in_its_place_and_a_widened_one_beyond() -> None:
    high = [10.0]

    def objective(trial: optuna.Trial) -> float:
        return abs(trial.suggest_float("x", 0.1, high[0], log=True) - 1.5) + trial.suggest_float(
            "s", 0, high[0], step=0.5
        )

    study = study_of(objective, 20)
    high[0] = 2.0
    study.optimize(objective, n_trials=RECENT + 10)
    check_values(study)
    assert all(t.params["x"] <= 2.0 for t in study.trials[20:])
    assert study.sampler.infer_relative_search_space(study, study.trials[0])["x"] == FloatDistribution(
        0.1, 2.0, log=True
    )
    high[0] = 4.0
    study.optimize(objective, n_trials=5)
    assert study.best_value < 0.3


def test_ranges_are_joined_where_they_are_of_one_kind() -> None:
    ints = IntDistribution(2, 10, step=2)
    assert joined(ints, IntDistribution(4, 14, step=2)) == IntDistribution(2, 14, step=2)
    assert joined(ints, IntDistribution(3, 13, step=2)) == IntDistribution(3, 13, step=2)
    assert joined(FloatDistribution(0, 1), FloatDistribution(0.5, 2)) == FloatDistribution(0, 2)
    assert joined(FloatDistribution(1, 2, log=True), FloatDistribution(1, 3)) == FloatDistribution(1, 3)
    assert joined(FloatDistribution(0, 1), CategoricalDistribution("ab")) == CategoricalDistribution("ab")
    old = CategoricalDistribution((1, 2))
    assert joined(old, CategoricalDistribution((1, 2))) is old


def test_trials_of_other_kinds_of_space_are_read_as_far_as_they_go() -> None:
    """`add_trial` stores anything: other kinds, other choices, other parameters, none."""
    sampler = StructuredSampler(seed=0, tpe_share=0.3)
    study = optuna.create_study(sampler=sampler)
    odd: list[tuple[dict[str, Any], dict[str, BaseDistribution]]] = [
        ({"x": "a"}, {"x": CategoricalDistribution(("a", "b"))}),
        ({"x": 2.5, "y": 1.5}, {"x": FloatDistribution(0, 3), "y": FloatDistribution(0, 3)}),
        ({"x": 99.0}, {"x": FloatDistribution(0, 100)}),
        ({"c": "p"}, {"c": CategoricalDistribution(("p", "q"))}),
        ({"c": "r"}, {"c": CategoricalDistribution(("r", "q"))}),
        ({}, {}),
    ]
    for k in range(30):
        params, dists = odd[k % len(odd)]
        study.add_trial(create_trial(params=params, distributions=dists, value=float(k)))
    study.optimize(
        lambda t: t.suggest_float("x", 0, 3) + len(t.suggest_categorical("c", ("r", "q"))), n_trials=30
    )
    check_values(study)
    assert study.best_value < 1.3


def test_choices_that_change_are_optunas_error() -> None:
    for sampler in (StructuredSampler(seed=0), TPESampler(n_startup_trials=1, multivariate=True)):
        study = optuna.create_study(sampler=sampler)
        study.optimize(lambda t: float(t.suggest_categorical("c", ("a", "b")) == "a"), n_trials=4)
        with pytest.raises(ValueError, match="does not support dynamic value space"):
            study.optimize(lambda t: float(t.suggest_categorical("c", ("a", "z")) == "a"), n_trials=1)


class Odd:
    """Neither hashable nor JSON."""

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("workers", [1, 4])
def test_choices_may_be_anything(workers: int) -> None:
    choices: Any = ([1, 2], {"a": 1}, None, math.nan, (3, [4]), Odd(), print)

    def objective(trial: optuna.Trial) -> float:
        choice: Any = trial.suggest_categorical("c", choices)
        extra = trial.suggest_float("y", 0, 1) if isinstance(choice, list) else 0.5
        return trial.suggest_float("x", 0, 1) + extra + (not isinstance(choice, dict))

    study = study_of(objective, 45, n_jobs=workers)
    assert isinstance(study.best_trial.params["c"], dict) and study.best_value < 0.7


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_infinitely_bad_is_learned_as_bad(direction: Any, sign: int) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        y = trial.suggest_float("y", 0, 1)
        return sign * (math.inf if x > 0.3 else (x - 0.25) ** 2 + (y - 0.5) ** 2)

    for seed in range(3):
        study = study_of(objective, 40, seed=seed, direction=direction)
        assert sum(t.params["x"] > 0.3 for t in study.trials[20:]) <= 8
        assert isinstance(study.sampler, StructuredSampler)
        assert math.isfinite(study.sampler.recommend(study).value or math.inf)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1.7e308, 1e-300, 0.0])
def test_values_of_every_size(value: float) -> None:
    study = study_of(lambda t: value if t.suggest_float("x", -1, 1) > 0 else 0.5 * value, 30)
    assert len(study.trials) == 30


def test_infinity_stands_beyond_what_was_seen() -> None:
    plain = np.array([1.0, 3.0])
    assert bounded(plain) is plain
    assert bounded(np.array([1.0, 3.0, math.inf, -math.inf])).tolist() == [1.0, 3.0, 4.0, 0.0]
    assert np.isfinite(bounded(np.array([math.inf] * 3))).all()
    assert np.isfinite(bounded(np.array([-1.7e308, 1.7e308, math.inf])).std())


@pytest.mark.parametrize("states", ["pruned", "failed", "infeasible", "nan reports", "nothing asked"])
def test_studies_without_a_good_trial(states: str) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1) if states != "nothing asked" else 0.0
        trial.set_constraint("c", 1.0 + x if states == "infeasible" else -1.0)
        trial.report(math.nan if states == "nan reports" and trial.number % 2 else x, 1)
        if states == "pruned" or (states == "nan reports" and trial.number % 3 == 0):
            raise optuna.TrialPruned
        if states == "failed":
            raise ZeroDivisionError
        return x

    study = study_of(objective, 32, catch=(ZeroDivisionError,))
    assert isinstance(study.sampler, StructuredSampler)
    if states in ("pruned", "failed", "infeasible"):
        with pytest.raises(ValueError, match="needs a complete, feasible trial"):
            study.sampler.recommend(study)


@pytest.mark.parametrize(
    ("constraint", "kept"),
    [
        (lambda x: x - 0.3, True),
        (lambda x: max(0.0, x - 0.3), True),  # 0 is kept, in somebody's study
        (lambda x: math.inf if x > 0.3 else -1.0, True),
        (lambda x: float(x > 0.3), True),
        (lambda x: 0.0, False),
    ],
)
def test_constraints_of_every_kind_are_learned(constraint: Callable[[float], float], kept: bool) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        y = trial.suggest_float("y", 0, 1)
        trial.set_constraint("c", constraint(x))
        return x + y

    study = study_of(objective, 40, direction="maximize")
    assert isinstance(study.sampler, StructuredSampler)
    x = study.sampler.recommend(study).params["x"]
    assert 0.25 < x <= 0.3 if kept else x > 0.9
    assert sum(t.constraints["c"] > 0 for t in study.trials[20:]) <= 12


def test_constraints_of_older_samplers_are_read() -> None:
    """Optuna 4 stored a list, by `constraints_func`."""
    study = optuna.create_study(sampler=TPESampler(constraints_func=lambda t: (t.params["x"] - 0.5,), seed=0))
    study.optimize(lambda t: -t.suggest_float("x", 0, 1), n_trials=15)
    study.sampler = StructuredSampler(seed=0)
    study.optimize(lambda t: -t.suggest_float("x", 0, 1), n_trials=10)
    assert np.median([t.params["x"] for t in study.trials[15:]]) < 0.55


def test_the_callers_own_word_for_an_unknown_constraint_says_nothing() -> None:
    space: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}
    trials = [
        create_trial(params={"x": k / 20}, distributions=space, value=0.0, constraints={"c": k / 10 - 1})
        for k in range(20)
    ]
    for k, trial in enumerate(trials):
        trial.number = k
    sizes: list[int] = []
    for unknown in (None, 0.0):
        beliefs = Beliefs(space, {}, unknown=unknown)
        beliefs.learn(trials)
        sizes.append(len(beliefs.constraints["c"].model.y))
    assert sizes == [20, 19]


RANGES: dict[str, BaseDistribution] = {
    "one value": FloatDistribution(1, 1),
    "two values": IntDistribution(0, 1),
    "stepped ints": IntDistribution(-50, 50, step=4),
    "log ints": IntDistribution(1, 4096, log=True),
    "stepped floats": FloatDistribution(0.1, 1.7, step=0.1),
    "huge ints": IntDistribution(-(2**53), 2**53),
    "huge log ints": IntDistribution(1, 2**53, log=True),
    "huge floats": FloatDistribution(0, 1e300),
    "endless floats": FloatDistribution(-1.7e308, 1.7e308),
    "huge log floats": FloatDistribution(1e-300, 1e300, log=True),
    "the smallest floats": FloatDistribution(5e-324, 1e-300, log=True),
    "narrow floats": FloatDistribution(1.0, 1.0 + 1e-15),
    "one choice": CategoricalDistribution(("a",)),
    "many choices": CategoricalDistribution(tuple(range(150))),
}


@pytest.mark.parametrize("name", RANGES)
def test_one_parameter_of_any_range(name: str) -> None:
    dist = RANGES[name]
    for share in (0.0, 1.0):
        study = optuna.create_study(sampler=StructuredSampler(seed=0, tpe_share=share))
        for _ in range(30):
            trial = study.ask({"p": dist})
            study.tell(trial, place(dist, trial.params["p"]))
        check_values(study)
    for at in np.linspace(-1, 1, 9):
        at = at if not isinstance(dist, CategoricalDistribution) else 0.0
        assert dist._contains(dist.to_internal_repr(value_at(dist, float(at))))


def test_several_objectives_are_one_clear_error() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=StructuredSampler(seed=0))
    with pytest.raises(ValueError, match=r"one objective, but this study has 2\. Keep one .*set_constraint"):
        study.optimize(lambda t: (t.suggest_float("x", 0, 1), 1.0), n_trials=1)
    assert [t.state for t in study.trials] == [TrialState.FAIL]
    with pytest.raises(ValueError, match="one objective"):
        StructuredSampler().recommend(study)


def test_one_sampler_after_another_study_knows_nothing_of_the_first() -> None:
    sampler = StructuredSampler(seed=0)
    for best in (0.0, 1.0, 0.0):
        study = optuna.create_study(sampler=sampler, direction="maximize" if best else "minimize")
        study.optimize(lambda t: t.suggest_float("x", 0, 1), n_trials=12)
        assert study.best_value == pytest.approx(best, abs=0.05)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda t: float(t.suggest_categorical("x", ("a", "b")) == "a"), n_trials=12)


def test_a_timeout_and_pruners() -> None:
    study = study_of(lambda t: t.suggest_float("x", 0, 1), 10_000, timeout=0.5)
    assert 0 < len(study.trials) < 10_000

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        y = trial.suggest_float("y", 0, 1) if trial.suggest_categorical("g", (0, 1)) else 0.0
        for step in range(1, 20):
            trial.report(x + y + 1 / step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x + y

    for pruner in (optuna.pruners.HyperbandPruner(), optuna.pruners.MedianPruner()):
        study = optuna.create_study(sampler=StructuredSampler(seed=0, tpe_share=0.3), pruner=pruner)
        study.optimize(objective, n_trials=50)
        assert study.best_value < 0.1


def test_a_thousand_trials() -> None:
    space: dict[str, BaseDistribution] = {f"x{k}": FloatDistribution(0, 1) for k in range(6)}
    study = optuna.create_study(sampler=StructuredSampler(seed=0))
    rng = np.random.default_rng(0)
    for _ in range(1000):
        params = {name: float(rng.uniform()) for name in space}
        study.add_trial(create_trial(params=params, distributions=space, value=sum(params.values())))
    for _ in range(3):
        trial = study.ask(space)
        study.tell(trial, sum(trial.params.values()))
    assert study.best_trial.number >= 1000


def test_conditions_on_numbers_are_learned() -> None:
    """Thresholds on integers, logarithmic too, on floats, and beside a gate."""
    space: dict[str, BaseDistribution] = {
        "n": IntDistribution(1, 6, log=True),
        "x": FloatDistribution(0, 1),
        "lr": FloatDistribution(1e-4, 1, log=True),
        "g": CategoricalDistribution((False, True)),
        **{f"width_{k}": IntDistribution(8, 64, log=True) for k in range(2, 7)},
        "y": FloatDistribution(0, 1),
        "z": FloatDistribution(0, 1),
    }

    def keep(p: dict[str, Any]) -> dict[str, Any]:
        names = ["n", "x", "lr", "g", *(f"width_{k}" for k in range(2, p["n"] + 1))]
        names += ["y"] if p["x"] > 0.4 else []
        names += ["z"] if p["g"] and p["x"] < 0.5 else []
        return {name: p[name] for name in names}

    rng = np.random.default_rng(0)
    plain = Rows(space, {})
    rows = Rows(space, learn_rules(space, [keep(plain.decode(row)) for row in plain.uniform(rng, 60)]))
    drawn = [plain.decode(row) for row in plain.uniform(rng, 300)]
    assert np.mean([rows.keep_active(p) == keep(p) for p in drawn]) > 0.93
    assert all(
        {n for n in rows.keep_active(p) if "width" in n} == {n for n in keep(p) if "width" in n}
        for p in drawn
    )
    examples = [keep(p) for p in drawn]
    gates = learn_rules(space, examples, numbers=False)
    assert {q for rule in gates.values() for q in rule} == {"g"}  # for who knows that numbers decide nothing
    assert set(rows.rules["z"]) == {"g", "x"} and isinstance(rows.rules["z"]["x"], Interval)
    grouped = [sorted(names) for names in rows.groups()]
    assert ["g", "lr", "n", "x"] in grouped and ["y"] in grouped


def test_a_study_with_as_many_widths_as_layers() -> None:
    def objective(trial: optuna.Trial) -> float:
        layers = trial.suggest_int("layers", 1, 4)
        widths = [trial.suggest_float(f"width_{k}", 0, 1) for k in range(layers)]
        return sum((w - 0.5) ** 2 for w in widths) + 0.1 * abs(layers - 3)

    study = study_of(objective, 40)
    assert study.best_value < 0.02
    assert isinstance(study.sampler, StructuredSampler) and study.sampler._beliefs is not None
    assert set(study.sampler._beliefs.rows.rules) >= {"width_2", "width_3"}


def random_space(rng: np.random.Generator) -> Objective:
    """A made-up define-by-run space with conditions on gates and on numbers, and an objective on it."""
    kinds: list[Callable[[optuna.Trial, str], Any]] = [
        lambda t, n: t.suggest_float(n, -1, 1),
        lambda t, n: t.suggest_float(n, 1e-5, 1e2, log=True),
        lambda t, n: t.suggest_float(n, 0, 1, step=0.125),
        lambda t, n: t.suggest_int(n, 1, 5),
        lambda t, n: t.suggest_int(n, 1, 512, log=True),
        lambda t, n: t.suggest_int(n, 0, 60, step=6),
        lambda t, n: t.suggest_categorical(n, (False, True)),
        lambda t, n: t.suggest_categorical(n, ("a", "b", "c", None)),
        lambda t, n: t.suggest_categorical(n, UNHASHABLE),
        lambda t, n: t.suggest_int(n, 3, 3),
    ]
    count = int(rng.integers(1, 9))
    chosen = [kinds[int(k)] for k in rng.integers(len(kinds), size=count)]
    parents = [int(rng.integers(-1, k)) if k else -1 for k in range(count)]
    cuts = rng.random(count)
    weights = rng.normal(size=count)
    odd = rng.random()

    def objective(trial: optuna.Trial) -> float:
        at: dict[int, float] = {}
        for k, suggest in enumerate(chosen):
            parent = parents[k]
            if parent < 0 or at.get(parent, -1.0) > cuts[k]:
                value = suggest(trial, f"p{k}")
                dist = trial.distributions[f"p{k}"]
                top = len(dist.choices) - 1 if isinstance(dist, CategoricalDistribution) else 0
                at[k] = place(dist, value) / top if top else 0.5 + 0.5 * place(dist, value)
        value = sum(weights[k] * u for k, u in at.items())
        if odd < 0.3:
            trial.set_constraint("c", value - 1.0)
        if odd > 0.8 and value > 1.0:
            raise optuna.TrialPruned
        return math.inf if odd > 0.6 and value > 0.8 else value

    return objective


@pytest.mark.parametrize("seed", range(12))
def test_random_spaces_run_thirty_trials(seed: int) -> None:
    rng = np.random.default_rng(seed)
    direction = "maximize" if seed % 3 == 0 else "minimize"
    study = study_of(random_space(rng), 30, seed=seed, direction=direction, n_jobs=1 + seed % 2)
    assert len(study.trials) == 30 and not any(t.state == TrialState.FAIL for t in study.trials)


def test_stages_may_have_choices_that_no_set_holds() -> None:
    from search.samplers.stages import Stages

    space: dict[str, BaseDistribution] = {
        "train": CategoricalDistribution(UNHASHABLE),
        "score": FloatDistribution(0, 1),
    }
    stages = Stages(("train", "score"), {"score": "score"}, lambda _: {"train": 10.0, "score": 1.0})
    sampler = StructuredSampler(seed=0, prior=Prior(stages=stages))
    study = optuna.create_study(sampler=sampler)
    for _ in range(15):
        trial = study.ask(space)
        study.tell(trial, len(trial.params["train"]) + trial.params["score"])
    assert study.best_value < 1.2


def test_it_needs_numpy_scipy_and_optuna_only() -> None:
    code = (
        "import sys\n"
        "from search.samplers.structured.sampler import StructuredSampler\n"
        "rooms = ('torch', 'sqlalchemy', 'alembic', 'psycopg2', 'techniques', 'trainer', 'readers',\n"
        "    'bundle', 'typer', 'rich', 'plotly', 'threadpoolctl', 'sentencepiece', 'sklearn', 'pandas')\n"
        "print(*[room for room in rooms if room in sys.modules])\n"
        "ours = [name for name in sys.modules if name.startswith('search.')]\n"
        "print(*[name for name in ours if name.split('.')[1] not in ('common', 'samplers')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [], done.stdout


@pytest.mark.parametrize("shape", [float, lambda v: math.exp(20.0 * v)], ids=["plain", "wide"])
def test_the_unit_of_the_values_changes_no_proposal(shape: Callable[[float], float]) -> None:
    """Not even far below 1e-12: no threshold is a number of somebody's unit."""

    def proposed(power: int) -> list[dict[str, Any]]:
        study = optuna.create_study(sampler=StructuredSampler(seed=3))
        for _ in range(16):
            trial = study.ask()
            a, b, c = (trial.suggest_float(name, 0.0, 1.0) for name in "abc")
            kind = trial.suggest_categorical("kind", [1, 2, 3])
            loss = (a - 0.3) ** 2 + (b - 0.6) ** 2 * c + 0.1 * kind * a
            study.tell(trial, math.ldexp(shape(loss), power))
        return [trial.params for trial in study.trials]

    plain = proposed(0)
    assert all(proposed(power) == plain for power in (-200, -45, 60))


def test_one_hopeless_value_among_equal_ones_keeps_its_place_above_them() -> None:
    for level in (0.0, 1.0, 1e6, -1e9):
        equal = np.full(20, level)
        assert settled(np.append(equal, level + 5.0))[-1] == level + 5.0
        found = settled(np.array([level - 1.0, *equal, level + 1e3]))
        assert found[0] == level - 1.0 and found[-1] == level + 2.0
