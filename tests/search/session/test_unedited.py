"""A study's file and its script may be mended until something was measured or learnt, not later."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import optuna
import pytest

from search.common.attributes import BASELINE, CODE_HASH, PRIOR, STUDY_FILE, STUDY_HASH
from search.common.paths import Folders
from search.session import passport
from search.session.session import Session, check_unedited, refuse_edited
from search.storage import patient
from search.study.load import find_study
from search.study.model import study_hash
from search.trainers.trainer import trainer_of
from tests.search.fake_studies import write_study


def session_of(path: Path, stored: optuna.Study) -> Session:
    study = find_study(path)
    return Session(study, Folders(path.parent, study.name), "postgresql://", stored, trainer_of(study))


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    "begin",
    [
        lambda study: study.set_user_attr(BASELINE, {"val_bpb": 2.0}),
        lambda study: study.set_user_attr(PRIOR, {"studies": {}}),
        lambda study: study.ask(),
    ],
)
def test_until_something_is_measured_a_mended_file_is_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: Callable[[optuna.Study], object]
) -> None:
    monkeypatch.setattr(patient, "creation_lock", lambda _url: nullcontext())
    stored = optuna.create_study()
    path = write_study(tmp_path, "mended")
    first = session_of(path, stored)
    check_unedited(first)
    edit(path, "2_000_000", "1_900_000")
    second = session_of(path, stored)
    check_unedited(second)
    assert stored.user_attrs[STUDY_HASH] == study_hash(second.study) != study_hash(first.study)
    assert "1_900_000" in stored.user_attrs[STUDY_FILE]
    assert "1_900_000" in (tmp_path / "runs" / "mended" / "study.toml").read_text()
    with pytest.raises(ValueError, match="no longer describes"):
        refuse_edited(first)  # it measured meanwhile, and may not store it here
    begin(stored)
    check_unedited(second)
    edit(path, "1_900_000", "1_800_000")
    with pytest.raises(ValueError, match=r"no longer describes .* another `name`"):
        check_unedited(session_of(path, stored))
    assert "1_900_000" in stored.user_attrs[STUDY_FILE]


def test_until_something_is_measured_a_mended_script_is_the_studys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passport, "creation_lock", lambda _url: nullcontext())
    stored = optuna.create_study()
    session = session_of(write_study(tmp_path, "mended"), stored)
    codes = iter(["broken", "mended", "other", "other", "other"])
    monkeypatch.setattr(passport, "code_hash", lambda _files: next(codes))
    assert passport.check_joining(session, mixed=False) == "broken"
    assert passport.check_joining(session, mixed=False) == "mended" == stored.user_attrs[CODE_HASH]
    with pytest.raises(ValueError, match="began with mended"):
        passport.refuse_other_code(session)  # it measured meanwhile, and may not store it here
    stored.set_user_attr(BASELINE, {"val_bpb": 2.0})
    with pytest.raises(ValueError, match="began with mended and the trainer here is other"):
        passport.check_joining(session, mixed=False)
    assert passport.check_joining(session, mixed=True) == "other"
