"""Studies as things of a database: listed, renamed, put away, deleted. A study that runs is left alone."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import exc, text

from search.common.attributes import ARCHIVED, PRICE, REPLICATE, STUDY_FILE, TRAINER, WORKER
from search.common.console import counted
from search.common.options import ENVIRONMENT
from search.common.paths import Folders
from search.storage.patient import connect_check, creation_lock, open_storage, resolve_url, side_engine
from search.study.limits import feasible
from search.study.load import NAME

RENAME = "update studies set study_name = :new where study_name = :old"


@dataclass(frozen=True)
class Shelved:
    """One stored study, at a glance."""

    name: str
    finished: int
    running: int
    best: FrozenTrial | None  # feasible, by its value
    newest: FrozenTrial | None  # by its start
    trainer: str  # "" for ours
    dollars: float | None  # that its trials cost; None: no price is known
    archived: bool


def script_of(attrs: Mapping[str, Any]) -> str:
    """The trainer of a study, by its attributes: the script that a [trainer] table names, else what ran."""
    try:
        return str(tomllib.loads(str(attrs.get(STUDY_FILE, "")))["trainer"]["script"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError):
        return str(attrs.get(TRAINER, ""))


@dataclass(frozen=True)
class Shelf:
    """The studies of one database, and their folders under `home`."""

    url: str
    home: Path

    def studies(self) -> list[Shelved]:
        """Newest first."""
        storage = open_storage(self.url, worker=True)
        storage.bulk.brief = True
        found = [self._read(storage, study) for study in storage.get_all_studies()]
        return sorted(found, key=lambda s: begun(s.newest), reverse=True)

    def stored(self) -> list[optuna.Study]:
        """Every study, its trials to be read `brief`; newest first."""
        storage = open_storage(self.url, worker=True)
        storage.bulk.brief = True
        names = [study.study_name for study in storage.get_all_studies()]
        found = [optuna.load_study(study_name=name, storage=storage) for name in names]
        newest = {s.study_name: max(map(begun, s.get_trials(deepcopy=False)), default=0.0) for s in found}
        return sorted(found, key=lambda s: newest[s.study_name], reverse=True)

    def _read(self, storage: Any, study: Any) -> Shelved:
        trials = cast("list[FrozenTrial]", storage.get_all_trials(study._study_id, deepcopy=False))
        first = [t for t in trials if t.state == TrialState.COMPLETE and REPLICATE not in t.user_attrs]
        good = [t for t in first if feasible(t)]
        return Shelved(
            name=study.study_name,
            finished=sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials),
            running=sum(t.state == TrialState.RUNNING for t in trials),
            best=min(good, key=lambda t: t.value or 0.0, default=None),
            newest=max(trials, key=begun, default=None),
            trainer=script_of(study.user_attrs),
            dollars=dollars_of(trials, study.user_attrs.get(PRICE)),
            archived=bool(study.user_attrs.get(ARCHIVED)),
        )

    def study(self, name: str) -> optuna.Study:
        """ValueError, with the names that there are."""
        storage = open_storage(self.url, worker=True)
        try:
            return optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            names = ", ".join(sorted(s.study_name for s in storage.get_all_studies())) or "none"
            raise ValueError(
                f"A study must be there, but there is no {name!r}. There are: {names}."
            ) from None

    def archive(self, name: str, *, undo: bool) -> None:
        """Hides it from the list, or shows it again; nothing else changes."""
        self.study(name).set_user_attr(ARCHIVED, not undo)

    def rename(self, old: str, new: str) -> None:
        """The study and its folder. ValueError for a name that is taken, odd, or of a study that runs."""
        if not NAME.fullmatch(new):
            raise ValueError(
                f"A study's name is also a folder's: letters, digits and . _ + - only, but got {new!r}. Give "
                "another."
            )
        study = self.study(old)
        folder = self._folder(old)
        there = Folders(self.home, new).runs
        with creation_lock(self.url), side_engine(self.url).begin() as connection:
            try:
                connection.execute(text(RENAME), {"old": old, "new": new})
            except exc.IntegrityError:
                raise ValueError(
                    f"A name stands for one study, but {new!r} is taken. Give another."
                ) from None
            self._check_still(study, "renamed")  # a trial that would begin now waits for this to be over
            if there.exists():
                raise ValueError(
                    f"A study's folder is its own, but {there} is there already. Move it away, or give "
                    "another name."
                )
            if folder is not None:
                folder.rename(there)  # last: what fails before it changed nothing

    def delete(self, name: str, *, sure: bool) -> str:
        """Deletes trials and folder; returns what went. Unless `sure`, a ValueError says what would."""
        study = self.study(name)
        folder = self._folder(name)
        self._check_still(study, "deleted")
        what = f"{counted(len(study.get_trials(deepcopy=False)), 'trial')} of {name}"
        if folder is not None:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            what += f" and {folder} ({size / 1e6:,.1f} MB)"
        if not sure:
            raise ValueError(
                f"What is deleted is gone: {what}. Say it with --yes, or put the study away: archive {name}."
            )
        optuna.delete_study(study_name=name, storage=study._storage)  # pyright: ignore[reportPrivateUsage]
        try:
            if folder is not None:
                shutil.rmtree(folder)
        except OSError as error:
            raise ValueError(
                f"A study goes with its folder, but {folder} says: {error.strerror}. The study is deleted; "
                "remove the rest of its folder by hand."
            ) from error
        return what

    def _folder(self, name: str) -> Path | None:
        """The study's folder, if there is one. Other programs' studies have any name, even `..` or a path."""
        folder = Folders(self.home, name).runs
        return folder if NAME.fullmatch(name) and folder.exists() else None

    def _check_still(self, study: optuna.Study, what: str) -> None:
        running = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]
        if running:
            worker = running[0].user_attrs.get(WORKER, "a worker")
            raise ValueError(
                f"A study is {what} while nobody runs it, but trial {running[0].number} of "
                f"{study.study_name} is running ({worker}). Stop its workers with Ctrl-C; where they died, "
                "run the study again for a moment: that clears what they left behind."
            )


def begun(trial: FrozenTrial | None) -> float:
    return trial.datetime_start.timestamp() if trial is not None and trial.datetime_start else 0.0


def dollars_of(trials: Sequence[FrozenTrial], price: Sequence[float] | None) -> float | None:
    """Of trials on the clock, at a price that was stored with their study."""
    if not price or not price[0] or not price[1]:
        return None
    return hours_of(trials) * price[1] * price[0]


def hours_of(trials: Iterable[FrozenTrial]) -> float:
    """Of trials on the clock, summed: an hour of 8 GPUs is one hour."""
    times = [(t.datetime_start, t.datetime_complete) for t in trials]
    return sum(max(0.0, (end - start).total_seconds()) for start, end in times if start and end) / 3600.0


def shelf_of(home: Path, storage: str | None, environ: Mapping[str, str]) -> Shelf:
    """The database that these options name. ValueError where there is none yet."""
    folders = Folders(home, "")
    nothing = ValueError(f"No study was begun here (home {home}). Start one with `python search.py`.")
    if storage is None and not environ.get(ENVIRONMENT) and not folders.database.exists():
        raise nothing
    url = resolve_url(storage, home=folders.database, environ=environ)
    if not connect_check(url, write=False):
        raise nothing
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return Shelf(url, home)
