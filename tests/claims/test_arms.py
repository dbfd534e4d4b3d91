"""What the words of a comparison mean."""

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from claims.arms import Arm, arm_of_source, arm_of_study, arms_of
from search.session.session import Session
from search.study.foreign import Foreign
from search.study.load import find_study
from search.study.model import fresh_seeds
from techniques import catalog
from techniques.attention.xsa import XSA_MODES
from techniques.base import Choice
from techniques.config import read_preset
from techniques.embedding.smear_gate import SMEAR_MODES
from tests.search.fake_studies import write_study


def no_session() -> Session:
    raise ValueError("no study")


def parsed(*words: str, base: str = "laptop") -> list[Arm]:
    return arms_of(words, (), lambda: arm_of_source(base, no_session), no_session)


def labels(*words: str, base: str = "laptop") -> list[str]:
    return [arm.label for arm in parsed(*words, base=base)]


def test_each_form() -> None:
    assert labels("leaky_relu2") == ["laptop", "leaky_relu2"]
    each = parsed("smear_gate")
    assert [a.label for a in each] == ["laptop", *(f"smear_gate.mode={mode}" for mode in SMEAR_MODES)]
    assert not each[0].resolved().techniques
    assert tuple(a.resolved().techniques["smear_gate"].config.mode for a in each[1:]) == SMEAR_MODES
    modes = parsed("smear_gate.mode=previous,input_gate")
    assert [a.label for a in modes] == [
        "laptop",
        "smear_gate.mode=previous",
        "smear_gate.mode=input_gate",
    ]
    assert not modes[0].resolved().techniques
    assert modes[2].resolved().techniques["smear_gate"].config.mode == "input_gate"
    assert labels("xsa.last_n=1,2,3") == ["xsa.last_n=1", "xsa.last_n=2", "xsa.last_n=3"]
    assert labels("xsa.last_n=2") == ["laptop", "xsa.last_n=2"]
    assert labels("matrix_lr=0.02") == ["laptop", "matrix_lr=0.02"]
    low, high = parsed("matrix_lr=0.02,0.08")
    assert (low.resolved().config.matrix_lr, high.resolved().config.matrix_lr) == (0.02, 0.08)


def test_what_a_technique_needs_is_on_in_both_arms() -> None:
    assert labels("awq_lite") == ["laptop with gptq", "awq_lite"]
    assert all("gptq" in arm.resolved().techniques for arm in parsed("awq_lite"))
    assert all("gptq" in arm.resolved().techniques for arm in parsed("awq_lite.group=16,32"))
    with pytest.raises(ValueError, match=r"both on.*compare swa\.SETTING=VALUE"):
        parsed("swa", base="pr549")  # which has the other averager


def test_a_default_that_does_not_fit_is_replaced_and_told() -> None:
    base, *modes = parsed("xsa")  # by default of more layers than the preset has
    assert base.label == "laptop"
    assert [a.label for a in modes] == [f"xsa.mode={mode} with last_n=1" for mode in XSA_MODES]
    for arm, mode in zip(modes, XSA_MODES, strict=True):
        config = arm.resolved().techniques["xsa"].config
        assert (config.last_n, config.mode) == (1, mode)
    assert labels("xsa", base="naive") == ["naive", *(f"xsa.mode={mode}" for mode in XSA_MODES)]


WITH_MODES = [
    (name, mode.options)
    for name, one in catalog.metadata().items()
    if isinstance(mode := one.space.get("mode"), Choice)
]


@pytest.mark.parametrize("base", ["laptop", "pr1019"])
@pytest.mark.parametrize(("name", "modes"), WITH_MODES)
def test_a_technique_with_modes_is_answered_per_mode(name: str, modes: tuple[str, ...], base: str) -> None:
    """Each is one arm, and its label says which."""
    first, *others = parsed(name, base=base)
    assert name not in first.resolved().techniques and len(WITH_MODES) == 7
    assert [a.label.split(" with ")[0] for a in others] == [f"{name}.mode={mode}" for mode in modes]
    assert [a.resolved().techniques[name].config.mode for a in others] == [*modes]


def test_a_seed_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text('{"seed": "x"}')
    with pytest.raises(ValueError, match="odd: `seed` takes a whole number, but got 'x'"):
        arm_of_source(str(tmp_path / "odd.json"), no_session)


def test_a_technique_that_is_on_is_taken_away() -> None:
    name = next(n for n in ("smear_gate", "xsa") if read_preset("pr1019").get(n))
    without, *modes = parsed(name, base="pr1019")
    assert without.label == f"without {name}" and name not in without.resolved().techniques
    whole = arm_of_source("pr1019", no_session)
    mode = whole.resolved().techniques[name].config.mode
    (own,) = (a for a in modes if a.label == f"{name}.mode={mode}")
    assert own.identity() == whole.identity(), "one of the modes is the preset's own"
    without, with_ = parsed("ema", base="pr1019")
    assert (without.label, with_.label) == ("without ema", "pr1019")
    assert "ema" not in without.resolved().techniques and "ema" in with_.resolved().techniques


def test_files(tmp_path: Path) -> None:
    paths = [tmp_path / "A.json", tmp_path / "B.json"]
    for path, lr in zip(paths, (0.02, 0.03), strict=True):
        path.write_text(json.dumps({"preset": "laptop", "matrix_lr": lr, "seed": 7, "out_dir": "x"}))
    a, b = parsed(*map(str, paths))
    assert (a.label, b.label, a.own_seed) == ("A", "B", 7)
    assert a.config(99) == {"preset": "laptop", "matrix_lr": 0.02, "num_reports": 0, "seed": 99}
    assert labels(str(paths[1])) == ["laptop", "B"]
    assert [x.label for x in parsed("leaky_relu2", base=str(paths[0]))] == ["A", "leaky_relu2"]
    with pytest.raises(ValueError, match=r"A \(2\)|same settings"):
        parsed(str(paths[0]), str(paths[0]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("smear_gat",), "smear_gate"),
        (("smear_gate.mod=average",), "mode"),
        (("smear_gate=1",), "with and without"),
        (("matrix_lr",), "say its values"),
        (("matrix_lr=0.04",), "same settings"),
        (("smear_gate.mode=average,averag",), "averag"),
        (("smear_gate", "xsa"), "A comparison is of"),
        ((), "A comparison is of"),
    ],
)
def test_what_is_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parsed(*words)


def test_a_base_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="laptop"):
        parsed("smear_gate", base="laptp")


def test_seeds_follow_from_the_question_and_are_fresh() -> None:
    seeds = fresh_seeds("a", 64, {1337})
    assert seeds == fresh_seeds("a", 64, {1337}) and len(set(seeds)) == 64
    assert seeds[:8] == fresh_seeds("a", 8, {1337}) and not {*seeds} & {*fresh_seeds("b", 64, {1337})}
    assert seeds[0] not in fresh_seeds("a", 64, {seeds[0]})


def test_folders_are_no_paths() -> None:
    names = [Arm(label, "", {}, 0).folder for label in ("a/../b c=1", "a_.._b_c=1", "..", "#7", "a" * 99)]
    assert names[0].startswith("a_.._b_c=1-") and names[1] == "a_.._b_c=1" and names[2] != ".."
    assert len(set(names)) == 5 and all("/" not in name and len(name) < 60 for name in names)


def test_another_trainers_study_is_refused(tmp_path: Path) -> None:
    study = replace(find_study(write_study(tmp_path, "theirs")), foreign=cast("Foreign", object()))
    with pytest.raises(ValueError, match="runs another script"):
        arm_of_study(study)
