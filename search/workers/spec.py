"""Order: what every worker of a session is told, wherever it runs; both ends of a worker's command line.

`Order(...).command(index)` writes it, for the processes of this machine (search/engines/local.py) and for
those of a cluster (search/engines/cluster.py) alike; `parse(argv)` reads it in the worker. The database's
URL is never part of it: process lists show command lines.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from search.stage_cache.reuse import add_arguments


@dataclass(frozen=True)
class Order:
    """The same for all workers of a session. Paths are absolute."""

    study: Path
    home: Path
    target: int  # finished trials in the whole study
    threads: int = 1  # of a trainer whose study does not say
    trainer: Path | None = None  # another trainer of the same contract, or a foreign study's script
    sampler: str = ""  # tpe or structured; empty: as the study says
    mixed: bool = False  # other code and other hardware may join
    cache: tuple[
        str, ...
    ] = ()  # options of the stage cache, `worker_options` of search/stage_cache/reuse.py; (): none

    def command(self, index: int, *, prepare: bool = False) -> list[str]:
        """The process of one worker. `prepare`: on a machine that nobody looked at before."""
        words = [
            sys.executable,
            "-m",
            "search.workers.worker",
            "--lifeline",
            *(["--prepare"] if prepare else []),
        ]
        words += [f"--study={self.study}", f"--home={self.home}", f"--target={self.target}"]
        words += [f"--index={index}", f"--threads={self.threads}"]
        words += [f"--trainer={self.trainer}"] if self.trainer else []
        words += [f"--sampler={self.sampler}"] if self.sampler else []
        words += ["--mixed"] if self.mixed else []
        return [*words, *self.cache]


def parse(argv: list[str]) -> argparse.Namespace:
    """A worker's options."""
    parser = argparse.ArgumentParser(prog="python -m search.workers.worker")
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--target", type=int, required=True)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--trainer", type=Path)
    parser.add_argument("--sampler", default="", help="tpe or structured; empty: as the study says")
    parser.add_argument("--mixed", action="store_true", help="other code and hardware may join")
    add_arguments(parser)
    parser.add_argument("--prepare", action="store_true", help="corpus and baseline first, if missing")
    parser.add_argument("--lifeline", action="store_true", help="stop when stdin ends")
    return parser.parse_args(argv)
