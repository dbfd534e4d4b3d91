"""run_study(common, wish): what `search.py --trials N` does, on this machine."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

from search import prepare
from search.cli import Common, home_of, make_console, say
from search.foreign import refuse_native_table, with_trainer
from search.launch import Plan, launch
from search.passport import check_joining
from search.progress import Progress, snapshot
from search.report import print_leaderboard
from search.session import Place, check_room, find_study, open_session, quiet_log
from search.storage import ENVIRONMENT


@dataclass(frozen=True)
class Wish:
    """What the default command was asked for."""

    trials: int
    workers: int | None
    trainer: Path | None
    mixed: bool


def run_study(common: Common, wish: Wish) -> None:
    """The default command."""
    console, now = make_console(), time.monotonic()
    trials, trainer = wish.trials, wish.trainer
    study, home = with_trainer(find_study(common.study), trainer), home_of(common)
    refuse_native_table(study, trainer)
    native = study.foreign is None
    check_room(Place(home, study.name))
    quiet_log(None)
    gpus = prepare.gpus_for(study, os.environ)
    now = say(console, f"study {study.name}: {prepare.check_space(study)}", now)
    if native and trainer is None:
        now = say(console, f"corpus: {prepare.check_corpus(study)}", now)
    session = open_session(study, home=home, storage=common.storage, environ=os.environ)
    check_joining(session, trainer, mixed=wish.mixed)
    seen = snapshot(session.optuna_study.get_trials(deepcopy=False), trials)
    now = say(console, f"database: {seen.finished} of {trials} trials done", now)
    if seen.finished >= trials:
        console.print(
            f"Nothing to do: --trials {trials} means {trials} finished trials in this study. Ask for more."
        )
    else:
        count = min(wish.workers or prepare.default_workers(gpus), trials - seen.finished)
        if trainer is None or not native:
            session, told = prepare.check_baseline(session, workers=count, gpus=gpus)
            now = say(console, told, now)

        external = common.storage or os.environ.get(ENVIRONMENT)
        plan = Plan(trials, count, external, gpus, trainer.resolve() if trainer else None, wish.mixed)
        plan = replace(plan, cache=common.cache)
        where = f"GPUs {', '.join(gpus)}" if gpus else "the CPU"
        say(
            console,
            f"{count} worker{'s' if count > 1 else ''} on {where}; Ctrl-C stops, nothing is lost",
            now,
        )
        with Progress(session.optuna_study, trials, console) as progress:
            launch(session, plan, progress)
    print_leaderboard(console, session)
