"""The tables of a foreign study, its space and its passport: what they give, one clear error for the rest."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pytest

from search.costs.preflight import NoCosts, costs_of
from search.samplers.caddie import CaddieSampler
from search.session.passport import speed_matters
from search.session.session import Session, differences
from search.study.load import load_study
from search.study.model import study_hash
from search.trainers.code import code_hash
from search.trainers.foreign.run import ForeignTrainer
from search.trainers.native import NativeTrainer
from search.trainers.trainer import trainer_of
from tests.search.foreign_studies import foreign_study, make_theirs, space_of, write_foreign

SPACE = """
[fixed]
SEED = 1337
FLAG = true
[space]
LR = { low = 0.01, high = 0.1, log = true }
LAYERS = { low = 2, high = 12, step = 2 }
MODE = { choices = ["zlib", "zstd", 3] }
A = { gate = true }
B = { gate = true, on = "true", off = "false", when = "A" }
C = { low = 1.0, high = 2, when = "B" }
LEVEL = { low = 1, high = 22, when = { MODE = ["zstd", 3] } }
PLAIN = 7
"""


def test_conditions_and_texts(tmp_path: Path):
    space = space_of(foreign_study(tmp_path, SPACE))
    on = {"LR": 0.02, "LAYERS": 4, "MODE": "zstd", "A": True, "B": True, "C": 1.5, "LEVEL": 3}
    fixed = {"SEED": "1337", "FLAG": "1", "PLAIN": "7"}
    assert space.environment(on) == fixed | {"LR": "0.02", "LAYERS": "4", "MODE": "zstd", "A": "1"} | {
        "B": "true",
        "C": "1.5",
        "LEVEL": "3",
    }
    off = space.environment(on | {"MODE": "zlib", "A": False})
    assert off == fixed | {"LR": "0.02", "LAYERS": "4", "MODE": "zlib", "A": "0"}
    assert space.environment({}) == fixed
    assert space.resolve(on).hash() != space.resolve(on | {"C": 1.6}).hash()
    assert sorted(space.resolve(on).techniques) == ["A", "B"] and space.switchable() == {"A", "B"}
    assert space.params_of(on | {"A": False}) == {k: on[k] for k in ("LR", "LAYERS", "MODE", "LEVEL")} | {
        "A": False
    }
    with pytest.raises(ValueError, match="`LAYERS` must lie in"):
        space.params_of(on | {"LAYERS": 5})
    groups = [set(group) for group in space.groups()]
    assert {"LR", "LAYERS", "MODE", "A"} in groups and {"B"} in groups and {"C"} in groups


def test_the_sampler_draws_only_what_is_active(tmp_path: Path):
    study = foreign_study(tmp_path, SPACE + "[sampler]\nstartup_trials = 4\n")
    space, rng = space_of(study), random.Random(3)
    costs = costs_of(trainer_of(study), study)
    assert isinstance(costs, NoCosts)
    opened = optuna.create_study(sampler=CaddieSampler(space, costs, seed=1))
    for _ in range(30):
        trial = opened.ask()
        params = space.suggest(trial)
        assert set(params) == space.active(params) == set(trial.params)
        assert ("C" in params) == bool(params.get("B")) and ("B" in params) == params["A"]
        assert ("LEVEL" in params) == (params["MODE"] in ("zstd", 3))
        assert "preflight" not in trial.user_attrs
        opened.tell(trial, rng.random())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[trainer]\nscrpt = "x"', "Did you mean"),
        ('command = "python {scrip}"', "Did you mean"),
        ('command = "python train.py"', r"has no \{script\}"),
        ('command = "python \'{script}"', "No closing quotation"),
        ("score = [1]", "takes a list of texts"),
        ('occurrence = "best"', "must be one of only, first, last"),
        ('wallclock = "SECONDS"', "neither in"),
        ("silent_seconds = -1", "not negative"),
        ("[space]\nX = { low = 2, high = 1 }", "low < high"),
        ("[space]\nX = { low = 0, high = 1, log = true }", "needs low > 0"),
        ("[space]\nX = { low = 0.0, high = 1, step = 2 }", "takes no step"),
        ("[space]\nX = { gate = false }", "is a gate"),
        ("[space]\nX = { gate = true, on = 0 }", "two different texts"),
        ("[space]\nX = { lo = 1 }", "Did you mean"),
        ("[space]\n'a b' = 3", "letters, digits"),
        ("[space]\nX = { choices = [] }", "choices"),
        ("[space]\nX = { low = 1, high = 2, when = 'Y' }", "not in"),
        ("[space]\nX = { gate = true, when = 'Y' }\nY = { gate = true, when = 'X' }", "is a circle"),
        ("[space]\nX = { low = 1, high = 2, when = 'Y' }\nY = { low = 1, high = 2 }", "depends on a gate"),
        ("[fixed]\nX = 1\n[space]\nX = { gate = true }", "both in"),
        ("[fixed]\nX = [1]", "is an environment variable"),
        ("[techniques]\nothers = 'free'", "gate = true"),
        ("[limits]", "Cannot declare|overwrite|twice"),
    ],
)
def test_one_clear_error(tmp_path: Path, text: str, says: str):
    path = write_foreign(tmp_path, "bad", text.removeprefix("[trainer]\n"))
    with pytest.raises(ValueError, match=says) as error:
        load_study(path, {})
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_native_study_is_told_apart(tmp_path: Path):
    path = write_foreign(tmp_path, "bad", "[space]\nX = { gate = true }")
    path.write_text(path.read_text().replace("num_reports", 'preset = "laptop"\nnum_reports'))
    with pytest.raises(ValueError, match="drives another script"):
        load_study(path, {})


def test_the_script_must_be_there(tmp_path: Path):
    study = load_study(write_foreign(tmp_path, "s", SPACE), {})
    with pytest.raises(ValueError, match="no such file"):
        trainer_of(study).check()
    script = make_theirs(tmp_path)
    assert study.foreign is not None
    nothing = dataclasses.replace(study, foreign=dataclasses.replace(study.foreign, script=""))
    with pytest.raises(ValueError, match="or give --trainer"):
        trainer_of(nothing).check()
    found = trainer_of(nothing, script)
    found.check()
    assert isinstance(found, ForeignTrainer)
    assert found.foreign.script == str(script) and found.foreign.folder == str(script.parent)
    path = write_foreign(tmp_path, "t", 'command = "no_such_launcher {script}"\n' + SPACE)
    with pytest.raises(ValueError, match="no such program"):
        trainer_of(load_study(path, {})).check()


def test_commands_rules_and_the_way_to_repeat(tmp_path: Path):
    text = 'command = "{python} -u {script} --x={gpus}"\nwarmdown = "WD"\nfolder = "."\n[fixed]\nWD = 12\n'
    study = foreign_study(tmp_path, text + "[space]\nT = { choices = ['a b'] }\n")
    space, trainer = space_of(study), trainer_of(study)
    assert isinstance(trainer, ForeignTrainer)
    assert trainer.words()[1:] == ("-u", "theirs/train_gpt.py", "--x=1")
    assert trainer.rules(space.environment({})).warmdown_iters == 12.0
    config = trainer.complete(space.config({"T": "a b"}))
    line = trainer.repeat_line(config, tmp_path / "none" / "config.json")
    assert line.startswith(f"cd {tmp_path} && T='a b' WD=12 ") and line.endswith("theirs/train_gpt.py --x=1")
    assert {"T", "WD", "MATRIX_LR", "FAULT"} <= trainer.hidden() and "PATH" not in trainer.hidden()


def test_what_is_part_of_a_study_and_what_may_change(tmp_path: Path):
    mine = study_hash(foreign_study(tmp_path, SPACE))
    assert study_hash(foreign_study(tmp_path, "silent_seconds = 9\n" + SPACE)) == mine
    assert (
        study_hash(foreign_study(tmp_path, SPACE + "[pruning]\nmargin = 1.0\n[sampler]\ncandidates = 9\n"))
        == mine
    )
    for other in (SPACE.replace("0.1", "0.2"), SPACE.replace("1337", "7"), 'score = ["x"]\n' + SPACE):
        assert study_hash(foreign_study(tmp_path, other)) != mine
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3, "d": 0}}) == [
        "a.c: 2 -> 3",
        "a.d: None -> 0",
    ]


def test_code_is_what_runs_wherever_it_lies(tmp_path: Path):
    study = foreign_study(tmp_path, SPACE)
    first = code_hash(trainer_of(study).code_files())
    (tmp_path / "elsewhere").mkdir()
    make_theirs(tmp_path / "elsewhere")
    assert study.foreign is not None
    moved = str(tmp_path / "elsewhere" / "theirs" / "train_gpt.py")
    there = dataclasses.replace(study, foreign=dataclasses.replace(study.foreign, script=moved))
    assert code_hash(trainer_of(there).code_files()) == first
    (tmp_path / "theirs" / "model.py").write_text("x = 1\n")
    assert code_hash(trainer_of(study).code_files()) != first
    assert len(NativeTrainer(cast("Any", None)).code_files()) > 20


def test_when_speed_matters(tmp_path: Path):
    def why(text: str, *seconds: float) -> str:
        trials = [SimpleNamespace(user_attrs={"train_seconds": s}) for s in seconds]
        opened = SimpleNamespace(get_trials=lambda deepcopy: trials)
        study = foreign_study(tmp_path, text)
        nowhere = cast("Any", None)
        return speed_matters(Session(study, nowhere, "", cast("Any", opened), trainer_of(study)))

    assert why(SPACE) == why(SPACE, 10.0, 299.0) == ""
    assert "a trial took 301 s of the 600 s" in why(SPACE, 10.0, 301.0)
    budget = 'wallclock = "SECONDS"\n' + SPACE.replace("SEED", "SECONDS")
    assert "SECONDS gives each run a time" in why(budget)
    assert why(budget.replace("1337", "0")) == ""
