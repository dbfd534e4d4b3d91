"""SeedRun, Evidence: what is known of a configuration that is to be submitted, from its runs alone.

A run's log is what its trainer wrote, from the rule of 100 `=` on: Python, settings, steps, sizes, score. In
place of the sources above it stands one line that says which code ran.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claims.race import Results, in_order, mean_sd
from claims.runs import Runner
from readers.log_reader import LogError
from search.study.limits import LIMITS, Limits
from search.trainers.files import read_result
from submission.clean import Clean, reader_of
from submission.significance import Test
from techniques.config import TRAINER_FIELDS, Resolved

RULE = "=" * 100
SIZE = re.compile(r"^(Total submission size \S+): \d+ bytes$", re.M)
SHOWN_LIMITS = tuple(limit for limit in LIMITS if not limit.optional)


@dataclass(frozen=True)
class SeedRun:
    """One run of the configuration under the trainer that audits it."""

    seed: int
    reason: str  # why it has no score; "": it has one
    result: Mapping[str, Any]  # result.json
    log: str = ""  # in the challenge's format

    def of(self, name: str) -> float:
        """A figure of the result; nan where there is none."""
        found = self.result.get(name)
        return float(found) if isinstance(found, int | float) else math.nan


@dataclass(frozen=True)
class About:
    """What the runs stand on, and who submits."""

    name: str
    author: str
    github_id: str
    date: str  # ISO
    track: str  # a key of TRACKS
    preset: str  # "" for none
    where: str  # where the configuration is from, in words
    plan: str  # hash of the question
    limits: Limits
    hardware: str
    ranks: int
    threads: int  # of a process; 0: the trainer's own choice


@dataclass(frozen=True)
class Evidence:
    """All that the texts of a submission say."""

    about: About
    resolved: Resolved  # of the first seed, which the script holds
    runs: Sequence[SeedRun]
    script: bytes
    test: Test | None = None
    clean: Sequence[Clean] = ()

    @property
    def scored(self) -> list[SeedRun]:
        return [run for run in self.runs if not run.reason]

    @property
    def first(self) -> Mapping[str, Any]:
        """The first result that has a score; empty where none has."""
        return next((run.result for run in self.scored), dict[str, Any]())

    def mean_sd(self, name: str) -> tuple[float, float]:
        """Over the runs that have a score."""
        return mean_sd([run.of(name) for run in self.scored])

    def bytes_of(self, run: SeedRun) -> int:
        """Script of the folder + packed model of the run."""
        return len(self.script) + int(run.result.get("model_bytes") or 0)

    def figures(self, run: SeedRun) -> dict[str, Any]:
        """A result's figures, its bytes as the folder has them."""
        return {**run.result, "artifact_bytes": self.bytes_of(run)}

    def log_of(self, run: SeedRun) -> str:
        """Of the clean process, where it ran this seed; else the run's own, which counted a script with its
        own seed in it: then the folder's sizes stand behind it."""
        if found := next((one.log for one in self.clean if one.seed == run.seed), ""):
            return found
        size = SIZE.search(run.log)
        if size is None or run.result.get("code_bytes") == len(self.script):
            return run.log
        return (
            f"{run.log.rstrip()}\nsizes of this folder, whose script holds another seed:\n"
            f"Code size: {len(self.script)} bytes\n{size[1]}: {self.bytes_of(run)} bytes\n"
        )

    @property
    def data_name(self) -> str:
        return Path(self.resolved.config.data_path).name

    @property
    def settings(self) -> dict[str, Any]:
        """The trainer's settings that differ from its defaults; no place of this machine, no seed."""
        apart = ("seed", "data_path", "tokenizer_path", "out_dir", "run_id", "num_reports", "resume")
        own = {n: self.resolved.values[n] for n in TRAINER_FIELDS if n not in apart}
        return {n: v for n, v in own.items() if v != TRAINER_FIELDS[n].default}

    @property
    def exact(self) -> bool:
        """Whether a second run must give the same bits: a CPU, and no clock that ends the training."""
        on_cpu = self.first.get("device_type") == "cpu"
        return on_cpu and self.resolved.config.max_wallclock_seconds == 0.0


def read_runs(runner: Runner, label: str, results: Results, seeds: Sequence[int]) -> list[SeedRun]:
    """What the runs of an arm left behind, in the order of the seeds."""
    found = list[SeedRun]()
    for run in in_order(results, label, seeds):
        folder = runner.folder(label, run.seed)
        result = read_result(folder / "result.json") or {}
        lost = "" if result else f"{folder.name}/result.json is gone; delete that folder and ask again"
        path = folder / "train.log"
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        found.append(SeedRun(run.seed, run.reason or lost, result, standard_log(text, result)))
    return found


def standard_log(text: str, result: Mapping[str, Any]) -> str:
    """The challenge's lines of a trainer's log; "" where it has no rule."""
    _, rule, rest = text.partition(f"\n{RULE}\n")
    head = (
        f"code: the sources of this folder's train_gpt.py before packing (hash {result.get('code_hash')}); "
        "the script gives the same losses, artifact and score"
    )
    return f"{head}\n{RULE}\n{rest}" if rule else ""


def misread(log: str, result: Mapping[str, Any]) -> str:
    """Why the log does not tell these figures; "" where it does."""
    reader = reader_of(log)
    try:
        _, bpb, loss = reader.value()
        told = {"val_bpb": bpb, "val_loss": loss, "artifact_bytes": reader.artifact_bytes() or 0}
    except LogError as error:
        return str(error)
    wrong = [n for n, value in told.items() if abs(value - float(result[n])) > 6e-9]
    return "; ".join(f"{name} {told[name]} instead of {result[name]}" for name in wrong)
