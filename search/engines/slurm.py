"""Slurm, through submitit: every worker is a job; one that is preempted or out of time is queued again.

Options are submitit's own parameters: `slurm_partition`, `timeout_min`, `cpus_per_task`...; and `cluster`:
"slurm" (default), or "local" for processes of this machine without Slurm. Source: submitit's documentation of
AutoExecutor and checkpointing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit

from search.common.paths import ROOT
from search.engines.base import Ended, Task, run_task

TIMEOUT_MIN = 24 * 60  # of a job, unless an option says otherwise


def make(options: dict[str, Any], folder: Path) -> SlurmEngine:
    """An executor whose logs lie in `folder`. Raises ValueError without Slurm, or for an unknown option."""
    cluster = str(options.pop("cluster", "slurm"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # a job's file holds the database's URL
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**({"timeout_min": TIMEOUT_MIN, "name": "caddie"} | options))
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise ValueError(
            f"--engine slurm submits jobs to cluster {cluster!r}, but submitit says: "
            f"{str(error).splitlines()[0]} Run it where `sbatch` works, and check the --engine-option words."
        ) from None
    return SlurmEngine(executor)


class OneWorker:
    """The job: submitit pickles it, calls it on the node, and asks it for its successor on preemption."""

    def __call__(self, task: Task) -> Ended:
        return run_task(task)

    def checkpoint(self, task: Task) -> submitit.helpers.DelayedSubmission:
        """The same worker again: the study remembers everything else."""
        return submitit.helpers.DelayedSubmission(OneWorker(), task)


class SlurmEngine:
    def __init__(self, executor: submitit.AutoExecutor):
        self.executor = executor
        self.jobs: list[submitit.Job[Ended]] = []

    def submit(self, tasks: Sequence[Task]) -> None:
        if tasks[0].gpus:
            self.executor.update_parameters(gpus_per_node=tasks[0].gpus)
        with self.executor.batch():
            self.jobs = [self.executor.submit(OneWorker(), task) for task in tasks]

    def ended(self) -> list[Ended]:
        done = [job for job in self.jobs if job.done()]
        self.jobs = [job for job in self.jobs if job not in done]
        return [self._result(job) for job in done]

    @staticmethod
    def _result(job: submitit.Job[Ended]) -> Ended:
        error = job.exception()
        if error is None:
            return job.result()
        return Ended(1, f"{str(error).strip().splitlines()[-1]} (job {job.job_id}: {job.state})", "Slurm")

    def alive(self) -> bool:
        return bool(self.jobs)

    def cancel(self) -> None:
        for job in self.jobs:
            job.cancel(check=False)
