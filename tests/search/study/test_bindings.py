"""A parameter's way into a trainer: the environment, an argument, a key of a file, a constant of a script."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from readers.constants import replaced
from readers.log_reader import LogReader, Rules
from search.study.foreign import Foreign
from search.study.load import load_study
from search.study.model import Study, study_identity
from search.trainers.foreign.edit_files import edit, own, with_keys
from search.trainers.foreign.run import ForeignTrainer
from search.trainers.trainer import trainer_of
from tests.search.foreign_studies import make_theirs, run_one, space_of

PLAIN = Path(__file__).parent.parent / "trainers" / "foreign" / "plain_train.py"
HEAD = """
[limits]
artifact_bytes = 100_000
train_seconds = 600
eval_seconds = 600
[trainer]
script = "plain_train.py"
files = ["plain_train.py"]
score_pattern = 'validation loss (?P<loss>\\S+)'
progress_pattern = 'iter (?P<step>\\d+): validation loss (?P<loss>\\S+)'
seconds_pattern = 'took (?P<train_s>\\S+) s'
steps = "max_iters"
seed = "seed"
"""
WAYS = """
command = "{python} {script} --num-layers={num_layers}"
[arguments]
lr = "--learning-rate {value}"
optimizer = "--optimizer={value}"
fused = "--fused"
max_iters = "--max-iters={value}"
seed = "--seed={value}"
momentum = "--momentum={value}"
config = "--config={value}"
[keys]
shift = "deep/config.json:extra.shift"
[constants]
SCALE = "SCALE"
[fixed]
max_iters = 20
seed = 1
config = "deep/config.json"
[space]
lr = { low = 0.01, high = 0.1, log = true }
num_layers = { choices = [2, 4, 6] }
optimizer = { choices = ["adam", "muon"] }
momentum = { low = 0.5, high = 0.9, when = { optimizer = ["muon"] } }
fused = { gate = true }
shift = { low = 0.0, high = 1.0 }
SCALE = { low = 0.5, high = 2.0 }
HOME_MADE = { choices = ["a", "b"] }
"""


def study_of(home: Path, text: str, head: str = HEAD) -> Study:
    home.mkdir(exist_ok=True)
    (home / "plain_train.py").write_bytes(PLAIN.read_bytes())
    (home / "deep").mkdir(exist_ok=True)
    (home / "deep" / "config.json").write_text('{"extra": {"shift": 7.0, "kept": 1}}')
    (home / "s.toml").write_text(head + text)
    return load_study(home / "s.toml", {})


def foreign_of(study: Study) -> Foreign:
    assert study.foreign is not None
    return study.foreign


VALUES: dict[str, Any] = {
    **{"lr": 0.05, "num_layers": 4, "optimizer": "adam", "fused": True},
    **{"shift": 0.5, "SCALE": 2.0, "HOME_MADE": "b"},
}


def test_each_value_goes_where_it_is_bound(tmp_path: Path):
    study = study_of(tmp_path / "theirs", WAYS)
    trainer = trainer_of(study)
    trainer.check()
    config = trainer.complete(space_of(study).config(VALUES))
    assert config["environment"] == {"HOME_MADE": "b"}
    words = config["trainer"]["command"]
    assert words[1:] == [
        *("plain_train.py", "--num-layers=4", "--max-iters=20", "--seed=1", "--config=deep/config.json"),
        *("--learning-rate", "0.05", "--optimizer=adam", "--fused"),
    ]
    assert config["trainer"]["keys"] == {"deep/config.json": {"extra.shift": 0.5}}
    assert config["trainer"]["constants"] == {"plain_train.py": {"SCALE": 2.0}}
    assert config["trainer"]["rules"]["steps"] == 20
    other = trainer.complete(
        space_of(study).config(VALUES | {"fused": False, "optimizer": "muon", "momentum": 0.6})
    )
    told = " ".join(other["trainer"]["command"])
    assert "--fused" not in told and "--momentum=0.6" in told and "--momentum" not in words
    seeded = trainer.seeded(config, None, 9)[0]
    assert "--seed=9" in seeded["trainer"]["command"] and seeded["environment"] == config["environment"]
    assert seeded["trainer"]["hash"] != config["trainer"]["hash"] == space_of(study).resolve(VALUES).hash()


def test_a_run_reads_them_and_its_own_log(tmp_path: Path):
    home = tmp_path / "theirs"
    study = study_of(home, WAYS)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    ran = run_one(study, VALUES, tmp_path / "run")
    assert ran.kind == "finished", ran.reason
    assert ran.result is not None
    expected = (3.0 - 0.04 + 0.5 - 0.05) * 2.0 + 0.0
    assert ran.result["val_bpb"] == pytest.approx(expected + 2 * 0.0820850, abs=1e-3)
    assert ran.result["val_loss"] == ran.result["val_bpb"] and ran.result["protocol"] == "val_loss"
    assert ran.result["train_seconds"] == 5.0 and ran.result["steps"] == 20
    assert [r["progress"] for r in ran.reports] == pytest.approx([0.25, 0.375, 0.5, 0.625, 0.75, 0.875])
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before
    line = trainer_of(study).repeat_line(json.loads((tmp_path / "run" / "config.json").read_text()), tmp_path)
    assert "search.trainers.foreign.adapter" in line  # no shell line can edit files


def test_a_study_without_bindings_is_what_it_was(tmp_path: Path):
    """The identity that databases hold has no new entries."""
    text = "[space]\nMATRIX_LR = { low = 0.01, high = 0.1 }\n"
    head = (
        "[limits]\nartifact_bytes = 1\ntrain_seconds = 1\neval_seconds = 1\n[trainer]\nscript = 'train.py'\n"
    )
    identity = study_identity(study_of(tmp_path, text, head))["trainer"]
    assert not {"bindings", "steps", "score_pattern"} & {*identity}
    bound = study_identity(study_of(tmp_path, "[arguments]\nMATRIX_LR = '--lr={value}'\n" + text, head))
    assert bound["trainer"]["bindings"]["MATRIX_LR"]["where"] == "--lr={value}"
    assert (
        not foreign_of(study_of(tmp_path, text, head)).in_nats
        and foreign_of(study_of(tmp_path, WAYS)).in_nats
    )


def test_what_a_script_takes_as_an_argument_is_no_variable_and_what_nothing_reads_is_told(tmp_path: Path):
    text = (HEAD + WAYS).replace('lr = "--learning-rate {value}"\n', "").replace("lr =", "learning_rate =")
    trainer = trainer_of(study_of(tmp_path, text, ""))
    with pytest.raises(ValueError, match=r'\n  \[arguments\] learning_rate = "--learning-rate={value}"$'):
        trainer.check()
    known = (HEAD + WAYS).replace("[space]", 'PYTHONPATH = "x"\n[space]')
    trainer = trainer_of(study_of(tmp_path, known, ""))
    trainer.check()
    assert trainer.doubts() == "; HOME_MADE: no script here reads such a variable"
    (tmp_path / "more.py").write_text('import os\nhome = os.environ["HOME_MADE"]\n')
    assert trainer.doubts() == ""


def test_a_default_stands_where_a_setting_is_not_asked_for(tmp_path: Path):
    text = HEAD + WAYS
    old = study_of(tmp_path, text, "")
    assert "default" not in json.dumps(study_identity(old))  # stored studies go on
    text = text.replace("--num-layers={num_layers}", "--num-layers {num_layers}")
    text = text.replace("choices = [2, 4, 6]", "choices = [2, 4, 6], default = 4")
    text = text.replace("high = 0.9, when", "high = 0.9, default = 0.7, when")
    study = study_of(tmp_path, text, "")
    space = space_of(study)
    assert space.config({})["settings"].items() >= {("num_layers", 4), ("momentum", 0.7)}
    params = {"lr": 0.02, "num_layers": 2, "optimizer": "muon", "momentum": 0.5}
    assert space.config(params)["settings"].items() >= params.items()
    words = trainer_of(study).complete(space.config({}))["trainer"]["command"]
    assert words[words.index("--num-layers") + 1] == "4" and "--momentum=0.7" in words
    with pytest.raises(ValueError, match=r"`num_layers` is an environment variable.*but got \[4\]"):
        study_of(tmp_path, text.replace("default = 4", "default = [4]"), "")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("[keys]", "[keys]\nlr = 'a.json:lr'"), "its second"),
        (("[keys]", "[keys]\nmissing = 'a.json:lr'"), r"has no value\. .*\[fixed\]"),
        (('"--fused"', '"--fused={value}"'), ""),
        (('"--fused"', '["--fused", "--no-fused", "x"]'), "two texts"),
        (('lr = "--learning-rate {value}"', 'lr = "--learning-rate"'), "is a flag .*--learning-rate={value}"),
        (("deep/config.json:extra.shift", "deep/config.ini:shift"), '"FILE:KEY"'),
        (('SCALE = "SCALE"', 'SCALE = "SC ALE"'), "is a name"),
        (("{num_layers}", "{num_layer}"), "Did you mean"),
        (("--num-layers={num_layers}", "--momentum {momentum}"), "one word, --option={momentum}"),
        (("--num-layers={num_layers}", "--num-layers {num_layers}"), r"not in the baseline.*\[arguments\]"),
        (("{python} {script}", "{python}"), "must run the script"),
        (("(?P<step>", "(?P<steps>"), "may have"),
        (("iter (?P<step>", "iter ((?P<step>"), "regular expression, but"),
        (('--optimizer={value}"', "--optimizer='{value}\""), "command line, but"),
    ],
)
def test_what_is_bound_wrongly_is_one_error(tmp_path: Path, change: tuple[str, str], says: str):
    text = HEAD + WAYS
    assert change[0] in text
    changed = text.replace(*change)
    if "{momentum}" in change[1]:
        changed = changed.replace('momentum = "--momentum={value}"\n', "").replace("num_layers =", "layers =")
    if not says:
        study_of(tmp_path, changed, "")
        return
    with pytest.raises(ValueError, match=says):
        study_of(tmp_path, changed, "")


def test_bindings_need_a_trainer(tmp_path: Path):
    with pytest.raises(ValueError, match=r"\[keys\] says where .* no \[trainer\]"):
        study_of(tmp_path, "[limits]\nartifact_bytes = 1\n[keys]\nx = 'a.json:x'\n", "")


def test_constants_are_replaced_and_nothing_else():
    text = "# ä\nLR, X = 1, 2\nRATE: float = 3e-4  # rate\nclass S:\n    depth = (1 +\n      2)  # two\n"
    text += "    name = 'ä'; b = 2\n"
    new = replaced(text.encode(), {"RATE": 0.5, "S.depth": 7, "S.name": "ö", "S.b": float("inf")}).decode()
    assert new == text.replace("3e-4", "0.5").replace("1 +\n      2", "7").replace("'ä'", "'ö'").replace(
        "b = 2", 'b = float("inf")'
    )
    for name in ("LR", "S.none", "rate"):
        with pytest.raises(ValueError, match="is assigned never"):
            replaced(text.encode(), {name: 1})
    with pytest.raises(ValueError, match="is assigned 2 times"):
        replaced(b"A = 1\nA = 2\n", {"A": 1})


@pytest.mark.parametrize("suffix", [".json", ".toml", ".yaml"])
def test_keys_are_written_over_what_a_file_has(suffix: str):
    reads = {".json": json.loads, ".toml": tomllib.loads, ".yaml": yaml.safe_load}[suffix]
    texts = {
        ".json": '{"a": {"b": [1, 2]}, "c": "x"}',
        ".toml": 'c = "x"\n[a]\nb = [1, 2]\n',
        ".yaml": "a:\n  b: [1, 2]\nc: x\n",
    }
    new = with_keys(texts[suffix], {"a.lr": 1e-5, "a.b.1": 7, "on": True, "d e.f": "ö\n"}, suffix)
    assert reads(new) == {"a": {"b": [1, 7], "lr": 1e-5}, "c": "x", "on": True, "d e": {"f": "ö\n"}}
    assert reads(with_keys("", {"x": 0.1}, suffix)) == {"x": 0.1}
    with pytest.raises(ValueError, match="holds no keys"):
        with_keys(texts[suffix], {"c.x": 1}, suffix)
    with pytest.raises(ValueError, match="not a"):
        with_keys("{[", {"x": 1}, suffix)


def test_a_configuration_in_python():
    new = with_keys("lr = 1e-3  # rate\nn = 2", {"lr": 0.5, "bias": False, "dropout": 0.0}, ".py")
    assert new == "lr = 0.5  # rate\nn = 2\nbias = False\ndropout = 0.0\n"


def test_a_linked_folder_is_never_written_to(tmp_path: Path):
    source, work = tmp_path / "source", tmp_path / "work"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "s.py").write_text("X = 1\n")
    (source / "a" / "other").write_text("kept")
    work.mkdir()
    (work / "a").symlink_to(source / "a")
    edit(work, {"constants": {"a/b/s.py": {"X": 5}}, "keys": {"new/c.yaml": {"lr": 1e-5}}})
    assert (work / "a" / "b" / "s.py").read_text() == "X = 5\n"
    assert (source / "a" / "b" / "s.py").read_text() == "X = 1\n"
    assert (work / "a" / "other").read_text() == "kept" and "1.0e-05" in (work / "new" / "c.yaml").read_text()
    assert own(work, "a/b/s.py") == work / "a" / "b" / "s.py"


def test_constants_of_a_script_outside_of_the_folder_are_refused(tmp_path: Path):
    make_theirs(tmp_path)
    study = study_of(
        tmp_path / "x", WAYS.replace("[arguments]", f'folder = "{tmp_path}/theirs"\n[arguments]')
    )
    trainer = trainer_of(study)
    assert isinstance(trainer, ForeignTrainer)
    with pytest.raises(ValueError, match=r"lies outside of `trainer\.folder`"):
        trainer.check()


def test_patterns_read_what_is_not_the_challenges():
    rules = Rules(
        score_pattern=(r"Validation bpb: (?P<bpb>\S+)",),
        progress_pattern=(
            r"Step (?P<step>\d+) \| Validation bpb: (?P<bpb>\S+)",
            r"step (?P<step>\d+)/(?P<total>\d+) .* loss: (?P<train_loss>\S+) .*time: (?P<train_min>\S+)m",
        ),
    )
    reader = LogReader(rules)
    reports = list[Any]()
    for step in range(0, 101, 25):
        reports += reader.feed(f"Step {step:05d} | Validation bpb: {2.0 - step / 100:.4f}", step)
        reports += reader.feed(
            f"step {step:05d}/00100 (1%) | loss: 3.1 | total time: {step / 60:.2f}m | x", step
        )
    assert reader.value()[:2] == ("val_bpb", 1.0) and reader.train_loss == 3.1
    assert [r["progress"] for r in reports] == [0.25, 0.375, 0.5, 0.625, 0.75, 0.875]
    assert reader.train_seconds(1.0) == (pytest.approx(100.2), "train_time")
    reader.feed("final val_bpb:0.1", 1.0)  # no line of the pattern's
    assert reader.value()[1] == 1.0
    reader.feed("Step 00100 | Validation bpb: nan", 1.0)
    assert reader.failure == "diverged: val_bpb is nan at step 100"
    shares = LogReader(Rules(progress_pattern=(r"(?P<percent>\d+)% nll (?P<loss>\S+)",)))
    assert [r["progress"] for r in shares.feed("50% nll 3.0", 1.0)] == [0.5]
