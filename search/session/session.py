"""A study on this machine, for the command line and every worker: its file, its folders, its database.

Under `home`: `.caddie/` (the private database) and `runs/<study>/<trial>/` (what a trial leaves behind).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from search.common.attributes import (
    BASELINE,
    PRICE,
    PRIOR,
    STUDY_FILE,
    STUDY_HASH,
    STUDY_IDENTITY,
    TRAINER,
)
from search.common.options import ENVIRONMENT
from search.common.paths import Folders, shown
from search.study.load import read_study
from search.study.model import Study, study_hash, study_identity
from search.trainers.trainer import Trainer, trainer_of
from techniques import catalog

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Session:
    """An opened study."""

    study: Study
    folders: Folders
    url: str
    optuna_study: optuna.Study
    trainer: Trainer  # what the trials run
    note: str = ""  # what a reader of the study must know first

    def whole(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Trials of a session that was opened `brief`, with their parameters and configurations."""
        return whole_trials(self.optuna_study, trials)


def whole_trials(study: optuna.Study, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials of a study that may have been read `brief`, with their parameters and configurations."""
    storage: Any = study._storage  # pyright: ignore[reportPrivateUsage]
    bulk = getattr(storage, "bulk", None)
    if bulk is None or not bulk.brief:
        return list(trials)
    return bulk.trials_of([t._trial_id for t in trials])  # pyright: ignore[reportPrivateUsage]


def open_session(
    study: Study,
    *,
    home: Path,
    storage: str | None,
    environ: Mapping[str, str],
    worker: bool = False,
    trainer: Trainer | None = None,
) -> Session:
    """Makes or joins the study. Raises StorageError, and ValueError for a study that was edited."""
    import optuna

    from search.storage.patient import open_storage, open_study, resolve_url, timing_of

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folders = Folders(home, study.name)
    url = resolve_url(storage, home=folders.database, environ=environ)
    revive: Callable[[], object] = partial(resolve_url, storage, home=folders.database, environ=environ)
    storage_ = open_storage(url, worker=worker, timing=timing_of(environ), revive=revive)
    opened = open_study(storage_, study.name, url=url)
    session = Session(study, folders, url, opened, trainer or trainer_of(study))
    check_unedited(session)
    price = [study.price.dollars_per_gpu_hour, study.gpus]
    if price[0] and opened.user_attrs.get(PRICE) != price:  # for who lists studies without their files
        opened.set_user_attr(PRICE, price)
    return measured(session)


def measured(session: Session) -> Session:
    """The session with the limits in seconds, once the baseline is measured (search/workers/prepare.py)."""
    study = session.study
    baseline = baseline_of(session.optuna_study)
    if baseline is None or not study.limits.relative:
        return session
    limits = study.limits.measured(baseline)
    return replace(session, study=replace(study, limits=limits, timeout_seconds=limits.timeout_seconds()))


def read_session(
    study: Study, *, home: Path, storage: str | None, environ: Mapping[str, str], brief: bool = False
) -> Session:
    """The study as stored, which was begun (ValueError). `brief`: without parameters, a third of the time."""
    import optuna

    from search.storage.patient import connect_check, open_storage, resolve_url

    folders = Folders(home, study.name)
    nothing = ValueError(
        f"Only a study that was begun can be read, but there is no {study.name!r} in this database (home "
        f"{home}). Start it with `python search.py`, or give the --study, --home or --storage that it was "
        "started with."
    )
    if storage is None and not environ.get(ENVIRONMENT) and not folders.database.exists():
        raise nothing
    url = resolve_url(storage, home=folders.database, environ=environ)
    if not connect_check(url, write=False):
        raise nothing
    try:
        opened = open_storage(url, worker=True)
        opened.bulk.brief = brief
        stored = optuna.load_study(study_name=study.name, storage=opened)
    except KeyError:
        raise nothing from None
    ran = stored.user_attrs.get(TRAINER, "")  # a script of the contract by its path
    script = Path(ran) if Path(ran).is_absolute() else None
    study, note = as_stored(study, stored, folders)
    return measured(Session(study, folders, url, stored, trainer_of(study, script), note))


def as_stored(study: Study, stored: optuna.Study, folders: Folders) -> tuple[Study, str]:
    """(the study as it was begun, a line about that where its file was edited since). What was begun stays
    readable whatever became of its file: by the copy beside its trials, else by the database's own."""
    began = stored.user_attrs.get(STUDY_HASH)
    if began in (None, study_hash(study)):
        return study, ""
    kept = folders.runs / "study.toml"
    text = str(stored.user_attrs.get(STUDY_FILE) or "")
    copies = {str(shown(kept)): kept.read_text(encoding="utf-8")} if kept.exists() else {}
    file = shown(Path(study.path))
    for where, copy in (copies | {"the copy in the database": text}).items():
        try:
            found = read_study(copy, Path(study.path), catalog.metadata())
        except ValueError:
            continue
        if study_hash(found) == began:
            note = f"{file} was edited since {study.name!r} began; read as it was then, from {where}."
            return replace(found, name=study.name), note
    return study, (
        f"{file}, or the code, no longer describes {study.name!r} as it was begun, nor does a copy: limits "
        "and space are shown as they are now."
    )


def check_unedited(session: Session) -> None:
    """The first session writes the study's hash and keeps its file; every later one must have that hash, once
    anything was measured or learnt under it: until then a mended file is the study."""
    from search.storage.patient import creation_lock

    mine = study_hash(session.study)
    text = Path(session.study.path)
    kept = session.folders.runs / "study.toml"
    study = session.optuna_study
    if study.user_attrs.get(STUDY_HASH) != mine and not has_begun(study):
        with creation_lock(session.url):
            if not has_begun(study):
                study.set_user_attr(STUDY_IDENTITY, study_identity(session.study))
                study.set_user_attr(STUDY_HASH, mine)
                study.set_user_attr(STUDY_FILE, text.read_text(encoding="utf-8"))
                kept.unlink(missing_ok=True)
    refuse_edited(session)
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(text, kept)


def refuse_edited(session: Session) -> None:
    """ValueError where the study that is stored is another one than the file describes."""
    mine = study_hash(session.study)
    stored = session.optuna_study.user_attrs.get(STUDY_HASH)
    if stored == mine:
        return
    kept = session.folders.runs / "study.toml"
    copy = f" ({kept} is a copy)" if kept.exists() else ""
    raise ValueError(
        f"A study samples one space under one set of limits, but {session.study.path} no longer describes "
        f"the study {session.study.name!r} that is stored ({mine} against {stored}{_edits(session)}). To go "
        f"on with the stored one, restore the file{copy}; to search the new space, or where another study "
        f"has that name, give it another `name` in [study]: with --from "
        f"{shlex.quote(session.study.name)} it begins with what the stored one found."
    )


def has_begun(study: optuna.Study) -> bool:
    """Whether anything stands in it that was measured or learnt."""
    attrs = study.user_attrs
    return BASELINE in attrs or PRIOR in attrs or bool(study.get_trials(deepcopy=False))


def _edits(session: Session) -> str:
    stored = session.optuna_study.user_attrs.get(STUDY_IDENTITY)
    mine = json.loads(json.dumps(study_identity(session.study)))  # as it was stored: lists, not tuples
    found = differences(stored, mine) if stored else []
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return f"; {'; '.join(found[:4])}{more}" if found else ""


def check_room(folders: Folders, *, min_free_bytes: int = 200_000_000) -> None:
    """ValueError unless trials can write their results."""
    probe = folders.runs / f".probe-{os.getpid()}"
    try:
        folders.runs.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"0" * 4096)
        probe.unlink()
        free = shutil.disk_usage(folders.runs).free
    except OSError as error:
        raise ValueError(
            f"Trials write their results under {folders.runs}, but that says: {error.strerror}. Free some "
            "space, fix the permissions, or use another --home. Nothing stored is lost."
        ) from None
    if free < min_free_bytes:
        raise ValueError(
            f"Trials need room for their results under {folders.runs}, at least {min_free_bytes:,} bytes, "
            f"but {free:,} are free. Free some space, or use another --home. Nothing stored is lost."
        )


def differences(stored: Any, mine: Any, at: str = "") -> list[str]:
    """Where two nested values differ, one line each: `free.matrix_lr: 1 -> 2`."""
    if isinstance(stored, dict) and isinstance(mine, dict):
        old, new = cast("dict[str, Any]", stored), cast("dict[str, Any]", mine)
        found: list[str] = []
        for key in sorted({*old, *new}):
            found += differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
        return found
    return [] if stored == mine else [f"{at}: {stored!r} -> {mine!r}"]


def baseline_of(study: optuna.Study) -> dict[str, Any] | None:
    """The figures of the study's starting point, once it was measured."""
    return study.user_attrs.get(BASELINE)
