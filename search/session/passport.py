"""Who may join a study: code_hash (what runs), machine_kind (on what), check_joining (against who began it).

Another version of the trainer's code is another objective: refused. Other hardware is one only where speed
decides: limits measured on the first machine, a training budget in seconds, or trials that came near a time
limit. `--mixed` lets both join; every trial's passport and the leaderboard then say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from search.common.attributes import CODE_HASH, HARDWARE, TRAINER
from search.common.machine import describe, machine_kind, visible_gpus
from search.session.session import Session, has_begun
from search.storage.patient import creation_lock
from search.study.model import Study
from search.trainers.files import code_hash

if TYPE_CHECKING:
    import optuna

BUILT_IN = "train_gpt.py"  # TRAINER of studies that run ours, in whatever version
NEAR = 0.5  # share of a time limit from which on speed decides


def check_joining(session: Session, *, mixed: bool, runs_here: bool = True) -> str:
    """This session's code hash; ValueError if it does not fit. `runs_here=False`: a cluster runs trials."""
    study = session.optuna_study
    code = code_hash(session.trainer.code_files())
    trainer = session.trainer
    mine = {CODE_HASH: code, TRAINER: BUILT_IN if trainer.built_in else trainer.command()[-1]}
    mine |= {HARDWARE: machine_kind()} if runs_here else {}
    if mine.keys() - study.user_attrs.keys():
        with creation_lock(session.url):
            for key in mine.keys() - study.user_attrs.keys():
                study.set_user_attr(key, mine[key])
    here = mine.get(HARDWARE, "")
    there = study.user_attrs.get(HARDWARE, here)
    if mixed:
        return code
    changed = study.user_attrs[CODE_HASH] != code
    if changed and session.trainer.has_baseline and not has_begun(study):  # it failed, and was mended
        study.set_user_attr(CODE_HASH, code)
    refuse_other_code(session, code)
    why = speed_matters(session) if here and there != here else ""
    if why:
        raise ValueError(
            f"All trials of a study run on the same hardware where speed decides, but {session.study.name!r} "
            f"began on {there}, this is {here}, and {why}. Use a machine of the same kind, or give the study "
            "another `name`; --mixed goes on anyway, and the leaderboard will say so."
        )
    return code


def refuse_other_code(session: Session, code: str = "") -> None:
    """ValueError where the study's trials run other code than `code`, the trainer's here."""
    code = code or code_hash(session.trainer.code_files())
    began = session.optuna_study.user_attrs[CODE_HASH]
    if began != code:
        raise ValueError(
            f"All trials of a study run the same code, but {session.study.name!r} began with {began} and the "
            f"trainer here is {code}. Use the version that it began with, or give the study another `name`; "
            "--mixed goes on anyway, and the leaderboard will say that its trials differ."
        )


def speed_matters(session: Session) -> str:
    """Why another machine would give other results under this study; "" when it would not."""
    limits = session.study.limits
    if limits.relative:
        return "its time limits are multiples of what was measured there"
    if name := session.trainer.time_budget():
        return f"{name} gives each run a time, not a number of steps"
    for limit in limits.given:
        slowest = max(_figures(session.optuna_study, limit.figure), default=0.0) if limit.unit == "s" else 0.0
        if slowest > NEAR * limits.of(limit):
            return f"a trial took {slowest:.4g} s of the {limits.of(limit):g} s that `{limit.name}` allows"
    return ""


def _figures(study: optuna.Study, name: str) -> list[float]:
    trials = study.get_trials(deepcopy=False)
    return [float(t.user_attrs[name]) for t in trials if name in t.user_attrs]


def hardware_here(study: Study, *, num_threads: int, environ: Mapping[str, str]) -> str:
    """Where this worker's trials run: `num_threads` for a study that does not set its own."""
    dealt = "CUDA_VISIBLE_DEVICES" in environ and study.settled("device") != "cpu" and visible_gpus(environ)
    gpus = study.gpus_per_trial if dealt else 0
    settled = study.fixed.get("num_threads") or study.base.get("num_threads") or num_threads
    return describe(gpus=gpus, threads=int(settled))
