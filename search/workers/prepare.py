"""What must be right before the first trial: room on the disk, a device, the corpus, a baseline; and the
processes that a WorkerSpec describes: a worker, by both ends of its command line, and its trainers.
"""

import argparse
import dataclasses
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from corpus import embedded
from corpus.dataset import open_dataset
from corpus.manifest import is_complete
from search.common.attributes import BASELINE, HARDWARE, STAGE_SECONDS
from search.common.errors import InfrastructureError
from search.common.machine import num_cores, visible_gpus
from search.common.options import WorkerSpec
from search.common.paths import ROOT, shown
from search.session.passport import hardware_here, refuse_other_code
from search.session.session import Session, baseline_of, check_room, measured, refuse_edited
from search.space.native import build_space
from search.storage.patient import creation_lock
from search.study.limits import IN_BASELINES, figures_summary
from search.study.model import Study
from search.trainers.process import Job, Outcome, run_trainer, trainer_environment
from search.trainers.warm import WarmTrainers
from techniques import catalog

Say = Callable[[str], None]  # told what begins now and takes its time
KEPT = ("val_bpb", "artifact_bytes", "params", "steps", "hash", "device", "torch")
SOMETIMES = ("protocol", "labels", "seen", "code_bytes")  # of them only those that the result has


def gpus_for(study: Study, environ: Mapping[str, str]) -> tuple[str, ...]:
    """`gpus_per_trial` GPUs for each worker ("0,1"); none: trials run on the CPU. ValueError if demanded."""
    device = study.settled("device")
    found = () if device == "cpu" else visible_gpus(environ)
    if device == "cuda" and not found:
        raise ValueError(
            f'{study.name} demands a GPU (device = "cuda"), but this machine shows none. Run it on one that '
            'has, or write device = "auto" under [fixed] of a study with another name.'
        )
    each = study.gpus_per_trial
    if found and len(found) < each:
        raise ValueError(
            f"A trial of {study.name} trains on {each} GPUs, but this machine shows {len(found)}. Run it on "
            "one that has them, or set `gpus_per_trial` in [study] of a study with another name."
        )
    return tuple(",".join(found[i : i + each]) for i in range(0, len(found) - each + 1, each))


def default_workers(gpus: tuple[str, ...]) -> int:
    """A worker for each trial's GPUs, else for each core."""
    return len(gpus) or num_cores()


def nobody(what: str) -> None:
    """Nobody watches."""


def check_corpus(study: Study, *, say: Say = nobody) -> str:
    """The study's data, checked; see check_data."""
    seq_len = max(int(study.settled("train_seq_len")), int(study.settled("eval_seq_len")))
    paths = (str(study.settled(name)) for name in ("data_path", "tokenizer_path"))
    return check_data(*paths, vocab_size=int(study.settled("vocab_size")), seq_len=seq_len, say=say)


def check_data(
    data_path: str, tokenizer_path: str, *, vocab_size: int, seq_len: int, say: Say = nobody
) -> str:
    """Builds the embedded corpus if it is meant and missing; checks any. ValueError, as a trainer's."""
    folder = ROOT / data_path
    tokenizer = ROOT / tokenizer_path
    data = ROOT / "data"
    if folder == data / "datasets" / f"{embedded.NAME}_sp{vocab_size}":
        if not is_complete(folder):
            say("corpus: built once, from the installed packages' documentation; about half a minute of CPU")
        try:
            embedded.ensure(data, f"sp{vocab_size}")
        except OSError as error:
            raise ValueError(
                f"The corpus is built under {data}, but {error.filename or data} says: {error.strerror}. "
                "Free some space or fix the permissions."
            ) from error
    opened = open_dataset(folder, tokenizer_path=tokenizer, vocab_size=vocab_size, seq_len=seq_len)
    return f"{shown(folder)}, {opened.num_train_tokens:,} + {opened.num_val_tokens:,} tokens"


def check_baseline(
    session: Session, spec: WorkerSpec, *, workers: int, gpus: tuple[str, ...], say: Say = nobody
) -> tuple[Session, str]:
    """The study's starting point, measured once under the load of `workers` trials; and what to tell."""
    found = baseline_of(session.optuna_study)
    if found is None:
        times = f"{workers} times at once, as trials will run" if workers > 1 else "once"
        say(f"baseline: {session.trainer.start}, run {times}")
        found = measure(session, spec, workers=workers, gpus=gpus)
    told = f"baseline: val_bpb {found['val_bpb']:.4f}, {figures_summary(found)} "
    told += f"(the slowest of {found['workers']} at once)" if found["workers"] > 1 else "(one run)"
    told += f"; by {found['protocol']!r}: {found['seen']}" if "seen" in found else ""
    return measured(session), told + session.trainer.doubts()


def machine(session: Session, spec: WorkerSpec) -> Session:
    """What `search.py` checks before it starts workers, for one on another machine. ValueError."""
    check_room(session.folders)
    gpus_for(session.study, os.environ)
    if session.trainer.built_in:
        check_corpus(session.study)
    if session.trainer.has_baseline:
        session, _ = check_baseline(session, spec, workers=1, gpus=())
    return session


def worker_command(spec: WorkerSpec) -> list[str]:
    """The process of one worker, which stops when its stdin ends."""
    text = json.dumps(asdict(spec), default=str)
    return [sys.executable, "-m", "search.workers.worker", "--lifeline", f"--spec={text}"]


def read_command(argv: list[str]) -> tuple[WorkerSpec, bool]:
    """(the spec, whether stdin is a lifeline) of a worker's command line."""
    parser = argparse.ArgumentParser(prog="python -m search.workers.worker")
    parser.add_argument("--spec", required=True, help="a WorkerSpec (search/common/options.py) as JSON")
    parser.add_argument("--lifeline", action="store_true", help="stop when stdin ends")
    options = parser.parse_args(argv)
    told = json.loads(options.spec)
    for field in fields(WorkerSpec):
        if str(field.type).startswith("Path") and told[field.name] is not None:
            told[field.name] = Path(told[field.name])
    return WorkerSpec(**told), options.lifeline


def warm_trainers(session: Session, spec: WorkerSpec) -> WarmTrainers | None:
    """What the trainers of these trials are forks of; None: each is a fresh process."""
    forks = spec.fork and session.trainer.built_in and not gpus_for(session.study, os.environ)
    return WarmTrainers() if forks else None


def trainer_job(
    session: Session, spec: WorkerSpec, *, folder: Path, config: Mapping[str, Any], hidden: Set[str]
) -> Job:
    """The trainer of one configuration. `hidden`: variables of the shell that it may not see."""
    threads = int(config.get("num_threads", 0))
    lowered = ("nice", "-n", str(spec.niceness)) if spec.niceness else ()
    return Job(
        folder=folder,
        config=config,
        environment=trainer_environment(os.environ, strip=hidden, num_threads=threads),
        timeout_s=session.study.timeout_seconds,
        command=(*lowered, *session.trainer.command()),
    )


def measure(session: Session, spec: WorkerSpec, *, workers: int, gpus: Sequence[str] = ()) -> dict[str, Any]:
    """Runs the baseline (free techniques off, free settings at the preset's) and stores it; or ValueError."""
    stopping = threading.Event()
    trainer = session.trainer
    config = trainer.complete(build_space(session.study, catalog.metadata()).config({}))
    config["num_threads"] = config.get("num_threads") or 1
    hidden = trainer.hidden()
    warm = None if gpus else warm_trainers(session, spec)

    def one(i: int) -> Outcome:
        folder = session.folders.runs / f"baseline-{i}"
        job = trainer_job(session, spec, folder=folder, config=config, hidden=hidden)
        job = dataclasses.replace(job, warm=warm)
        if gpus:
            own = {**job.environment, "CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]}
            job = dataclasses.replace(job, environment=own)
        return run_trainer(job, on_report=lambda record, reports: None, stop=stopping.is_set)

    try:
        with ThreadPoolExecutor(workers) as pool:
            copies = [pool.submit(one, i) for i in range(workers)]
            try:
                outcomes = [copy.result() for copy in copies]
            finally:  # Ctrl-C, or one that failed: nobody waits for the others to end by themselves
                stopping.set()
                if warm:
                    warm.close()
    except InfrastructureError as error:
        raise ValueError(
            f"A study's starting point must run before anything is varied, but its process broke down: "
            f"{error}. Its last words are in {session.folders.runs}/baseline-*/console.log; run the command "
            "again."
        ) from error
    results = [o.result for o in outcomes if o.kind == "finished" and o.result]
    if len(results) < workers:
        reason = next(o.reason for o in outcomes if o.kind != "finished")
        raise ValueError(
            f"A study's starting point must run before anything is varied, but {trainer.start} with the "
            f"study's [fixed] settings ended: {reason}. Fix that first."
        )
    found = {key: results[0][key] for key in KEPT} | {"workers": workers}
    found |= {key: results[0][key] for key in SOMETIMES if key in results[0]}
    found |= {limit.figure: max(float(r[limit.figure]) for r in results) for limit in IN_BASELINES}
    slowest = max(results, key=lambda r: float(r["train_seconds"]))
    stages: Mapping[str, Mapping[str, Any]] = slowest.get("stage_seconds") or {}
    found[STAGE_SECONDS] = {name: clocks.get("timed") for name, clocks in stages.items()}
    dealt = {"CUDA_VISIBLE_DEVICES": gpus[0]} if gpus else {}
    found[HARDWARE] = hardware_here(session.study, num_threads=spec.threads, environ={**os.environ, **dealt})
    with creation_lock(session.url):  # two sessions may have measured at once: the first one counts
        refuse_edited(session)  # until a baseline is there, another session may begin with a mended file,
        if not spec.mixed:  # or script
            refuse_other_code(session)
        earlier = baseline_of(session.optuna_study)
        if earlier is None:
            session.optuna_study.set_user_attr(BASELINE, found)
    return earlier or found
