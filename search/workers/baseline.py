"""measure(session, spec, workers) -> the study's own starting point, run before the first trial and kept.

It runs as many copies at once as there will be workers: seconds are those that trials will see. Limits given
in `…_baselines` are multiples of the slowest copy's; the leaderboard shows by how much a trial beats it.
"""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from search.common.attributes import BASELINE
from search.common.errors import InfrastructureError
from search.common.options import WorkerSpec
from search.session.baseline import stored
from search.session.session import Session
from search.space.build import build_space
from search.storage.patient import creation_lock
from search.study.limits import IN_BASELINES
from search.trainers.process import Outcome, run_trainer
from search.workers.spec import trainer_job
from techniques import catalog

KEPT = ("val_bpb", "artifact_bytes", "params", "steps", "hash", "device", "torch")


def measure(
    session: Session, spec: WorkerSpec, *, workers: int, gpus: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Runs the baseline (every free technique off, every free setting at its preset's value) and stores it.

    Raises ValueError when the starting point itself does not run: no trial would."""
    stopping = threading.Event()
    trainer = session.trainer
    config = trainer.complete(build_space(session.study, catalog.metadata()).config({}))
    config["num_threads"] = config.get("num_threads") or 1
    hidden = trainer.hidden()

    def one(i: int) -> Outcome:
        folder = session.folders.runs / f"baseline-{i}"
        job = trainer_job(session, spec, folder=folder, config=config, hidden=hidden)
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
    found = {key: results[0][key] for key in KEPT}
    found |= {limit.figure: max(float(r[limit.figure]) for r in results) for limit in IN_BASELINES}
    found |= {"workers": workers}
    with creation_lock(session.url):  # two sessions may have measured at once: the first one counts
        earlier = stored(session.optuna_study)
        if earlier is None:
            session.optuna_study.set_user_attr(BASELINE, found)
    return earlier or found
