"""run_study(options): what `search.py --trials N` does, with workers here or on a cluster's machines."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from search.common.attributes import PRIOR, TRACKING
from search.common.console import counted, make_console, print_step, print_wait, quiet_log, tell
from search.common.machine import num_cores
from search.common.options import ENVIRONMENT, RunOptions, WorkerSpec
from search.common.paths import Folders
from search.common.tables import say_nats
from search.engines import base as engines
from search.engines.local import launch
from search.report.leaderboard import print_leaderboard
from search.report.progress import Progress
from search.report.rows import snapshot
from search.samplers.admission import check_space
from search.samplers.choose import sampled_by
from search.samplers.finite import end_of
from search.session.passport import check_joining, hardware_here
from search.session.session import Session, check_room, measured, open_session
from search.space.native import build_space
from search.stage_cache.reuse import check_cache
from search.study.load import find_study
from search.trackers.feed import check_trackers
from search.trainers.trainer import trainer_of
from search.workers import prepare, prior
from search.workers.warm_start import find_warm_start
from techniques import catalog

Ending = Callable[[Console, Session], object]


def run_study(options: RunOptions, confirm: Ending | None = None, console: Console | None = None) -> None:
    """The default command; `confirm` ends a study that asks for it. Raises ValueError for what a person must
    solve, KeyboardInterrupt after a clean stop."""
    console = console or make_console()
    now = time.monotonic()
    spec = options.worker
    check_cache(spec)
    study = sampled_by(find_study(spec.study), spec.sampler)
    if study.in_nats:
        say_nats(console)
    trainer = trainer_of(study, spec.trainer)
    trainer.check()
    if study.trackers:
        check_trackers(study.trackers)
    external = options.storage or os.environ.get(ENVIRONMENT, "")
    cluster = engines.cluster_for(study, options.engine, options.engine_options, url=external)
    check_room(Folders(spec.home, study.name))
    quiet_log()
    gpus = () if cluster else prepare.gpus_for(study, os.environ)
    now = print_step(console, f"study {study.name}: {check_space(study)}", now)
    if not spec.target:
        console.print("The study can be run. --trials 0 runs nothing, and stores nothing.")
        return
    if trainer.built_in and not cluster:
        corpus = prepare.check_corpus(study, say=partial(print_wait, console))
        now = print_step(console, f"corpus: {corpus}", now)
    session = open_session(
        study, home=spec.home, storage=options.storage, environ=os.environ, trainer=trainer
    )
    check_joining(session, mixed=spec.mixed, runs_here=not cluster)
    if session.optuna_study.user_attrs.get(TRACKING):
        session.optuna_study.set_user_attr(TRACKING, "")  # told; now it is tried again
    if options.earlier or study.prior.asked or PRIOR in session.optuna_study.user_attrs:
        for learnt in prior.settle(session, options.earlier):
            now = print_step(console, f"BPB: learnt from {learnt.summary()}", now)
    seen = snapshot(session.optuna_study.get_trials(deepcopy=False), spec.target)
    print_step(console, f"database: {seen.finished} of {spec.target} trials done", now)
    left = spec.target - seen.finished
    if left <= 0:
        console.print(
            f"Nothing to do: --trials {spec.target} means {spec.target} finished trials in this study. Ask "
            "for more."
        )
    elif cluster:
        specs = specs_of(session, replace(spec, prepare=True), workers=min(options.workers or 1, left))
        run_there(console, session, specs, cluster)
        print_end(console, session, spec.target)
    else:
        workers = min(options.workers or prepare.default_workers(gpus), left)
        threads = max(1, num_cores() // workers) if gpus else 1  # on a CPU one is measured best
        specs = specs_of(session, replace(spec, threads=threads), workers=workers)
        wanted = study.confirm if confirm else None
        after = f"then: the best {wanted.top} again on at most {wanted.seeds} fresh seeds" if wanted else ""
        run_here(console, session, specs, gpus=gpus, external=bool(external), after=after)
        print_end(console, session, spec.target)
    if confirm and study.confirm:
        confirm(console, measured(session))
    print_leaderboard(console, measured(session))


def specs_of(session: Session, spec: WorkerSpec, *, workers: int) -> list[WorkerSpec]:
    """A spec for each worker. Their working directory is another than ours: paths become absolute."""
    trainer = spec.trainer.resolve() if spec.trainer else None
    whole = replace(spec, study=Path(session.study.path).absolute(), trainer=trainer)
    return [replace(whole, index=index) for index in range(workers)]


def run_here(
    console: Console,
    session: Session,
    specs: list[WorkerSpec],
    *,
    gpus: tuple[str, ...],
    external: bool,
    after: str,
) -> None:
    """The baseline first, then processes of this machine; `after` says what comes then."""
    now = time.monotonic()
    spec = specs[0]
    environ = {"CUDA_VISIBLE_DEVICES": gpus[0] if gpus else ""}
    hardware = hardware_here(session.study, num_threads=spec.threads, environ=environ)
    now = print_costs_known(console, session, now, hardware=hardware)
    if session.trainer.has_baseline:
        session, summary = prepare.check_baseline(
            session, spec, workers=len(specs), gpus=gpus, say=partial(print_wait, console)
        )
        now = print_step(console, summary, now)
    where = f"GPUs {', '.join(gpus)}" if gpus else "the CPU"
    print_step(console, beginning(len(specs), where), now)
    with Progress(session.optuna_study, spec.target, console, session.folders) as progress:
        progress.after = after
        launch(session, specs, progress, external=external, gpus=gpus)


def run_there(console: Console, session: Session, specs: list[WorkerSpec], cluster: engines.Cluster) -> None:
    """Tasks of the cluster. What only the machine of a worker can check, or measure, it does there."""
    now = print_costs_known(console, session, time.monotonic())
    folder = session.folders.runs / cluster.engine
    engine = engines.make_engine(cluster.engine, cluster.options, folder=folder)
    tasks = [engines.Task(spec, session.url, cluster.gpus) for spec in specs]
    print_step(console, beginning(len(specs), cluster.engine), now)
    with Progress(session.optuna_study, specs[0].target, console, session.folders) as progress:
        engines.run_tasks(engine, tasks, session, progress)


def print_end(console: Console, session: Session, target: int) -> None:
    """Why all workers ended before the target: there was no more to try."""
    if engines.finished(session) < target:
        trials = session.optuna_study.get_trials(deepcopy=False)
        told = end_of(build_space(session.study, catalog.metadata()), session.study, trials, target)
        tell(console, told)


def print_costs_known(console: Console, session: Session, now: float, *, hardware: str = "") -> float:
    """What each worker will find of earlier studies; `hardware` is "" where trials run elsewhere."""
    learnt = find_warm_start(session, hardware).summary(seconds=bool(hardware))
    return print_step(console, learnt, now) if learnt else now


def beginning(workers: int, where: str) -> str:
    return f"{counted(workers, 'worker')} on {where}; Ctrl-C stops, nothing is lost"
