"""The space: what is active under which gates, and that nothing contradictory comes out of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import optuna
import pytest

from search.samplers.admission import draw_all
from search.space.build import native_space
from techniques.base import check_value
from techniques.config import known_field, resolve
from tests.search.fakes import KNOWN, make_study

OFF = {"quantizer": "baseline"}


def space_of(folder: Path, text: str = ""):
    return native_space(make_study(folder, text), KNOWN)


def test_rivals_for_a_slot_are_one_choice(tmp_path: Path):
    space = space_of(tmp_path)
    assert space.slots == {"quantizer": ("baseline", "coarse_round", "fine_round")}
    assert "fine_round" not in space.distributions and "slide" in space.switches
    narrowed = space_of(tmp_path, "[space]\nquantizer = {choices = ['fine_round', 'baseline']}")
    assert narrowed.slots == {"quantizer": ("baseline", "fine_round")}
    assert space_of(tmp_path, "[techniques]\nfine_round = 'off'").slots == {}


def test_settings_are_active_only_under_their_gate(tmp_path: Path):
    space = space_of(tmp_path)
    assert "plain.gain" not in space.active(OFF) and "plain.gain" in space.active({"plain": True})
    assert "fine_round.damp" in space.active({"quantizer": "fine_round"})
    assert "fine_round.damp" not in space.active({"quantizer": "coarse_round"})
    full = {name: d for name, d in draw_all(space, np.random.default_rng(0)).items()}
    full |= {"plain": False, "table": False}
    kept = space.keep_active(full)
    assert not {"plain.gain", "plain.mode", "table.rows", "rider"} & kept.keys()
    assert not any(k.startswith("plain") for k in space.config(full))


def test_conflicts_and_needs_are_walked(tmp_path: Path):
    space = space_of(tmp_path)
    assert "rival" in space.active({}) and "rival" not in space.active({"plain": True})
    assert "rider" not in space.active({}) and "rider" in space.active({"table": True})


def test_what_a_technique_leaves_unread_is_inactive(tmp_path: Path):
    space = space_of(tmp_path, "[space]\nwarmdown_iters = {low = 1, high = 90}")
    assert "warmdown_iters" in space.active({}) and "warmdown_iters" not in space.active({"cooling": True})
    fixed = space_of(tmp_path, "[fixed]\nwarmdown_iters = 3")
    assert fixed.config({})["warmdown_iters"] == 3 and "warmdown_iters" not in fixed.config({"cooling": True})


def test_a_setting_that_needs_another_technique_is_asked_only_beside_it(tmp_path: Path):
    class Rival(KNOWN["plain"]):
        setting_requires = {"gain": "table"}

    known, header = KNOWN | {"plain": Rival}, {"plain": True}
    study = make_study(tmp_path)
    space = native_space(study, known)
    assert "plain.gain" in space.active(header | {"table": True}) and "plain.gain" not in space.active(header)
    assert any({"plain.gain"} == set(group) & {"plain.gain", "plain.mode"} for group in space.groups())
    gain = {"plain.gain": 2.5}
    assert "plain.gain" not in space.config(header | gain)
    started = native_space(dataclasses.replace(study, base=study.base | header | gain), known)
    default = vars(Rival.Config())["gain"]
    assert started.resolve(header).values["plain.gain"] == default  # the preset's 2.5 went with `table`
    assert started.resolve(header | {"table": True}).values["plain.gain"] == 2.5
    with pytest.raises(ValueError, match=r"`plain\.gain` needs table, which is off"):
        resolve({"file": header | gain}, known)


def test_random_draws_resolve_and_come_back(tmp_path: Path):
    space = space_of(
        tmp_path, "[space]\nnum_layers = {low = 2, high = 5}\nmatrix_lr = {low = 0.01, high = 0.1}"
    )
    rng, seen = np.random.default_rng(1), set[frozenset[str]]()
    for _ in range(150):
        params = space.repaired(space.keep_active(draw_all(space, rng)))
        resolved = space.resolve(params)
        seen.add(frozenset(resolved.techniques))
        assert space.params_of(space.config(params)) == params
        for name, value in space.config(params).items():
            if name not in ("preset", *KNOWN):
                check_value(name, value, known_field(name, KNOWN))  # type: ignore[arg-type]
        on = set(resolved.techniques)
        assert not {"plain", "rival"} <= on and not ("rider" in on and "table" not in on)
    assert len(seen) > 60


def test_a_count_above_a_sampled_size_is_repaired_or_refused(tmp_path: Path):
    space = space_of(tmp_path, "[space]\nnum_layers = {low = 2, high = 5}")
    params = {"plain": True, "plain.last_n": 5, "num_layers": 3}
    with pytest.raises(ValueError, match=r"`plain.last_n` must be at most num_layers, but got 5 and 3"):
        space.resolve(params)
    assert space.repaired(params)["plain.last_n"] == 3


def test_suggest_asks_for_the_active_only(tmp_path: Path):
    space = space_of(tmp_path, "[space]\nnum_layers = {low = 2, high = 5}")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    for _ in range(40):
        trial = study.ask()
        params = space.suggest(trial)
        assert set(params) == space.active(params) == set(trial.params)
    study.enqueue_trial({"quantizer": "fine_round", "fine_round.damp": 0.02, "plain": False})
    assert space.suggest(study.ask())["fine_round.damp"] == 0.02


def test_a_known_configuration_comes_in_or_says_why_not(tmp_path: Path):
    space = space_of(tmp_path)
    start = space.params_of({"preset": "laptop"})
    assert start["quantizer"] == "baseline" and start["plain"] is False and "plain.gain" not in start
    inside = space.params_of({"table": True, "table.rows": 100, "fine_round": True})
    assert inside["table.rows"] == 100 and inside["quantizer"] == "fine_round"
    with pytest.raises(ValueError, match=r"`table.rows` must lie in .* has 9999"):
        space.params_of({"table": True, "table.rows": 9999})
    with pytest.raises(ValueError, match=r"cannot express .* peek"):
        space.params_of({"peek": True})


def test_groups_are_active_together(tmp_path: Path):
    space = space_of(tmp_path)
    groups = space.groups()
    assert sorted(n for g in groups for n in g) == sorted(space.distributions)
    rng = np.random.default_rng(0)
    for _ in range(100):
        active = space.active(draw_all(space, rng))
        assert all(active.isdisjoint(g) or active.issuperset(g) for g in groups)


def test_nothing_free_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="must leave something free"):
        space_of(tmp_path, "[techniques]\nothers = 'off'")
