"""Runner.run(arm, seed) -> Run: one fresh trainer process, or what an earlier one left; the folder of a
question, which is written down before its first run.

    HOME/runs/KIND/QUESTION/plan.json              arms, seeds, code, data, machine
    HOME/runs/KIND/QUESTION/ARM/SEED/outcome.json  how a run ended, beside what its trainer left
"""

import contextlib
import fcntl
import json
import math
import os
import queue
import shutil
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from claims.arms import Arm
from claims.sequential import LAST
from search.common.attributes import BPB_CHAIN
from search.common.errors import InfrastructureError, Interrupted
from search.common.machine import num_cores
from search.stage_cache.addresses import DataId, Ground, machine_id
from search.stage_cache.reuse import Reuse
from search.study.model import fresh_seeds
from search.trainers.files import code_hash, read_result
from search.trainers.process import Job, Outcome, TrainerCrashed, run_trainer, trainer_environment
from search.trainers.trainer import TRAINER, trainer_command
from search.trainers.warm import WarmTrainers
from techniques import catalog
from techniques.config import Config, digest
from techniques.unanswered import environment_names

FIGURES = (
    "val_bpb",
    "val_loss",
    "artifact_bytes",
    "train_seconds",
    "eval_seconds",
    "true_seconds",
    "peak_memory_bytes",
)
OUTCOME = "outcome.json"
PLAN = "plan.json"
WEIGHTS = "weights.pt"


@dataclass(frozen=True)
class Run:
    """How one run ended."""

    seed: int
    reason: str = ""  # why it has no score; "": it has one
    figures: Mapping[str, float] | None = None
    # the BPB chain: [link, bits per byte] from the last weights to the scorer
    chain: list[list[Any]] = field(default_factory=list[list[Any]])

    @property
    def bpb(self) -> float:
        return self.of("val_bpb")

    def of(self, figure: str) -> float:
        """nan where it is not known."""
        found = (self.figures or {}).get(figure)
        return math.nan if found is None else float(found)


@dataclass(frozen=True)
class Place:
    """What the runs of a question stand on."""

    home: Path
    ranks: int = 1  # processes of a run
    gpus: tuple[str, ...] = ()  # CUDA_VISIBLE_DEVICES of each run at once; none: the CPU
    workers: int = 1  # runs at once
    timeout_s: float = 3600.0
    trainer: Path | None = None  # another script of the trainer's contract
    fork: bool = True  # on a CPU from a process that has imported the trainer

    @property
    def threads(self) -> int:
        """Of a trainer whose settings do not say; on a CPU one is measured best."""
        return max(1, num_cores() // self.workers) if self.gpus else 1

    def ground(self) -> Ground:
        return Ground(self.ranks, self.threads, os.environ)

    def command(self) -> tuple[str, ...]:
        return (
            trainer_command(self.ranks) if self.trainer is None else (TRAINER[0], str(self.trainer.resolve()))
        )


def question_of(arms: Sequence[Arm], place: Place) -> dict[str, Any]:
    """All that the answer depends on: settings and code of each arm, data, machine."""
    base = arms[0].resolved()
    known = DataId(place.home / "runs" / ".cache" / "data.json")
    try:
        data = sorted({known.of(arm.resolved()) for arm in arms})
    except OSError:  # a trainer of one's own may need none
        data = list[str]()
    script = {"script": code_hash([place.trainer])} if place.trainer else {}
    kept = {"arms": {arm.label: arm.identity() for arm in arms}, "data": data, **script}
    return {**kept, "machine": machine_id(base, place.ground())}


@dataclass(frozen=True)
class Plan:
    """A question, and the seeds that answer it: fixed before the first run."""

    folder: Path
    hash: str
    seeds: tuple[int, ...]  # LAST of them; a comparison uses the first ones
    question: Mapping[str, Any]


def register(kind: str, arms: Sequence[Arm], place: Place, *, used: set[int]) -> Plan:
    """Writes plan.json, or finds the same question's. `used`: seeds that are not fresh. ValueError where two
    arms have one name."""
    labels = [arm.label for arm in arms]
    if twice := next((label for label in labels if labels.count(label) > 1), ""):
        raise ValueError(
            f"Each configuration of a question has a name of its own, but two are {twice!r}. Rename its file."
        )
    question = question_of(arms, place)
    name = digest(question)
    folder = place.home / "runs" / kind / name
    if (folder / PLAN).exists():
        seeds = json.loads((folder / PLAN).read_text(encoding="utf-8"))["seeds"]
    else:
        seeds = fresh_seeds(name, LAST, used | {arm.own_seed for arm in arms})
        written = {"hash": name, "registered": time.strftime("%Y-%m-%d %H:%M:%S %z"), "seeds": seeds}
        write_json(folder / PLAN, written | {"question": question})
    return Plan(folder, name, tuple(seeds), question)


def write_json(path: Path, value: object) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    beside.replace(path)


def number(value: float) -> float | None:
    """As JSON has it."""
    return value if math.isfinite(value) else None


@contextmanager
def alone(folder: Path) -> Generator[None]:
    """One process answers a question at a time. ValueError for a second one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"One process answers a question at a time, but another one is at {folder}. Wait for it."
            ) from None
        yield


class Runner:
    """Runs of a plan; safe in several threads."""

    def __init__(self, plan: Plan, arms: Sequence[Arm], place: Place, reuse: Reuse | None):
        self.plan = plan
        self.arms = {arm.label: arm for arm in arms}
        self.place = place
        self.reuse = reuse
        self.hidden = environment_names(catalog.metadata(), os.environ)
        self.free: queue.SimpleQueue[str] = queue.SimpleQueue()
        for gpu in place.gpus:
            self.free.put(gpu)
        self.warm = WarmTrainers() if place.fork and not place.gpus else None
        self.stopping = threading.Event()
        self.copying = threading.Lock()

    def close(self) -> None:
        """No more runs for now."""
        if self.warm:
            self.warm.close()

    def folder(self, label: str, seed: int) -> Path:
        return self.plan.folder / self.arms[label].folder / str(seed)

    def kept(self, seeds: Sequence[int]) -> dict[str, dict[int, Run]]:
        """What earlier processes left, by arm and seed."""
        names = [one.name for one in fields(Run)]
        found = {
            label: {seed: read_result(self.folder(label, seed) / OUTCOME) for seed in seeds}
            for label in self.arms
        }
        return {
            label: {seed: Run(**{k: one[k] for k in names if k in one}) for seed, one in runs.items() if one}
            for label, runs in found.items()
        }

    def training(self, label: str) -> str:
        """Equal for arms whose runs share their training; the label where nothing is shared."""
        found = self.reuse.addresses(self.arms[label].resolved()) if self.reuse else dict[str, str]()
        return found.get("average", label)

    def run(self, label: str, seed: int) -> Run:
        """Raises Interrupted when told to stop, ValueError for what a person must solve."""
        try:
            outcome = self._tried(label, seed)
        except InfrastructureError as error:
            raise ValueError(
                f"Every run of a comparison must be able to end, but {label} with seed {seed} broke down: "
                f"{error}. Solve that, and run the same command: it goes on."
            ) from error
        if outcome.reason.startswith("refused: "):
            raise ValueError(
                f"The trainer must take what is compared, but of {label} it says: "
                f"{outcome.reason.removeprefix('refused: ')}"
            )
        result = outcome.result if outcome.kind == "finished" else None
        figures = {name: (result or {}).get(name) for name in FIGURES}
        known = {k: float(v) for k, v in figures.items() if v is not None}
        run = Run(seed, outcome.reason, known, (result or {}).get(BPB_CHAIN) or [])
        write_json(self.folder(label, seed) / OUTCOME, asdict(run))
        return run

    def _tried(self, label: str, seed: int) -> Outcome:
        """The run; a trainer that crashes is tried twice."""
        try:
            return self._process(label, seed)
        except TrainerCrashed:
            with contextlib.suppress(TrainerCrashed):
                return self._process(label, seed)
            return Outcome("failed", reason="crashed twice")

    def _process(self, label: str, seed: int) -> Outcome:
        arm = self.arms[label]
        folder = self.folder(label, seed)
        if self.stopping.is_set():
            raise Interrupted("told to stop")
        if self.place.trainer is None and arm.identity() != self.plan.question["arms"][label]:
            raise ValueError(
                "All runs of a comparison are of the same code, but the trainer's files changed under it. "
                "Restore them, or run the same command again: it is another question now."
            )
        config = arm.config(seed)
        resolved = arm.resolved(seed)
        config["num_threads"] = resolved.config.num_threads or (0 if self.place.gpus else 1)
        gpu = self.free.get() if self.place.gpus else ""
        threads = config["num_threads"] or self.place.threads
        environment = trainer_environment(os.environ, strip=self.hidden, num_threads=threads)
        at = self.reuse.addresses(resolved) if self.reuse else dict[str, str]()
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        job = Job(
            folder=folder,
            config=config,
            environment={**environment, "CUDA_VISIBLE_DEVICES": gpu} if gpu else environment,
            timeout_s=self.place.timeout_s,
            command=self.place.command(),
            fill=partial(self._fill, at=at) if self.reuse else None,
            warm=self.warm,
        )
        try:
            return run_trainer(job, on_report=lambda record, reports: None, stop=self.stopping.is_set)
        finally:
            if gpu:
                self.free.put(gpu)
            if self.reuse:
                with self.copying:
                    self.reuse.keep(folder, at)
            (folder / WEIGHTS).unlink(missing_ok=True)

    def _fill(self, folder: Path, at: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
        assert self.reuse is not None
        with self.copying:
            return self.reuse.fill(folder, at)


def timeout_of(configs: Sequence[Config]) -> float:
    """Wall seconds of a run at most, where no study says."""
    return 3.0 * max(config.max_wallclock_seconds for config in configs) + 3600.0
