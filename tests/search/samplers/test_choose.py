"""Every kind of sampler behind the same admission: it proposes only what is admitted and new."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest

from search.common.options import SAMPLERS
from search.costs.bills import model_bill
from search.costs.preflight import Preflight
from search.samplers.admission import examine
from search.samplers.caddie import CaddieSampler
from search.samplers.choose import sampled_by
from search.samplers.gp import GaussianProcess
from search.space.native import build_space
from search.study.limits import set_all, violations
from tests.search.fakes import HEADER, KNOWN, make_study

BYTES = 100_000 + 230_000
TEXT = """
[techniques]
others = "off"
plain = "free"
table = "free"
fine_round = "free"
[space]
num_layers = {low = 2, high = 5}
matrix_lr = {low = 0.005, high = 0.5, log = true}
[sampler]
startup_trials = 10
"""


@pytest.mark.parametrize("kind", SAMPLERS)
def test_it_proposes_only_what_is_admitted_and_new(tmp_path: Path, kind: str) -> None:
    study = sampled_by(make_study(tmp_path, TEXT, header=HEADER.replace("100_000_000", str(BYTES))), kind)
    space = build_space(study, KNOWN)
    preflight = Preflight(study)
    preflight._file_sizes = {"": 100_000}  # type: ignore[reportPrivateUsage]
    optimizer = optuna.create_study(sampler=CaddieSampler(space, preflight, seed=0))
    running = optimizer.ask()  # another worker's
    space.suggest(running)
    for _ in range(12):
        trial = optimizer.ask()
        params = space.suggest(trial)
        assert set(params) == space.active(params)
        assert examine(space, preflight, params)[1] is None
        size = 100_000 + round(0.9 * model_bill(space.resolve(params)).total)
        result = {"artifact_bytes": size, "code_bytes": 1, "train_seconds": 1.0, "eval_seconds": 1.0}
        for name, figure in result.items():
            trial.set_user_attr(name, figure)
        set_all(trial, violations(result, study.limits))
        optimizer.tell(trial, math.log(params["matrix_lr"] / 0.05) ** 2)
    tried = [tuple(sorted(t.params.items())) for t in optimizer.trials]
    assert len(set(tried)) == 13


def test_the_gaussian_process_learns_and_walks_away_from_what_is_refused() -> None:
    dists: dict[str, optuna.distributions.BaseDistribution] = {
        f"x{k}": optuna.distributions.FloatDistribution(0.0, 1.0) for k in range(3)
    }
    study, drawn = optuna.create_study(), np.random.default_rng(0).random((25, 3))
    for k in range(25):
        params = {name: float(at) for name, at in zip(dists, drawn[k], strict=True)}
        value = sum((v - 0.3) ** 2 for v in params.values())
        study.add_trial(optuna.create_trial(params=params, distributions=dists, value=value))
    sampler = GaussianProcess(dists, startup_trials=5, seed=0)
    sampler.begin(study, study.trials[:4])
    assert sampler.propose() == {}
    sampler.begin(study, study.trials)
    first = dict(sampler.propose())
    assert all(abs(v - 0.3) < 0.12 for v in first.values()) and len(first) == 3
    later = [sampler.propose() for _ in range(40)]
    assert all(found.items() <= first.items() for found in later) and not later[-1]


def test_an_unknown_kind_is_told_the_kinds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one of structured, tpe, gp, random, but got 'magic'"):
        sampled_by(make_study(tmp_path, ""), "magic")


def test_no_sampler_loads_torch_before_it_models() -> None:
    code = "import sys, search.samplers.choose; print('torch' in sys.modules, 'scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
