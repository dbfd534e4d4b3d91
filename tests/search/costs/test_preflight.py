"""Predicted costs: exact counts, calibration from results, and who is turned away."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bundle.sizes import expected_bytes
from search.costs.bills import eval_bill, model_bill, train_bill
from search.costs.preflight import Preflight
from search.samplers.admission import Infeasible, draw_all, require_feasible
from search.space.native import build_space
from search.space.space import Space
from search.study.limits import CONSTRAINTS, violations
from search.study.model import Limits
from techniques.config import Resolved
from tests.conftest import ROOT
from tests.search.fakes import HEADER, KNOWN, make_study

SPACE = """
[space]
num_layers = {low = 2, high = 5}
matrix_lr = {low = 0.01, high = 0.1, log = true}
"""


def rig(folder: Path, *, header: str = HEADER, text: str = SPACE) -> tuple[Space, Preflight]:
    study = make_study(folder, text, header=header)
    return build_space(study, KNOWN), Preflight(study, prior={})  # the fake catalogue's costs are others


def truth(space: Space, resolved: object, rng: np.random.Generator) -> dict[str, float]:
    """What a machine would measure: the prediction, off by factors that it does not know."""
    on = resolved.techniques  # type: ignore[attr-defined]
    size = model_bill(resolved).total * 0.8 * (0.9 if "fine_round" in on else 1.0)  # type: ignore[arg-type]
    speed = 3e-10 * (1.5 if "slide" in on else 1.0)
    return {
        "code_bytes": expected_bytes(on),
        "artifact_bytes": expected_bytes(on) + round(size * math.exp(rng.normal(0, 0.005))),
        "eval_seconds": eval_bill(resolved).total * speed * math.exp(rng.normal(0, 0.05)),  # type: ignore[arg-type]
        "train_seconds": train_bill(resolved, 1000).total * 2e-10 * math.exp(rng.normal(0, 0.05)),  # type: ignore[arg-type]
    }


def test_parameters_are_exact_and_bits_move_bytes(tmp_path: Path):
    space, preflight = rig(tmp_path)
    plain = preflight.predict(space.resolve({}))
    table = preflight.predict(space.resolve({"table": True, "table.rows": 128}))
    assert table.params - plain.params == 128 * 64
    assert plain.artifact_bytes < plain.artifact_bytes_upper
    sizes = [model_bill(space.resolve({"narrow": True, "narrow.width": w})).total for w in (4, 5, 6)]
    assert sizes == sorted(sizes) and sizes[-1] < model_bill(space.resolve({})).total


def test_the_naive_baseline_is_predicted_within_a_few_percent():
    from search.study.load import load_study
    from techniques import catalog

    known = catalog.metadata()
    study = load_study(ROOT / "studies" / "record_8xh100.toml", known)
    from techniques.config import resolve

    assert abs(model_bill(resolve({}, known)).total / (15_863_489 - 47_642) - 1.0) < 0.05
    naive = resolve({}, known)
    preflight = Preflight(study)
    told = preflight.predict(naive)
    assert abs(told.artifact_bytes / 15_863_489 - 1.0) < 0.03
    assert preflight.chance(naive) > 0.5  # 0.9 % are left
    assert preflight.rejection(naive, doubtful=True) is None
    preflight.learn([(naive, {"artifact_bytes": 15_863_489, "code_bytes": 47_642})])
    after = preflight.predict(naive)
    assert abs(after.artifact_bytes / 15_863_489 - 1.0) < 0.003
    assert after.artifact_bytes_upper / after.artifact_bytes < 1.06
    assert preflight.chance(naive) > 0.6


def test_seconds_are_unknown_until_a_trial_finished_then_learnt(tmp_path: Path):
    space, preflight = rig(tmp_path)
    rng = np.random.default_rng(0)
    draws = [space.resolve(space.repaired(space.keep_active(draw_all(space, rng)))) for _ in range(80)]
    assert preflight.predict(draws[0]).eval_seconds is None and preflight.rejection(draws[0]) is None
    preflight.learn((r, truth(space, r, rng)) for r in draws[:40])
    for resolved in draws[40:]:
        real, said = truth(space, resolved, rng), preflight.predict(resolved)
        assert abs(said.artifact_bytes - real["artifact_bytes"]) < 8000  # of 120,000 to 600,000
        assert said.eval_seconds and abs(math.log(said.eval_seconds / real["eval_seconds"])) < 0.4
        assert said.train_seconds and abs(math.log(said.train_seconds / real["train_seconds"])) < 0.4
        assert said.eval_seconds_upper and said.eval_seconds_upper > said.eval_seconds


def test_the_bound_is_wide_before_a_trial_finished_and_narrow_after(tmp_path: Path):
    space, preflight = rig(tmp_path)
    rng, resolved = np.random.default_rng(0), space.resolve({})
    before = preflight.predict(resolved)
    real = truth(space, resolved, rng)["artifact_bytes"]  # a fifth below the calculator
    assert real < before.artifact_bytes < before.artifact_bytes_upper
    for rate in (0.02, 0.04, 0.06):
        seen = space.resolve({"matrix_lr": rate})
        preflight.learn([(seen, truth(space, seen, rng))])
    after = preflight.predict(resolved)
    assert after.artifact_bytes < after.artifact_bytes_upper < 1.1 * after.artifact_bytes


def test_seconds_belong_to_a_machine(tmp_path: Path):
    space, preflight = rig(tmp_path)
    rng, resolved = np.random.default_rng(0), space.resolve({})
    preflight.hardware = "one"
    preflight.learn([(resolved, {**truth(space, resolved, rng), "hardware": "another"})])
    assert preflight.predict(resolved).train_seconds is None
    seen = space.resolve({"matrix_lr": 0.02})
    preflight.learn([(seen, {**truth(space, seen, rng), "hardware": "one"})])
    told = preflight.predict(resolved)
    assert told.train_seconds and told.train_seconds_upper and told.train_seconds < told.train_seconds_upper


def test_stages_are_learnt_apart_and_summed(tmp_path: Path):
    """1,000 steps and a calibration: the limit on training counts both."""
    space, preflight = rig(tmp_path)
    for k in range(8):
        seen = space.resolve({"matrix_lr": 0.01 + 0.01 * k})
        steps, whole = 100.0 + k, train_bill(seen, 1.0).total
        result = {
            "steps": steps,
            "stage_seconds": {"train": {"timed": steps * whole * 1e-10}, "quantize": 0.0},
        }
        preflight.learn([(seen, {**result, "train_seconds": 1e6 + k})])  # the stages win
    resolved = space.resolve({"matrix_lr": 0.05})
    expected = train_bill(resolved, resolved.config.iterations).total * 1e-10
    assert preflight.predict(resolved).train_seconds == pytest.approx(expected, rel=0.05)


def test_learning_twice_is_learning_once(tmp_path: Path):
    space, preflight = rig(tmp_path)
    rng = np.random.default_rng(0)
    resolved = space.resolve({})
    result = truth(space, resolved, rng)
    preflight.learn([(resolved, result)])
    preflight.learn([(resolved, result), (resolved, {"eval_seconds": float("nan")})])
    assert len(preflight.seconds("eval").rows) == 1


def test_each_limit_turns_away_with_a_reason(tmp_path: Path):
    space, preflight = rig(tmp_path, header=HEADER.replace("eval_seconds = 100", "eval_seconds = 2"))
    cheap, dear = space.resolve({}), space.resolve({"slide": True, "slide.stride": 16})
    assert preflight.rejection(dear) is None  # nothing is known of seconds yet
    rng = np.random.default_rng(0)
    for k in range(6):
        seen = space.resolve({"matrix_lr": 0.02 + 0.01 * k, "slide": k % 2 == 1, "slide.stride": 128})
        preflight.learn([(seen, {"eval_seconds": 0.5 * eval_bill(seen).total / eval_bill(cheap).total})])
    assert preflight.rejection(cheap) is None
    assert (preflight.rejection(dear) or "").startswith("eval: ")
    small, tight = rig(tmp_path, header=HEADER.replace("100_000_000", "200_000"))
    assert (tight.rejection(small.resolve({"table": True, "table.rows": 4096})) or "").startswith("bytes: ")
    assert rng is not None


def test_legality_by_setting_is_seen(tmp_path: Path):
    space, preflight = rig(tmp_path)
    assert preflight.rejection(space.resolve({"fit": True, "fit.mask": "context"})) is None
    assert (preflight.rejection(space.resolve({"fit": True, "fit.mask": "scored"})) or "").startswith(
        "legality: fit"
    )


def test_a_study_without_any_feasible_configuration_is_refused(tmp_path: Path):
    space, preflight = rig(tmp_path, header=HEADER.replace("100_000_000", "30_000"))
    with pytest.raises(
        Infeasible, match=r"30,000 bytes.*all .*bytes \d+.*smallest is predicted at [\d,]+ bytes.*Raise"
    ):
        require_feasible(space, preflight, draws=60)
    require_feasible(*rig(tmp_path), draws=5)


def test_violations_are_relative_and_complete():
    limits = Limits(artifact_bytes=1000, train_seconds=10.0, eval_seconds=20.0)
    good = {"artifact_bytes": 900, "train_seconds": 12.0, "eval_seconds": 5.0, "status": "finished"}
    found = violations(good, limits, failure=None)
    assert tuple(found) == CONSTRAINTS
    assert found == pytest.approx({"bytes": -0.1, "train": 0.2, "eval": -0.75, "run": -1.0})
    assert violations(None, limits, failure="diverged") == {
        "bytes": 0.0,
        "train": 0.0,
        "eval": 0.0,
        "run": 1.0,
    }
    assert violations(None, limits)["run"] == -1.0
    assert violations({**good, "eval_seconds": float("nan"), "status": "failed"}, limits)["run"] == 1.0


def test_a_target_of_bytes_is_the_prediction_where_it_can_be_reached() -> None:
    """Fits as six real runs of the laptop preset made them: 119,939 bytes of 120,000 asked for, 37,108 of
    30,000, 164,083 of 180,000; pruning ±1 spared 0.8 % at most."""
    from search.study.load import find_study
    from techniques import catalog
    from techniques.config import read_preset, resolve

    known = catalog.metadata()
    preflight = Preflight(find_study(ROOT / "studies" / "laptop.toml"))

    def run(**settings: object) -> Resolved:
        told = {name.replace("__", "."): value for name, value in settings.items()}
        return resolve({"preset": read_preset("laptop"), "file": {"num_threads": 1, **told}}, known)

    preflight.learn([(run(), {"artifact_bytes": 175_930, "code_bytes": 21_000})])
    for target, made, low, high, most in (
        (120_000, 119_939, 119_000, 120_000, 120_000),
        (30_000, 37_108, 30_001, 41_000, 45_000),
        (180_000, 164_083, 148_000, 180_000, 180_000),
    ):
        told = preflight.predict(run(mixed_bits=True, sdclip=True, sdclip__target_bytes=target))
        assert low <= told.artifact_bytes <= high
        assert made <= told.artifact_bytes_upper <= most
    free = preflight.predict(run(mixed_bits=True, prune=True)).artifact_bytes
    far = run(mixed_bits=True, prune=True, prune__target_bytes=int(0.7 * free))
    assert 0.95 * free < preflight.predict(far).artifact_bytes < 1.02 * free
    near = run(mixed_bits=True, prune=True, prune__target_bytes=2 * free)  # more than it takes
    assert preflight.predict(near).artifact_bytes < 1.03 * free
    limits = replace(preflight.study.limits, artifact_bytes=120_000)
    preflight.study = replace(preflight.study, limits=limits)
    for target, surely in ((120_000, True), (130_000, False)):
        aimed = run(mixed_bits=True, sdclip=True, sdclip__target_bytes=target)
        assert (preflight.chance(aimed) == 1.0) is surely
    known_before = len(preflight.model_bytes.rows)
    preflight.learn([(far, {"artifact_bytes": 170_000, "code_bytes": 18_000})])
    assert len(preflight.model_bytes.rows) == known_before  # what was made to fit teaches nothing
