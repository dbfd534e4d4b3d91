"""A study file: what it gives, and one clear error for each thing that can be wrong in it."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from search.samplers.admission import check_space
from search.study.load import load_study
from search.study.model import Confirm, study_hash
from techniques import catalog
from techniques.base import Choice, Float, Int
from tests.conftest import ROOT
from tests.search.fakes import HEADER, KNOWN, make_study


def test_a_study_frees_narrows_and_fixes(tmp_path: Path):
    study = make_study(
        tmp_path,
        """
[fixed]
iterations = 50
"slide.stride" = 64
[techniques]
others = "free"
table = "on"
cooling = "off"
[space]
matrix_lr = { low = 0.01, high = 0.1, log = true }
"plain.gain" = { low = 0.5, high = 2 }
"plain.mode" = "b"
num_layers = { low = 2, high = 5 }
[pruning]
from = 0.6
""",
    )
    assert study.fixed == {"iterations": 50, "slide.stride": 64, "plain.mode": "b"}
    assert study.gates["table"] == "on" and study.gates["cooling"] == "off" and study.gates["plain"] == "free"
    assert study.free["matrix_lr"] == Float(0.01, 0.1, True)
    assert study.free["plain.gain"] == Float(0.5, 2.0)
    assert study.free["plain.last_n"] == Int(1, 5) and study.bounds["plain.last_n"] == "num_layers"
    assert (
        "plain.mode" not in study.free
        and "slide.stride" not in study.free
        and "cooling.frac" not in study.free
    )
    assert study.pruning.start == 0.6


def test_the_record_track_leaves_out_what_is_not_admitted(tmp_path: Path):
    record = make_study(tmp_path)
    assert record.gates["peek"] == "off" and record.gates["fit"] == "free"
    assert record.free["fit.mask"] == Choice(("context",))
    anything = make_study(tmp_path, header=HEADER.replace('"record"', '"open"'))
    assert anything.gates["peek"] == "free" and anything.free["fit.mask"] == Choice(("scored", "context"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[fixd]\n", r"Unknown table \[fixd\]. Did you mean 'fixed'"),
        ("[techniques]\nplian = 'on'", "Unknown technique 'plian'. Did you mean 'plain'"),
        ("[techniques]\nplain = 'maybe'", "must be one of free, on, off, but got 'maybe'"),
        ("[techniques]\npeek = 'on'", "peek cannot be on: it is contested .nobody ruled."),
        ("[techniques]\nplain = 'on'\nrival = 'on'", "cannot be on: .* on and they write the same tensor"),
        ("[techniques]\nfine_round = 'on'\ncoarse_round = 'free'", "both fill the slot `quantizer`"),
        ("[techniques]\nrider = 'on'\ntable = 'off'", "it needs table, which is off"),
        ("[fixed]\niteratons = 5", "Unknown setting or technique 'iteratons'. Did you mean 'iterations'"),
        ("[fixed]\n'plain.gian' = 5", "plain has no setting 'gian'. Did you mean 'gain'"),
        ("[fixed]\n'plain.gain' = 1e9", r"`plain.gain` must lie in 0.01 .. 100.0"),
        ("[fixed]\n'peek' = true", "peek cannot be on"),
        ("[fixed]\niterations = 'many'", "`iterations` takes a int"),
        ("[space]\n'plain.gain' = { lo = 1, high = 2 }", "`plain.gain` has no key 'lo'.*'low'"),
        ("[space]\n'plain.gain' = { low = 3, high = 2 }", "must have low < high, but got 3.0 and 2.0"),
        ("[space]\n'plain.gain' = { low = 1e-9, high = 2 }", "must lie in 0.01"),
        ("[space]\n'plain.mode' = { choices = ['a', 'z'] }", "must be one of 'a', 'b', 'c', but got 'z'"),
        (
            "[space]\nquantizer = { choices = ['fine_rond'] }",
            "no choice 'fine_rond'.*Did you mean 'fine_round'",
        ),
        ("[space]\nscorer = { choices = ['peek'] }", "It is off .it is contested"),
        ("[techniques]\nplain = 'off'\n[space]\n'plain.gain' = 2.0", "`plain.gain` is set, but plain is off"),
        (
            "[space]\nnum_layers = { low = 2, high = 5, log = true, step = 2 }",
            "step must be a positive integer",
        ),
        ("[pruning]\nform = 0.5", r"\[pruning\] has no key 'form'. Did you mean 'from'"),
        ("[pruning]\nfrom = 1.5", "`pruning.from` must lie in 0.0 .. 1.0"),
        ("[confirm]\ntop = 0", "`confirm.top` must lie in 1 .. 10"),
        ("[confirm]\nseeds = 3", "`confirm.seeds` must lie in 4 .. 64"),
        ("[confirm]\nbest = 3", r"\[confirm\] has no key 'best'"),
        ("[cost]\ndollars = 3", r"\[cost\] has no key 'dollars'. Did you mean 'dollars_per_gpu_hour'"),
        ("[cost]\ndollars_per_gpu_hour = -1", "`cost.dollars_per_gpu_hour` must lie in"),
        ("[sampler]\nstartup = 3", r"\[sampler\] has no key 'startup'. Did you mean 'startup_trials'"),
        (
            "[fixed]\niterations = 5\n[space]\niterations = { low = 1, high = 5 }",
            "both in .fixed. and in .space.",
        ),
    ],
)
def test_what_is_wrong_is_said_with_a_way_out(tmp_path: Path, text: str, says: str):
    with pytest.raises(ValueError, match=says) as error:
        make_study(tmp_path, text)
    assert str(tmp_path / "fake.toml") in str(error.value)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (HEADER.replace('"record"', '"recrod"'), "must be one of 'record', 'open'"),
        (HEADER.replace('"laptop"', '"labtop"'), "Unknown preset 'labtop'. Did you mean 'laptop'"),
        (HEADER.replace("eval_seconds = 100", ""), "all three limits.*`eval_seconds` is missing"),
        (HEADER.replace("eval_seconds = 100", "eval_seconds = 1\neval_baselines = 2"), "both are there"),
        (HEADER.replace("eval_seconds = 100", "eval_seconds = 0"), "`limits.eval_seconds` must lie in"),
        (
            HEADER.replace('name = "fake"', 'nmae = "fake"'),
            r"\[study\] has no key 'nmae'. Did you mean 'name'",
        ),
        (HEADER.replace('name = "fake"', 'trackers = ["wandv"]'), "no tracker 'wandv'. Did you mean 'wandb'"),
        (HEADER.replace('name = "fake"', 'trackers = "wandb"'), "must be a list"),
        ("[study\n", "Not valid TOML"),
    ],
)
def test_the_header_is_checked(tmp_path: Path, header: str, says: str):
    with pytest.raises(ValueError, match=says):
        make_study(tmp_path, header=header)


def test_a_missing_file_names_the_nearest(tmp_path: Path):
    make_study(tmp_path)
    with pytest.raises(ValueError, match=r"No such study file. Did you mean '.*fake.toml'"):
        load_study(tmp_path / "fakee.toml", KNOWN)
    with pytest.raises(ValueError, match=r"No such study file. Did you mean '.*studies/laptop.toml'"):
        load_study(Path("laptop"), KNOWN)  # a name, as --from takes


def test_an_edit_changes_the_hash_and_prose_does_not(tmp_path: Path):
    first = study_hash(make_study(tmp_path))
    assert study_hash(make_study(tmp_path, header=HEADER.replace('name = "fake"', 'question = "?"'))) == first
    edits = (
        "[fixed]\niterations = 7",
        "[techniques]\nplain = 'off'",
        "[space]\n'plain.gain' = {low=1, high=2}",
    )
    beside = "[confirm]\n[cost]\ndollars_per_gpu_hour = 2.5"  # what a study does beside its trials
    edited = make_study(
        tmp_path, beside, header=HEADER.replace('"record"', '"record"\ntrackers = ["mlflow"]')
    )
    assert study_hash(edited) == first
    assert edited.confirm == Confirm() and edited.price.dollars_per_gpu_hour == 2.5
    assert edited.trackers == ("mlflow",) and make_study(tmp_path).confirm is None
    assert len({first, *(study_hash(make_study(tmp_path, edit)) for edit in edits)}) == 4
    assert study_hash(make_study(tmp_path, header=HEADER.replace("100_000_000", "99"))) != first


@pytest.mark.parametrize("name", ["laptop", "one_gpu", "record_8xh100"])
def test_the_studies_of_this_repository_load(name: str):
    study = load_study(ROOT / "studies" / f"{name}.toml", catalog.metadata())
    assert study.name == name and study.question
    assert all(study.gates[t] != "on" for t in study.gates)


def test_the_sample_study_of_the_readme_can_run(tmp_path: Path):
    found = re.search(
        r"## A study is one file\n\n((?:    .*\n|\n)+)", (ROOT / "README.md").read_text(encoding="utf-8")
    )
    assert found is not None
    (tmp_path / "sample.toml").write_text(textwrap.dedent(found[1]), encoding="utf-8")
    sample = load_study(tmp_path / "sample.toml", catalog.metadata())
    assert check_space(sample)  # raises where no configuration keeps the limits
