"""Who may join a study: code_hash (what runs), machine_kind (on what), check_joining (against who began it).

A study is one objective. Another version of the trainer's code is another objective: refused. Other hardware
is one only where speed decides, which `speed_matters` judges: limits measured on the first machine, a
training budget in seconds, or trials that came near a time limit. Where none of that holds it may join.
`--mixed` lets both join; every trial's passport and the leaderboard then say so.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from search.common.machine import machine_kind
from search.study.model import Study

if TYPE_CHECKING:
    import optuna

    from search.session.session import Session

ROOT = Path(__file__).resolve().parent.parent
CODE, HARDWARE, TRAINER = "code_hash", "hardware", "trainer"  # user attributes of the Optuna study
BUILT_IN = "train_gpt.py"  # TRAINER of studies that run ours, in whatever version
NEAR = 0.5  # share of a time limit from which on speed decides


def code_files(study: Study, trainer: Path | None = None) -> list[Path]:
    """The files whose text is the objective: a foreign script and its neighbours, or our trainer and its
    techniques."""
    if study.foreign is not None:
        script = Path(study.foreign.script)
        return [script, *sorted(p for p in script.parent.glob("*.py") if p.name != script.name)]
    if trainer is not None:
        return [trainer]
    return [ROOT / "train_gpt.py", *sorted((ROOT / "techniques").rglob("*.py"))]


def code_hash(study: Study, trainer: Path | None = None) -> str:
    """Equal for equal code, wherever it lies. Raises OSError when a file is gone."""
    sums = hashlib.sha256()
    for path in code_files(study, trainer):
        sums.update(f"{path.parent.name}/{path.name}\0".encode() if path.parent != ROOT else b"\0")
        sums.update(hashlib.sha256(path.read_bytes()).digest())
    return sums.hexdigest()[:16]


def check_joining(session: Session, trainer: Path | None, *, mixed: bool, runs_here: bool = True) -> str:
    """This session's code hash. The first session writes its passport; a later one must fit. ValueError.

    `runs_here=False`: a cluster runs the trials, and its first worker will say on what."""
    from search.storage.patient import creation_lock

    study, code = session.optuna_study, code_hash(session.study, trainer)
    built_in = session.study.foreign is None and trainer is None
    mine = {CODE: code} | ({TRAINER: BUILT_IN} if built_in else {})
    mine |= {HARDWARE: machine_kind()} if runs_here else {}
    if mine.keys() - study.user_attrs.keys():
        with creation_lock(session.url):
            for key in mine.keys() - study.user_attrs.keys():
                study.set_user_attr(key, mine[key])
    began, here = study.user_attrs[CODE], mine.get(HARDWARE, "")
    there = study.user_attrs.get(HARDWARE, here)
    if mixed:
        return code
    if began != code:
        raise ValueError(
            f"All trials of a study run the same code, but {session.study.name!r} began with {began} and the "
            f"trainer here is {code}. Use the version that it began with, or give the study another `name`; "
            "--mixed goes on anyway, and the leaderboard will say that its trials differ."
        )
    why = speed_matters(session) if here and there != here else ""
    if why:
        raise ValueError(
            f"All trials of a study run on the same hardware where speed decides, but {session.study.name!r} "
            f"began on {there}, this is {here}, and {why}. Use a machine of the same kind, or give the study "
            "another `name`; --mixed goes on anyway, and the leaderboard will say so."
        )
    return code


def speed_matters(session: Session) -> str:
    """Why another machine would give other results under this study; "" when it would not."""
    study, limits = session.study, session.study.limits
    if limits.relative:
        return "its time limits are multiples of what was measured there"
    if study.foreign is not None:
        name = study.foreign.wallclock
        if name and (name in study.foreign.variables or float(study.foreign.fixed.get(name, 0) or 0) > 0):
            return f"{name} gives each run a time, not a number of steps"
    else:
        from search.workers.prepare import settled

        if float(settled(study, "max_wallclock_seconds") or 0.0) > 0.0:
            return "max_wallclock_seconds gives each run a time, not a number of steps"
    for name, limit in (("train_seconds", limits.train_seconds), ("eval_seconds", limits.eval_seconds)):
        slowest = max(_figures(session.optuna_study, name), default=0.0)
        if slowest > NEAR * limit:
            return f"a trial took {slowest:.4g} s of the {limit:g} s that `{name}` allows"
    return ""


def _figures(study: optuna.Study, name: str) -> list[float]:
    trials = study.get_trials(deepcopy=False)
    return [float(t.user_attrs[name]) for t in trials if name in t.user_attrs]


def differences(stored: Any, mine: Any, at: str = "") -> list[str]:
    """Where two nested values differ, one line each: `free.matrix_lr: 1 -> 2`."""
    if isinstance(stored, dict) and isinstance(mine, dict):
        old, new = cast("dict[str, Any]", stored), cast("dict[str, Any]", mine)
        found: list[str] = []
        for key in sorted({*old, *new}):
            found += differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
        return found
    return [] if stored == mine else [f"{at}: {stored!r} -> {mine!r}"]


def changed(study: Study, trainer: Path | None, code: str) -> str:
    """Why the trainer's files are no longer those of `code`; "" while they are."""
    try:
        now = code_hash(study, trainer)
    except OSError as error:
        return f"The trainer's files must stay, but {error.filename} says: {error.strerror}. Restore it."
    if now == code:
        return ""
    return (
        f"All trials of a study run the same code, but the trainer's files changed under it ({code} to "
        f"{now}). Restore them and run the same command to go on, or give the study another `name`."
    )
