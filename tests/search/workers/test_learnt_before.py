"""Trials of an earlier study in a changed space: what each kind of change makes of them; the command line."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from search.common.numeric import draw
from search.common.paths import ROOT, Folders
from search.samplers.choose import sampled_by
from search.session.session import Session, as_stored
from search.space.foreign import ForeignSpace, foreign_space
from search.space.native import NativeSpace, native_space
from search.space.nearest import foreign_values, nearest_of, nearest_value, resolved_now
from search.study.load import find_study
from search.study.model import Study, study_hash
from search.trainers.trainer import trainer_of
from search.workers.prior import (
    Learnt,
    Told,
    learn,
    records,
    settle,
    sources_of,
    told_by,
    worth_reading,
)
from techniques import catalog
from techniques.config import read_preset
from tests.search.db_helpers import held_server
from tests.search.fake_studies import caddie, read_trials, search, write_study
from tests.search.fakes import KNOWN, make_study
from tests.search.foreign_studies import foreign_study, write_foreign
from tests.search.workers.test_warm_start import HERE, begin, fill

OLD = """
[techniques]
others = "off"
plain = "free"
table = "free"
fine_round = "free"
[space]
matrix_lr = {low = 0.02, high = 0.2, log = true}
num_layers = {low = 2, high = 6}
"plain.gain" = {low = 0.1, high = 10.0, log = true}
"plain.mode" = {choices = ["a", "b"]}
"""


def bpb(values: Mapping[str, Any]) -> float:
    """The truth about a run, by its resolved values."""
    found = 2.0 + 0.05 * np.log(values["matrix_lr"] / 0.05) ** 2 - 0.03 * values["num_layers"]
    if values.get("plain"):
        found += (
            -0.1
            + 0.02 * np.log(values["plain.gain"]) ** 2
            + {"a": 0.0, "b": -0.05, "c": 0.3}[values["plain.mode"]]
        )
    return float(found - 0.08 * bool(values.get("table")))


def space_of(study: Study) -> NativeSpace:
    return native_space(study, KNOWN)


def taught(
    folder: Path, text: str, *, old: str = OLD, count: int = 60
) -> tuple[Learnt, NativeSpace, list[Told]]:
    """What `count` draws of the old study teach a study with these tables."""
    before = space_of(make_study(folder, old))
    space = space_of(make_study(folder, text))
    rng = np.random.default_rng(0)
    told = list[Told]()
    for _ in range(count):
        drawn = before.repaired(
            before.keep_active({n: draw(d, rng) for n, d in before.distributions.items()})
        )
        config = before.config(drawn)
        base = before.study.base
        run, gone = resolved_now(space, config, base)
        params, here = nearest_of(space, run)
        told.append(Told({**run.identity(), **gone}, params, here.identity(), bpb(run.values), {"run": -1.0}))
    return learn("old", told), space, told


def truth(learnt: Learnt, space: NativeSpace) -> np.ndarray:
    return np.array([bpb(space.resolve(p).values) for p in learnt.source.params])


def assert_exact(learnt: Learnt, space: NativeSpace, count: int = 60) -> None:
    """Every trial is expressed as it ran."""
    assert (len(learnt.source.params), learnt.moved, learnt.left) == (count, 0, 0)
    assert np.allclose(learnt.source.values, truth(learnt, space)) and not learnt.source.noise_sd.any()
    for params in learnt.source.params:
        assert space.active(params) == params.keys()


@pytest.mark.parametrize(
    "change",
    [
        ('["a", "b"]', '["a", "b", "c"]'),  # a choice added
        ("low = 0.02, high = 0.2", "low = 0.001, high = 0.9"),  # a range widened
        ('fine_round = "free"', 'fine_round = "free"\nnarrow = "free"\nslide = "free"'),  # techniques added
        ("num_layers =", "scalar_lr = {low = 0.01, high = 0.1}\nnum_layers ="),  # a setting newly free
        ('"plain.gain" = {low', '"plain.last_n" = {low = 1, high = 2}\n"plain.gain" = {low'),
    ],
)
def test_a_wider_space_holds_every_trial_as_it_ran(tmp_path: Path, change: tuple[str, str]) -> None:
    assert change[0] in OLD
    if "last_n" in change[1]:  # the old study's own domain of it is narrower than both
        narrow = OLD.replace('"plain.gain"', '"plain.last_n" = 1\n"plain.gain"')
        learnt, space, _ = taught(tmp_path, OLD.replace(*change), old=narrow)
    else:
        learnt, space, _ = taught(tmp_path, OLD.replace(*change))
    assert_exact(learnt, space)
    if "narrow" in change[1]:
        assert not any(p["narrow"] or p["slide"] for p in learnt.source.params)
    if "scalar_lr" in change[1]:  # what the old runs really had
        assert {p["scalar_lr"] for p in learnt.source.params} == {read_preset("laptop")["scalar_lr"]}


@pytest.mark.parametrize(
    "change",
    [
        ("num_layers = {low = 2, high = 6}", "num_layers = {low = 2, high = 4}"),  # a range narrowed
        ("num_layers = {low = 2, high = 6}", "num_layers = 3"),  # a parameter gone
        ('table = "free"', 'table = "off"'),  # a technique gone
        ('table = "free"', 'table = "on"'),
        ('["a", "b"]', '["a"]'),  # a choice gone
    ],
)
def test_what_a_narrower_space_lacks_moves_the_value(tmp_path: Path, change: tuple[str, str]) -> None:
    """By a model of the old study: near to what the configuration would have given."""
    learnt, space, told = taught(tmp_path, OLD.replace(*change))
    assert learnt.moved > 5 and len(learnt.source.params) > 50
    wrong = np.abs(learnt.source.values - truth(learnt, space))
    raw = np.abs(
        np.array([t.bpb for t in told if t.params in learnt.source.params])[: len(wrong)]
        - truth(learnt, space)
    )
    assert wrong.mean() < 0.5 * raw.mean() and (wrong < 4 * learnt.source.noise_sd + 1e-9).mean() > 0.9
    moved = learnt.source.noise_sd > 0
    assert all(
        c == ({} if m else {"run": -1.0}) for c, m in zip(learnt.source.constraints, moved, strict=True)
    )


def test_what_cannot_be_told_is_left_out_and_counted(tmp_path: Path) -> None:
    few, _, _ = taught(tmp_path, OLD.replace('table = "free"', 'table = "off"'), count=6)
    assert few.left > 0 and few.moved == 0 and few.left + len(few.source.params) == 6
    assert f"{few.left} left out" in few.summary()


def test_a_technique_that_is_gone_from_the_code(tmp_path: Path) -> None:
    space = space_of(make_study(tmp_path, OLD))
    config = {
        "preset": "laptop",
        "magic": True,
        "magic.power": 3.0,
        "dust": False,
        "dust.size": 1,
        "oddity": 2,
    }
    run, gone = resolved_now(space, config, read_preset("laptop"))
    assert gone == {"magic": True, "magic.power": 3.0, "oddity": 2} and not run.techniques
    assert nearest_of(space, run)[0]["plain"] is False


def test_other_data_is_a_bias_and_said(tmp_path: Path) -> None:
    learnt, _, _ = taught(tmp_path, OLD + "[fixed]\n" + 'data_path = "elsewhere"\n')
    assert learnt.moved == learnt.left == 0 and learnt.differs == ("data_path",)
    assert "other data_path, so its level is biased" in learnt.summary()


def test_the_nearest_value() -> None:
    assert nearest_value(FloatDistribution(0.1, 1.0), 3.0) == 1.0
    assert nearest_value(IntDistribution(2, 8, step=2), 5) in (4, 6)
    assert nearest_value(CategoricalDistribution((2.0, 3.0, 4.0)), 3.2) == 3.0
    assert nearest_value(CategoricalDistribution(("a", "b")), "z") == "a"
    assert nearest_value(CategoricalDistribution((False, True)), True) is True


def test_a_foreign_run_by_its_variables(tmp_path: Path) -> None:
    """What the run did not set is unknown: off, or the middle of the range in all of its trials."""
    study = foreign_study(
        tmp_path,
        "[space]\nLR = {low = 0.01, high = 1.0, log = true}\nDEPTH = {low = 2, high = 8}\n"
        'MODE = {choices = ["x", "y", "z"]}\nNEW = {gate = true}\n'
        'SIZE = {low = 0, high = 10, when = "NEW"}\n',
    )
    assert study.foreign is not None
    space = foreign_space(study.foreign, study.path)
    assert isinstance(space, ForeignSpace)
    trial = create_trial(
        value=1.0, user_attrs={"config": {"environment": {"LR": "0.1", "MODE": "y", "GONE": "7"}}}
    )
    ran, params, here = foreign_values(space, trial.user_attrs["config"])
    assert params == {"LR": 0.1, "MODE": "y", "DEPTH": 5, "NEW": False}
    session = cast("Session", SimpleNamespace(study=study))
    trial.set_user_attr("artifact_bytes", 32_000_000)
    trial.set_user_attr("train_seconds", 1200.0)
    for hardware in (HERE, ""):  # it does not tell where it ran: its seconds say nothing
        told = told_by(session, space, trial, {}, hardware)
        assert told is not None and told.params == params
        assert told.constraints["train"] == 0.0 and told.constraints["bytes"] == 1.0
    trial.set_user_attr("passport", {"hardware": HERE})
    told = told_by(session, space, trial, {}, HERE)
    assert told is not None and told.constraints["bytes"] == 1.0 and told.constraints["train"] == 1.0
    trial.set_user_attr("config", {"environment": {"LR": "warm", "MODE": "y"}})
    odd = told_by(session, space, trial, {}, HERE)
    assert odd is not None and odd.params["LR"] == pytest.approx(0.1)  # nobody knows: the middle
    trial.set_user_attr("config", {})
    assert told_by(session, space, trial, {}, HERE) is None
    assert ran["GONE"] == 7.0 and "GONE" not in here and here["LR"] == ran["LR"] == 0.1


def test_the_best_and_the_newest_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.workers.prior.MOST", 10)
    trials = [create_trial(value=float(v)) for v in np.random.default_rng(0).permutation(40)]
    for k, trial in enumerate(trials):
        trial.number = k
    chosen = [t.number for t in worth_reading(trials)]
    assert len(chosen) == 10 and chosen[-5:] == [35, 36, 37, 38, 39]
    best = sorted(range(35), key=lambda k: cast("float", trials[k].value))[:5]
    assert set(chosen[:5]) <= {*best, *range(35)} and set(best) & set(chosen[:5])


def test_published_results_enter_a_study_of_their_scale(tmp_path: Path) -> None:
    study = find_study(ROOT / "studies" / "record_8xh100.toml")
    found = records(cast("Session", SimpleNamespace(study=study, trainer=trainer_of(study))))
    doubts = found.source.noise_sd[found.source.noise_sd > 0.0]
    told = (
        f"of the {len(found.source.params)} in studies/published.json all enter studies/record_8xh100.toml, "
    )
    told += (
        f"{found.moved} of them moved, with an uncertainty of {doubts.min():.3f} to {doubts.max():.3f} BPB"
    )
    assert told in " ".join((ROOT / "docs" / "prior.md").read_text().split()) and found.left == 0
    naive = int(np.argmax(found.source.values))
    assert found.source.values[naive] == pytest.approx(1.22437) and found.source.noise_sd[naive] == 0.0
    assert not any(p.get("slot") for p in found.source.params)  # contested, hence off on this track
    assert (found.source.values > 1.03).all()  # what SLOT gave is not what the same run gives without it
    laptop = find_study(ROOT / "studies" / "laptop.toml")
    with pytest.raises(ValueError, match="Published results must be of runs like"):
        records(cast("Session", SimpleNamespace(study=laptop, trainer=trainer_of(laptop))))


def test_the_table_of_a_study_file(tmp_path: Path) -> None:
    study = make_study(tmp_path, '[prior]\nstudies = ["a", "b", "a"]\npublished = true\n')
    assert study.prior.studies == ("a", "b") and study.prior.published and study.prior.asked
    assert not make_study(tmp_path, "").prior.asked
    for text, says in (("studies = 3", "a list of names"), ("study = []", "no key 'study'")):
        with pytest.raises(ValueError, match=says):
            make_study(tmp_path, f"[prior]\n{text}\n")


def study_of(home: Path, name: str, *, high: float = 0.03, kind: str = "structured", more: str = "") -> Path:
    study = write_study(home, name)
    text = study.read_text().replace('"tpe"', f'"{kind}"').replace("high = 0.1,", f"high = {high},", 1)
    study.write_text(text + more)
    return study


def refused(ran: subprocess.CompletedProcess[str], *says: str) -> None:
    assert ran.returncode == 2 and ran.stderr.count("error: ") == 1, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    for words in says:
        assert words in ran.stderr, ran.stderr


@pytest.mark.slow
def test_a_new_study_begins_with_what_an_old_one_found(home: Path) -> None:
    """The old one's range ended below the best rate (0.05); its rates lie apart, so that one of them is best
    without doubt."""
    old = study_of(home, "old", kind="tpe")  # whatever asked it; TPE starts a second sooner
    rates = "matrix_lr = { choices = [0.012, 0.018, 0.024, 0.03] }"
    old.write_text(re.sub("matrix_lr = {.*}", rates, old.read_text()))
    assert caddie(*search(old, home, 9, 2)).returncode == 0
    new = study_of(home, "new", high=0.2)
    ran = caddie(*search(new, home, 4, 1), "--from=old")
    assert ran.returncode == 0, ran.stderr
    assert "BPB: learnt from old: 9 trials  [" in ran.stdout, ran.stdout
    assert re.search(r"learnt from old: 9 trials, trust [01]\.\d", " ".join(ran.stdout.split())), ran.stdout
    trials = read_trials(new, home)
    earlier = read_trials(old, home)
    best = min(earlier, key=lambda t: t["value"])
    assert trials[1]["params"] in [t["params"] for t in earlier]
    assert trials[1]["params"]["matrix_lr"] == best["params"]["matrix_lr"]  # all that this trainer hears
    assert trials[1]["attrs"]["learnt"]["old"]["trials"] == 9
    shown = caddie("show", "1", f"--study={new}", f"--home={home}")
    assert "learnt from old: 9 trials, trust" in " ".join(shown.stdout.split()), shown.stdout
    refused(caddie(*search(new, home, 5, 1), "--from=odl"), "'odl' is none", "Did you mean 'old'?")
    again = caddie(*search(new, home, 5, 1))  # goes on with what it began with
    assert again.returncode == 0 and "BPB: learnt from old: 9 trials" in again.stdout, again.stdout


@pytest.mark.slow
def test_what_cannot_teach_is_one_clear_error(tmp_path: Path) -> None:
    with held_server() as (_, url):
        fill(begin(url, tmp_path, "teacher"), 12)
        pupil = begin(url, tmp_path, "pupil")
        empty = begin(url, tmp_path, "empty")
        learnt = settle(pupil, ["teacher"])
        said = "teacher: 12 trials; other data_path, tokenizer_path, so its level is biased"
        assert [r.summary() for r in learnt] == [said]
        kept = pupil.optuna_study.user_attrs["prior"]
        assert kept["studies"]["teacher"]["trials"] == 12 and not kept["published"]
        assert [r.summary() for r in settle(pupil, [])] == [said]  # the next session
        (source,) = sources_of(pupil, HERE)
        assert len(source.params) == 12 and all("bytes" in c for c in source.constraints)
        fill(begin(url, tmp_path, "unread"), 2, preset="laptop", model_dim=7)  # no model has 7 dimensions
        theirs = begin(url, tmp_path, "theirs", code="0123")
        theirs.optuna_study.set_user_attr("trainer", "/elsewhere/train.py")
        for name, says in (
            ("teecher", "'teecher' is none. Did you mean 'teacher'"),
            ("pupil", "this study itself"),
            ("empty", "'empty' 0 are complete"),
            ("unread", "'unread' 2 are complete and none can be expressed"),
            ("theirs", "runs train_gpt.py and theirs ran train.py"),
        ):
            with pytest.raises(ValueError, match=re.escape(says)):
                settle(pupil, [name])
        assert pupil.optuna_study.user_attrs["prior"] == kept
        by_tpe = dataclasses.replace(empty, study=sampled_by(empty.study, "tpe"))
        with pytest.raises(ValueError, match="learnt by the structured sampler"):
            settle(by_tpe, ["teacher"])
        assert settle(by_tpe, []) == []
        renamed = pupil.optuna_study._storage.get_study_id_from_name("teacher")  # pyright: ignore
        with sqlalchemy.create_engine(url).begin() as database:
            rename = sqlalchemy.text("update studies set study_name = 'tutor' where study_id = :id")
            database.execute(rename, {"id": renamed})
        pupil = begin(url, tmp_path, "pupil")  # the next session
        assert [r.source.name for r in settle(pupil, [])] == ["tutor"]
        optuna.delete_study(study_name="tutor", storage=pupil.optuna_study._storage)  # pyright: ignore
        pupil = begin(url, tmp_path, "pupil")
        assert settle(pupil, []) == [] and sources_of(pupil, HERE) == []
        kept = pupil.optuna_study.user_attrs["prior"]
        goes_on = dataclasses.replace(pupil, study=sampled_by(pupil.study, "tpe"))
        assert settle(goes_on, []) == [] and pupil.optuna_study.user_attrs["prior"] == kept


def test_a_foreign_study_too_and_one_that_the_code_reads_otherwise(tmp_path: Path) -> None:
    path = write_foreign(tmp_path, "theirs", 'score = ["a"]\n[space]\nLR = { low = 0.1, high = 1.0 }\n')
    began = find_study(path)
    facts = {"study_hash": study_hash(began), "study_file": path.read_text()}
    stored = cast("Any", SimpleNamespace(user_attrs=facts))
    folders = Folders(tmp_path, "theirs")
    assert as_stored(began, stored, folders) == (began, "")
    path.write_text(path.read_text().replace("1.0", "2.0"))
    found, note = as_stored(find_study(path), stored, folders)
    assert found == began and "was edited since 'theirs' began" in note
    facts["study_hash"] = "of another version"
    found, note = as_stored(find_study(path), stored, folders)
    assert found == find_study(path) and "nor does a copy" in note


@pytest.mark.slow
def test_an_edited_study_stays_readable_and_is_the_prior_of_the_next(home: Path) -> None:
    study = study_of(home, "edited", high=0.03)
    assert caddie(*search(study, home, 3, 1)).returncode == 0
    before = study.read_text()
    study.write_text(before.replace("2_000_000", "1_900_000").replace("high = 0.03,", "high = 0.3,"))
    where = [f"--study={study}", f"--home={home}"]
    for words in (["best"], ["show", "1"], ["status"], ["effects"]):
        ran = caddie(*words, *where)
        assert ran.returncode == 0 or "at least 20 complete trials" in ran.stderr, (words, ran.stderr)
        said = " ".join(ran.stdout.split())
        assert said.count("was edited since 'edited' began") == 1 and "runs/edited/study.toml" in said, said
    (home / "runs" / "edited" / "study.toml").unlink()  # another machine's folder: the database has a copy
    ran = caddie("best", *where)
    said = " ".join(ran.stdout.split())
    assert ran.returncode == 0 and "from the copy in the database" in said, ran.stdout
    assert "2,000,000 bytes" in said and "3 feasible trials" in said, said
    assert not (home / "runs" / "edited" / "study.toml").exists()
    refused(caddie(*search(study, home, 4, 1)), "no longer describes", "another `name`", "--from edited")
    study.write_text(study.read_text().replace('"edited"', '"next"').replace("1_900_000", "2_000_000"))
    ran = caddie(*search(study, home, 1, 1), "--from", "edited")
    assert ran.returncode == 0 and "BPB: learnt from edited: 3 trials" in ran.stdout, ran.stdout + ran.stderr


def test_in_its_own_space_every_configuration_of_the_catalogue_is_itself() -> None:
    study = find_study(ROOT / "studies" / "record_8xh100.toml")
    space = native_space(study, catalog.metadata())
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(40):
        drawn = space.repaired(space.keep_active({n: draw(d, rng) for n, d in space.distributions.items()}))
        params = space.keep_active(drawn)
        try:
            space.resolve(params)
        except ValueError:  # a contradiction that no table says
            continue
        seen += 1
        run, gone = resolved_now(space, space.config(params), study.base)
        assert nearest_of(space, run)[0] == params and not gone
    assert seen > 20
