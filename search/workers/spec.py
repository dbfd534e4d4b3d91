"""The processes that a WorkerSpec describes: a worker, by both ends of its command line, and its trainers."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Set
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from search.common.options import WorkerSpec
from search.session.session import Session
from search.trainers.process import Job, trainer_environment


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
