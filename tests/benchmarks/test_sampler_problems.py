"""The samplers' problems: the page is what the kept figures say, optima are reached, noise is told alone."""

from __future__ import annotations

import json

import numpy as np
import optuna
import pytest

from benchmarks.problems.__main__ import DOCUMENT, FIGURES, bar, figures_of, joined, search, written
from benchmarks.problems.problem_set import LATER, Problem, Value


def test_the_page_is_what_the_kept_figures_say() -> None:
    assert written(json.loads(FIGURES.read_text(encoding="utf-8"))) == DOCUMENT.read_text(encoding="utf-8")


def test_what_is_measured_anew_replaces_its_own_figures_only() -> None:
    measured = figures_of({"sphere": {"ours": [1.0, 2.0, 3.0]}, "digits": {"ours": [0.5]}})
    kept = {"sphere": {"gp": [4.0, 3.0, 5.0, 4]}, "digits": {"tpe": [0.1, 0.1, 0.1, 1]}}
    found = joined(kept, measured)
    assert found["sphere"]["gp"] == [4.0, 3.0, 5.0, 4]
    assert found["sphere"]["ours"][0] == 2.0
    assert found["sphere"]["ours"][3] == 3
    assert "tpe" not in found["digits"], "its regret is above another best"
    assert bar({"tpe": [2.0, 1, 3, 10], "gp": [1.0, 1, 1, 4], "random": [5.0, 4, 6, 10]}) == pytest.approx(
        1.2
    )


@pytest.mark.parametrize("name", LATER)
def test_no_search_finds_less_than_the_optimum(name: str) -> None:
    found = search(LATER[name], "random", 0)
    assert len(found["trace"]) == LATER[name].runs
    assert min(found["trace"]) > 0.0


def test_noise_may_grow_with_a_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(_seed: int) -> Value:
        return lambda trial: 0.0 * trial.suggest_float("x0", 0.0, 1.0)

    told: list[optuna.Study] = []
    create = optuna.create_study
    monkeypatch.setattr(optuna, "create_study", lambda **k: told.append(create(**k)) or told[0])
    assert search(Problem(of, runs=300, noise=0.1, louder="x0"), "random", 0)["trace"][-1] == 0.0
    each = np.array([t.value / t.params["x0"] for t in told[0].trials if t.value is not None])
    assert each.std() == pytest.approx(0.1, rel=0.15)
