"""run_study(common, wish): what `search.py --trials N` does, with workers here or on a cluster's machines."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from search.common.console import make_console, quiet_log, say
from search.common.machine import num_cores
from search.common.options import Common, home_of
from search.common.paths import Place
from search.engines import cluster as engines
from search.engines.local import Plan, launch
from search.report.leaderboard import print_leaderboard
from search.report.progress import Progress
from search.report.rows import snapshot
from search.samplers.admission import check_space
from search.samplers.choose import sampled_by
from search.session.passport import check_joining, hardware_here
from search.session.session import Session, check_room, measured, open_session
from search.storage.patient import ENVIRONMENT
from search.study.load import find_study
from search.trainers.trainer import refuse_native_table, with_trainer
from search.workers import prepare
from search.workers.spec import Order
from search.workers.warm_start import find_warm_start


@dataclass(frozen=True)
class Wish:
    """What the default command was asked for."""

    trials: int
    workers: int | None = None
    trainer: Path | None = None
    mixed: bool = False
    sampler: str = ""
    engine: str = "local"
    engine_options: tuple[str, ...] = ()  # KEY=VALUE


def run_study(common: Common, wish: Wish) -> None:
    """The default command. Raises ValueError for what a person must solve, KeyboardInterrupt after a clean
    stop."""
    console, now = make_console(), time.monotonic()
    study = sampled_by(with_trainer(find_study(common.study), wish.trainer), wish.sampler)
    external = common.storage or os.environ.get(ENVIRONMENT, "")
    cluster = engines.cluster_for(study, wish.engine, wish.engine_options, url=external)
    refuse_native_table(study, wish.trainer)
    place = Place(home_of(common), study.name)
    check_room(place)
    quiet_log(None)
    gpus = () if cluster else prepare.gpus_for(study, os.environ)
    now = say(console, f"study {study.name}: {check_space(study)}", now)
    ours = study.foreign is None and wish.trainer is None
    if ours and not cluster:
        now = say(console, f"corpus: {prepare.check_corpus(study)}", now)
    session = open_session(study, home=place.home, storage=common.storage, environ=os.environ)
    check_joining(session, wish.trainer, mixed=wish.mixed, runs_here=not cluster)
    seen = snapshot(session.optuna_study.get_trials(deepcopy=False), wish.trials)
    say(console, f"database: {seen.finished} of {wish.trials} trials done", now)
    if seen.finished >= wish.trials:
        console.print(
            f"Nothing to do: --trials {wish.trials} means {wish.trials} finished trials in this study. Ask "
            "for more."
        )
    elif cluster:
        workers = min(wish.workers or 1, wish.trials - seen.finished)
        work_there(console, session, order_of(common, wish, session), workers=workers, cluster=cluster)
    else:
        workers = min(wish.workers or prepare.default_workers(gpus), wish.trials - seen.finished)
        threads = max(1, num_cores() // workers) if gpus else 1  # on a CPU one is measured best
        order = order_of(common, wish, session, threads=threads)
        work_here(console, session, Plan(order, workers, bool(external), gpus))
    print_leaderboard(console, measured(session))


def order_of(common: Common, wish: Wish, session: Session, *, threads: int = 1) -> Order:
    """What the workers are told. Their working directory is another than ours: paths become absolute."""
    return Order(
        study=Path(session.study.path).absolute(),
        home=session.place.home,
        target=wish.trials,
        threads=threads,
        trainer=wish.trainer.resolve() if wish.trainer else None,
        sampler=wish.sampler,
        mixed=wish.mixed,
        cache=common.cache,
    )


def work_here(console: Console, session: Session, plan: Plan) -> None:
    """The baseline first, then processes of this machine."""
    now = time.monotonic()
    environ = {"CUDA_VISIBLE_DEVICES": plan.gpus[0] if plan.gpus else ""}
    hardware = hardware_here(session.study, num_threads=plan.order.threads, environ=environ)
    now = say_costs(console, session, now, hardware=hardware)
    if plan.order.trainer is None or session.study.foreign is not None:
        session, told = prepare.check_baseline(session, workers=plan.workers, gpus=plan.gpus)
        now = say(console, told, now)
    where = f"GPUs {', '.join(plan.gpus)}" if plan.gpus else "the CPU"
    say(console, beginning(plan.workers, where), now)
    with Progress(session.optuna_study, plan.order.target, console) as progress:
        launch(session, plan, progress)


def work_there(
    console: Console, session: Session, order: Order, *, workers: int, cluster: engines.Cluster
) -> None:
    """Tasks of the cluster. What only the machine of a worker can check, or measure, it does there."""
    now = say_costs(console, session, time.monotonic())
    engine = engines.make_engine(cluster.engine, cluster.options, folder=session.place.runs / cluster.engine)
    tasks = [engines.Task(order, session.url, index, cluster.gpus) for index in range(workers)]
    say(console, beginning(workers, cluster.engine), now)
    with Progress(session.optuna_study, order.target, console) as progress:
        engines.work(engine, tasks, session, progress)


def say_costs(console: Console, session: Session, now: float, *, hardware: str = "") -> float:
    """What each worker will find of earlier studies; `hardware` is "" where trials run elsewhere."""
    learnt = find_warm_start(session, hardware).summary(seconds=bool(hardware))
    return say(console, learnt, now) if learnt else now


def beginning(workers: int, where: str) -> str:
    return f"{workers} worker{'s' if workers > 1 else ''} on {where}; Ctrl-C stops, nothing is lost"
