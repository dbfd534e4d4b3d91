"""One function chooses the trainer, one the space; nothing else asks whether a script is ours."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from search.common.paths import ROOT
from search.costs.preflight import NoCosts, Preflight, costs_of
from search.trainers.foreign.run import ForeignTrainer
from search.trainers.native import TRAINER, NativeTrainer
from search.trainers.trainer import Trainer, trainer_of
from tests.search.fake_studies import FAKE
from tests.search.fakes import make_study
from tests.search.foreign_studies import foreign_study

SEARCH = ROOT / "search"
OWNERS = ("study", "trainers")  # rooms that read the table and choose by it
CLASSES = ("ForeignTrainer", "NativeTrainer", "ForeignSpace", "NativeSpace", "ForeignRun", "NoCosts")
SPACE = "[space]\nLR = { low = 0.01, high = 0.1, log = true }\n"


def who_asks(files: list[Path]) -> dict[str, set[str]]:
    """file -> its functions that read `foreign` of a study."""
    found: dict[str, set[str]] = {}
    for path in files:
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and node.attr == "foreign":
                    if ast.unparse(node.value).split(".")[-1] == "study":
                        found.setdefault(str(path.relative_to(SEARCH)), set()).add(function.name)
    return found


def test_one_place_outside_the_owners_asks_whether_a_study_is_foreign() -> None:
    files = [p for p in SEARCH.rglob("*.py") if p.relative_to(SEARCH).parts[0] not in OWNERS]
    assert len(files) > 50
    assert who_asks(files) == {"space/build.py": {"build_space"}}
    named = {p.parent.name for p in files for name in CLASSES if name in p.read_text(encoding="utf-8")}
    assert named == {"space", "costs"}, "elsewhere the trainer says what differs; nobody asks for its class"


def test_one_function_of_the_trainers_chooses() -> None:
    assert who_asks([*(SEARCH / "trainers").rglob("*.py")]) == {"trainers/trainer.py": {"trainer_of"}}


def test_the_three_kinds(tmp_path: Path) -> None:
    study, theirs = make_study(tmp_path), foreign_study(tmp_path, SPACE)
    own, other, foreign = trainer_of(study), trainer_of(study, FAKE), trainer_of(theirs)
    assert isinstance(own, NativeTrainer) and isinstance(foreign, ForeignTrainer)

    def facts(trainer: Trainer) -> tuple[bool, ...]:
        trainer.check()
        return trainer.built_in, trainer.has_baseline, trainer.predicts_costs, trainer.keeps_stages

    assert facts(own) == (True, True, True, True)
    assert facts(other) == (False, False, True, True)
    assert facts(foreign) == (False, True, False, False)
    assert own.command() == TRAINER and other.command() == (TRAINER[0], str(FAKE))
    assert other.code_files() == [FAKE] and set(own.code_files()) > {ROOT / "train_gpt.py"}
    assert isinstance(costs_of(own, study), Preflight) and isinstance(costs_of(foreign, theirs), NoCosts)
    assert own.no_bundle(3) == "" and "search.py show 3" in foreign.no_bundle(3)
    assert (own.start, foreign.start) == ("preset laptop", "the script as it is")


def test_a_script_of_another_contract_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "theirs.py"
    script.write_text("import os\n")
    with pytest.raises(ValueError, match=r"search\.py scan"):
        trainer_of(make_study(tmp_path), script).check()


def test_a_trial_is_repeated_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a b" / "config.json"
    line = trainer_of(make_study(tmp_path)).repeat_line({"seed": 3}, path)
    assert line == f"python train_gpt.py '{path}'" and '"seed": 3' in path.read_text()
