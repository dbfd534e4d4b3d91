"""The processes that a WorkerSpec describes: a worker, by both ends of its command line, and its trainers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from search.common.options import WorkerSpec
from search.study.model import Study
from search.trainers.process import Job, trainer_environment
from search.trainers.trainer import command_for


def worker_command(spec: WorkerSpec) -> list[str]:
    """The process of one worker, which stops when its stdin ends."""
    return [sys.executable, "-m", "search.workers.worker", "--lifeline", f"--spec={spec.to_json()}"]


def read_command(argv: list[str]) -> tuple[WorkerSpec, bool]:
    """(the spec, whether stdin is a lifeline) of a worker's command line."""
    parser = argparse.ArgumentParser(prog="python -m search.workers.worker")
    parser.add_argument("--spec", required=True, help="a WorkerSpec (search/common/options.py) as JSON")
    parser.add_argument("--lifeline", action="store_true", help="stop when stdin ends")
    options = parser.parse_args(argv)
    return WorkerSpec.from_json(options.spec), options.lifeline


def trainer_job(
    study: Study, spec: WorkerSpec, *, folder: Path, config: Mapping[str, Any], strip: Set[str]
) -> Job:
    """The trainer of one configuration. `strip`: variables of the shell that it may not see."""
    threads = int(config.get("num_threads", 0))
    lowered = ("nice", "-n", str(spec.niceness)) if spec.niceness else ()
    return Job(
        folder=folder,
        config=config,
        environment=trainer_environment(os.environ, strip=strip, num_threads=threads),
        timeout_s=study.timeout_seconds,
        command=(*lowered, *command_for(study, spec.trainer)),
    )
