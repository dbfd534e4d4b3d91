"""Studies as things: listed, renamed, put away, deleted, compared; a study that runs is left alone."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console

from claims.board import print_board
from search.common.attributes import PRICE, STUDY_FILE, STUDY_IDENTITY, TRAINER
from search.common.paths import Folders
from search.report.studies import print_diff, print_studies
from search.session.session import Session
from search.session.shelf import Shelf, script_of, shelf_of
from search.storage.patient import creation_lock, open_storage, open_study
from search.study.load import find_study
from search.study.model import study_identity
from search.trainers.trainer import trainer_of
from tests.search.db_helpers import held_server
from tests.search.fake_studies import write_study
from tests.search.report.test_report import GOOD, trial_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with held_server() as held:
        yield held[1]


def test_a_trainer_is_called_by_its_script() -> None:
    adapter = {TRAINER: "search.trainers.foreign.adapter"}
    assert script_of({**adapter, STUDY_FILE: '[trainer]\nscript = "theirs/train.py"'}) == "theirs/train.py"
    for text in ("", "[study]", "[trainer]\nscript", "trainer = 1"):
        assert script_of({**adapter, STUDY_FILE: text}) == adapter[TRAINER]
    assert script_of({}) == ""


@pytest.fixture
def shelf(url: str, tmp_path: Path) -> Iterator[Shelf]:
    shelf = Shelf(url, tmp_path)
    storage = open_storage(url, worker=False)
    for name, values in {"first": [2.5, 2.4], "second": [2.7]}.items():
        study = open_study(storage, name, url=url)
        for value in values:
            study.add_trial(trial_of(value))
        study.add_trial(trial_of(1.9, broken="bytes"))
        folder = Folders(tmp_path, name).runs
        folder.mkdir(parents=True)
        (folder / "study.toml").write_text(name)
    yield shelf
    for study in open_storage(url, worker=True).get_all_studies():
        optuna.delete_study(study_name=study.study_name, storage=open_storage(url, worker=True))


def listed(shelf: Shelf, *, every: bool = False) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_studies(console, shelf, every=every)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    return text


def test_the_list_tells_what_studies_cost(shelf: Shelf) -> None:
    """Where a price was stored with them."""
    assert "dollars" not in listed(shelf)
    shelf.study("first").set_user_attr(PRICE, [2.0, 8])
    assert "dollars" in listed(shelf)
    assert {s.name: s.dollars is None for s in shelf.studies()} == {"first": False, "second": True}


def test_the_list_names_the_best_that_keeps_the_limits(shelf: Shelf) -> None:
    found = {study.name: study for study in shelf.studies()}
    assert set(found) == {"first", "second"}
    best = found["first"].best
    assert best is not None and best.number == 1 and found["first"].finished == 3
    assert "2.4000 (#1)" in listed(shelf)


def test_a_renamed_study_keeps_its_trials_and_its_folder(shelf: Shelf) -> None:
    shelf.rename("first", "third")
    assert {s.name for s in shelf.studies()} == {"second", "third"}
    assert len(shelf.study("third").trials) == 3
    assert (Folders(shelf.home, "third").runs / "study.toml").read_text() == "first"
    assert not Folders(shelf.home, "first").runs.exists()


def test_a_name_that_cannot_be_changes_nothing(shelf: Shelf) -> None:
    for new, why in (("second", "is taken"), ("a/b", "folder's"), ("", "folder's"), ("..", "folder's")):
        with pytest.raises(ValueError, match=why):
            shelf.rename("first", new)
    (Folders(shelf.home, "other").runs).mkdir(parents=True)
    with pytest.raises(ValueError, match="is there already"):
        shelf.rename("first", "other")
    with pytest.raises(ValueError, match="There are: first, second"):
        shelf.rename("nobody", "else")
    assert {s.name for s in shelf.studies()} == {"first", "second"}
    assert Folders(shelf.home, "first").runs.exists()


def test_an_archived_study_is_hidden_and_whole(shelf: Shelf) -> None:
    shelf.archive("first", undo=False)
    assert "first" not in listed(shelf) and "1 archived one (--all)" in listed(shelf)
    assert "first (archived)" in listed(shelf, every=True)
    assert len(shelf.study("first").trials) == 3
    shelf.archive("first", undo=True)
    assert "first" in listed(shelf)


def test_deleting_asks_first(shelf: Shelf) -> None:
    with pytest.raises(ValueError, match=r"3 trials of first and .*--yes.*archive first"):
        shelf.delete("first", sure=False)
    assert len(shelf.study("first").trials) == 3
    assert shelf.delete("first", sure=True).startswith("3 trials of first")
    assert {s.name for s in shelf.studies()} == {"second"}
    assert not Folders(shelf.home, "first").runs.exists() and Folders(shelf.home, "second").runs.exists()


def test_a_study_that_runs_is_left_alone(shelf: Shelf) -> None:
    shelf.study("first").add_trial(create_trial(state=TrialState.RUNNING, user_attrs={"worker": "host:1:0"}))
    for change in (lambda: shelf.delete("first", sure=True), lambda: shelf.rename("first", "new")):
        with pytest.raises(ValueError, match=r"trial 3 of first is running \(host:1:0\)"):
            change()
    assert len(shelf.study("first").trials) == 4


def test_a_trial_that_begins_in_that_moment_is_seen(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def begins(url: str) -> Any:
        shelf.study("first").add_trial(create_trial(state=TrialState.RUNNING))
        return creation_lock(url)

    monkeypatch.setattr("search.session.shelf.creation_lock", begins)
    with pytest.raises(ValueError, match="trial 3 of first is running"):
        shelf.rename("first", "new")
    assert {s.name for s in shelf.studies()} == {"first", "second"}


@pytest.mark.parametrize("name", ["..", "{home}/mine", "runs/../../mine"])
def test_another_programs_study_has_no_folder_of_ours(shelf: Shelf, name: str) -> None:
    """Its name may be a path: nothing there is moved or deleted."""
    mine = shelf.home / "mine"
    name = name.format(home=shelf.home)
    mine.mkdir()
    optuna.create_study(study_name=name, storage=open_storage(shelf.url, worker=True))
    assert shelf.delete(name, sure=True) == f"0 trials of {name}"
    optuna.create_study(study_name=name, storage=open_storage(shelf.url, worker=True))
    shelf.rename(name, "ours")
    assert mine.exists() and (shelf.home / "runs" / "first").exists()
    assert not (shelf.home / "runs" / "ours").exists()


def test_a_folder_that_stays_is_told(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str, **_: Any) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.unlink", refused)
    with pytest.raises(ValueError, match=r"runs/first says: Permission denied\. The study is deleted"):
        shelf.delete("first", sure=True)


def test_nowhere_was_a_study_begun(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No study was begun here"):
        shelf_of(tmp_path, None, {})
    assert not list(tmp_path.iterdir())


def test_two_trials_side_by_side(tmp_path: Path) -> None:
    study = find_study(write_study(tmp_path, "told"))
    kept = optuna.create_study()
    configs: list[dict[str, Any]] = [{"a": 1, "b": True, "c": "x"}, {"a": 1, "b": False, "d": [0]}]
    for value, config in zip((2.4, None), configs, strict=True):
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        attrs = {"config": config, "artifact_bytes": 300_000} if value else {"config": config}
        kept.add_trial(create_trial(state=state, value=value, constraints=GOOD, user_attrs=attrs))
    session = Session(study, Folders(tmp_path, "told"), "", kept, trainer_of(study))
    console = Console(file=io.StringIO(), width=80)
    print_diff(console, session, 0, 1)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}
    assert rows["b"] == ["│", "True", "│", "False"] and "a" not in rows
    assert "2.4000" in text and "pruned" in text and "300,000" in text and "1 setting the same" in text
    with pytest.raises(ValueError, match="0 to 1, but not 7"):
        print_diff(console, session, 0, 7)


def test_the_leaderboard_reads_a_real_database(shelf: Shelf) -> None:
    """Studies of other programs among them."""
    console = Console(file=io.StringIO(), width=80)
    for study in shelf.stored():
        study.set_user_attr(STUDY_IDENTITY, study_identity(find_study(write_study(shelf.home, "any"))))
    print_board(console, shelf.stored(), shelf.home, top=1, every=False)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert "first #1" in text and "second #0" in text
