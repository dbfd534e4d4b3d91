"""The bench that every check works on: a tiny corpus, a tiny trainer, and whole runs of it in this process.

Nothing here knows a technique by name: a technique enters as a class and its `smoke` settings.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import train_gpt
from corpus import dataset, export
from corpus.text.documents import Split
from techniques.base import Technique
from techniques.config import Resolved, resolve
from trainer.audit import Audit
from trainer.seams import Seams

VOCAB_SIZE = 260  # bytes and four specials: no tokenizer to train
SEQ_LEN = 64
SHARD_TOKENS = 10_000  # several training shards: a data order may tell them apart
BOS = 1
SETTINGS: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "num_layers": 2,
    "model_dim": 64,
    "num_heads": 4,
    "num_kv_heads": 2,
    "train_seq_len": SEQ_LEN,
    "train_batch_tokens": 256,
    "micro_batches": 2,
    "iterations": 12,
    "warmup_steps": 1,
    "warmdown_iters": 6,
    "max_wallclock_seconds": 0.0,
    "quantize_min_numel": 1024,
    "val_batch_size": 512,
    "val_tokens": 512,
    "val_loss_every": 0,
    "train_log_every": 1,
    "compute_dtype": "float32",
    "compile": "off",
}

# What a technique's code may raise without taking the suite down: it becomes the reason of a failed check.
# Errors of libraries (zlib's, a codec's) have no class in common but this one.
CRASHES = (Exception,)


class Violation(Exception):
    """A law of the suite does not hold; the text is the reason, in one line."""


class NotApplicable(Exception):
    """The check has nothing to look at here; the text says why."""


class QuietLog:
    """Stands where the trainer's Log stands and keeps its metrics."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.reports: list[dict[str, Any]] = []

    def __call__(self, line: str, *, screen: bool = True) -> None:
        pass

    def metrics(self, **values: Any) -> None:
        if values["kind"] == "train":
            self.losses.append(values["train_loss"])
        elif values["kind"] == "report":
            self.reports.append(values)


@dataclass
class Finished:
    """One run from data to score, with what it left at each stage."""

    resolved: Resolved
    trainer: train_gpt.Trainer
    weights: dict[str, Tensor]
    losses: list[float]
    gradients: dict[str, float]  # parameter -> largest |gradient| of all steps; absent: none came
    reports: list[dict[str, Any]] = field(default_factory=list)
    packed: list[train_gpt.Packed] = field(default_factory=list)
    artifact: bytes = b""
    score: train_gpt.Score | None = None
    findings: list[str] = field(default_factory=list)  # of the ledger: reads that the rules forbid

    @property
    def seams(self) -> Seams:
        return self.trainer.seams

    @property
    def audit(self) -> Audit:
        return self.seams.audit


def write_corpus(root: Path, *, other_val: bool = False) -> Path:
    """A small deterministic dataset of byte tokens: sentences from a fixed grammar, in short documents. With
    `other_val` the training documents are the same and the validation documents are not."""
    rng = random.Random(7)
    words = [
        "the",
        "small",
        "old",
        "model",
        "reads",
        "a",
        "line",
        "of",
        "text",
        "and",
        "writes",
        "bits",
        "again",
    ]

    def document() -> str:
        return ". ".join(" ".join(rng.choices(words, k=rng.randint(3, 9))) for _ in range(rng.randint(2, 6)))

    split = Split(val=[document() for _ in range(40)], train=[document() for _ in range(250)])
    if other_val:
        split = Split(val=[document() for _ in range(40)], train=split.train)
    target = export.Target(root, "conformance", vocab_size=VOCAB_SIZE, shard_tokens=SHARD_TOKENS)
    export.export_dataset(target, split, source={"kind": "text", "what": "conformance"})
    return target.folder


def smoke_settings(
    cls: type[Technique], known: Mapping[str, type[Technique]], changes: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """The flat settings that turn a technique and all that it requires on."""
    flat: dict[str, Any] = {}
    for name in cls.requires:
        flat |= smoke_settings(known[name], known)
    flat |= {f"{cls.name}.{k}": v for k, v in {**cls.smoke, **changes}.items()}
    return {**flat, cls.name: True}


class Lab:
    """The corpus, the device, and the baseline that every technique is held against."""

    def __init__(self, folder: Path, device: str = "cpu", inductor: bool = False):
        self.folder, self.device, self.inductor = folder, device, inductor
        self.settings = {**SETTINGS, "data_path": str(folder), "device": device}
        self.open()
        self.world = train_gpt.World(self.resolve({}, {}).config)
        self.world.ledger.watch(folder)

    def open(self) -> None:
        """The data, as a run opens them: whoever kept something of an earlier opening has this one's."""
        self.data: Any = dataset.open_dataset(self.folder, vocab_size=VOCAB_SIZE, seq_len=SEQ_LEN)

    @functools.cached_property
    def other_val(self) -> Lab:
        """A bench on the same training shards, with other validation shards."""
        self._other = tempfile.TemporaryDirectory()
        return Lab(write_corpus(Path(self._other.name), other_val=True), self.device)

    def resolve(
        self, settings: Mapping[str, Any], known: Mapping[str, type[Technique]], **trainer: Any
    ) -> Resolved:
        """The bench's settings stand as a preset, so that a technique may override one of them."""
        return resolve({"preset": {**self.settings, **trainer}, "file": settings}, known)

    def build(self, resolved: Resolved) -> train_gpt.GPT:
        return train_gpt.build_model(resolved, self.world.device)

    def ids(self, rows: int, length: int, *, vocab_size: int = VOCAB_SIZE, seed: int = 5) -> Tensor:
        """Random tokens [rows, length] with a document's start here and there."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(2, vocab_size, (rows, length), generator=generator)
        ids[torch.rand(rows, length, generator=generator) < 0.06] = BOS
        return ids.to(self.world.device)

    def train(
        self,
        resolved: Resolved,
        backend: Callable[..., Any] | str | None = None,
        watch: Callable[[train_gpt.Trainer], None] | None = None,
    ) -> Finished:
        """The train stage (and average), its gradients watched. `backend` compiles the training graph;
        `watch` gets the trainer before its first step."""
        log, seams = QuietLog(), Seams(resolved)
        self.world.ledger.forget()
        trainer = train_gpt.Trainer(seams, self.world, self.data, log)  # type: ignore[arg-type]
        gradients = watch_gradients(trainer.model)
        if backend is not None:
            torch._dynamo.reset()
            compiled = torch.compile(trainer.model, backend=backend, fullgraph=True, dynamic=False)
            trainer.compiled = compiled  # type: ignore[assignment]
        if watch is not None:
            watch(trainer)
        trained = trainer.run()
        return Finished(resolved, trainer, trained.weights, log.losses, gradients(), log.reports)

    def finish(self, run: Finished) -> Finished:
        """Stages quantize, pack and evaluate."""
        run.packed, run.artifact = self.export(run)
        plain = train_gpt.pack(run.packed, run.resolved.identity(), train_gpt.ZlibCodec())
        run.seams.filled("codec", len(plain) != len(run.artifact))
        run.score = self.evaluate(run, run.seams)
        run.findings = self.world.ledger.findings()
        return run

    def export(self, run: Finished) -> tuple[list[train_gpt.Packed], bytes]:
        """Quantise and pack the trained weights; calibration batches start at the same token every time."""
        run.trainer.loader = run.trainer.open_loader()
        self.world.ledger.at("quantize", "rounding")
        batches = train_gpt.calibration(run.trainer)
        packed, _ = train_gpt.quantize(run.weights, run.trainer.model, run.seams, batches)
        artifact = train_gpt.pack(packed, run.resolved.identity(), run.seams.codec())
        return packed, self.world.from_first(artifact)

    def evaluate(self, run: Finished, seams: Seams | None = None) -> train_gpt.Score:
        seams = seams or Seams(run.resolved)
        return train_gpt.evaluate(run.artifact, seams, self.world, self.data)[0]

    def step_time_ratio(self, run: Finished) -> float:
        """A training step's time over the baseline's, in turns; on a CPU in processor seconds, so that the
        machine's other work does not count."""
        clock = time.process_time if self.device == "cpu" else time.perf_counter
        seconds: dict[int, list[float]] = {0: [], 1: []}
        for _ in range(4):
            for which, trainer in enumerate((self.baseline.trainer, run.trainer)):
                self.world.synchronize()
                start = clock()
                trainer.train_step(train_gpt.Moment(0, 0.0, trainer.config))
                if trainer.averager is not None:
                    trainer.averager.update(trainer.model, trainer.scale)
                self.world.synchronize()
                seconds[which].append(clock() - start)
        return min(seconds[1]) / min(seconds[0])

    @functools.cached_property
    def baseline(self) -> Finished:
        return self.finish(self.train(self.resolve({}, {})))

    @functools.cached_property
    def golden(self) -> list[float]:
        """The first losses with everything off, taken before any technique was built in this process."""
        return self.train(self.resolve({}, {}, **SHORT)).losses


# Its last step's learning rates are halved: what waits for the warm-down comes on.
SHORT: dict[str, Any] = {"iterations": 3, "warmdown_iters": 2, "warmup_steps": 0, "val_tokens": SEQ_LEN}


def watch_gradients(model: nn.Module) -> Callable[[], dict[str, float]]:
    """From now on the largest |gradient| of every parameter is kept; not-a-number stays not-a-number."""
    largest: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        def hook(p: Tensor) -> None:
            assert p.grad is not None
            seen = p.grad.detach().abs().max()
            largest[name] = torch.maximum(largest[name], seen) if name in largest else seen

        return hook

    for name, p in model.named_parameters():
        p.register_post_accumulate_grad_hook(keep(name))
    return lambda: {name: float(value) for name, value in largest.items()}


def hash_of(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def executed(files: set[str]) -> Iterator[None]:
    """Every file whose functions are called in here, but for what makes the script that is weighed."""
    before = sys.gettrace()
    make_script = train_gpt.submitted_script

    def unwatched(resolved: Resolved) -> bytes:
        watching = sys.gettrace()
        sys.settrace(None)
        try:
            return make_script(resolved)
        finally:
            sys.settrace(watching)

    train_gpt.submitted_script = unwatched
    sys.settrace(lambda frame, _event, _arg: files.add(frame.f_code.co_filename))
    try:
        yield
    finally:
        sys.settrace(before)
        train_gpt.submitted_script = make_script


@torch.no_grad()
def perturb(model: nn.Module, *, only: Iterator[str] | set[str] | None = None) -> None:
    """Move parameters off their initial values; a parameter's noise depends on its name alone."""
    chosen = None if only is None else set(only)
    for name, p in model.named_parameters():
        if chosen is None or name in chosen:
            generator = torch.Generator().manual_seed(train_gpt.seam_seed(7, name))
            p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p.device))
