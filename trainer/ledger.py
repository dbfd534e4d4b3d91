"""Who read which tokens, when: an entry for each stage, reader and split; what the rules forbid is a finding.

Reads are noted where tokens leave the files: training tokens by the loader, validation tokens where an
evaluation opens. Beside that an audit hook of the interpreter sees every shard that is opened or mapped, by
whomever: code that goes to the files itself is found under the stage it ran in. A shard is known by device
and inode, so links, bytes for a path, a path relative to an open folder and a map of a descriptor that was
opened earlier are seen, too. When training or quantising begins, validation shards that are still open or
mapped count as read there. Allowed are: any read while the data are checked, before training; training tokens
while training, and by calibration inside the training budget; validation tokens by a report of the training,
which must leave every weight as it was (sums are compared), and by the scorer. A position whose target was
read with gradients on before its score was written is a finding, too.

A read must lie in a timed span, but for those that LEDGER_UNTIMED names. Quantising is timed by laps: a lap
in which data were read counts whole, another one does not. Once data were read, a lap in which the model runs
counts, too.

Not seen: a reader that keeps tokens from one stage to the next; shards that are opened by no Python code
(torch.from_file, a library of its own, another process), as long as no map of them lasts; a read of a
descriptor that was opened in an earlier stage and is closed before the next begins.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

LEDGER_ALLOWED = {
    ("data", "check"): ("train", "val"),  # shapes, document starts, bytes, overlap; no weight exists yet
    ("train", "build"): ("train",),  # the loader opens its first shard; the model stands
    ("train", "warm-up"): ("train",),
    ("train", "steps"): ("train",),
    ("train", "audit"): ("train",),  # one batch after the last step, without gradient
    ("train", "report"): ("val",),
    ("quantize", "calibration"): ("train",),
}
# Not timed by the rules: nothing is trained or scored by these reads (docs/contracts.md)
LEDGER_UNTIMED = {
    ("data", "check"),
    ("train", "build"),
    ("train", "warm-up"),  # everything that it changes is put back
    ("train", "audit"),
    ("train", "report"),
    ("evaluate", "audit"),  # every score is written
}
HELD_BEFORE = ("train", "quantize")  # stages that must begin without a hand on the validation shards
OPEN_FILES = Path("/proc/self/fd")
MAPS = Path("/proc/self/maps")


class Ledger:
    """The reads of one process. `at` says who reads from now on."""

    def __init__(
        self, seconds: Callable[[], float] = time.perf_counter, settle: Callable[[], None] = lambda: None
    ) -> None:
        """`settle` waits until the device has done what it was given."""
        self.seconds = seconds
        self.settle = settle
        self.stage = "data"
        self.reader = "check"
        self.clock: Callable[[], float] = lambda: 0.0
        self.shards: dict[tuple[int, int], str] = {}  # (device, inode) -> split
        self.watching = False
        self.forget()

    def forget(self) -> None:
        """Another run begins in this process."""
        self.entries: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.faults: list[str] = []
        self.still: tuple[Any, list[float]] | None = None  # a model that may not move, and its sums
        self.scored: Any = None  # tokens of the last evaluation
        self.tokens = (0, "")  # how many the last one had that was compared, and their hash
        self.compared: dict[str, tuple[int, str]] = {}
        self.reads = 0  # of whatever kind
        self.clocks = 0  # timed ones that run
        self.lap_s = 0.0  # of the last lap
        self.calibrated_s = 0.0  # of all laps that read data
        self.lap_began: float | None = None

    def at(
        self, stage: str, reader: str, clock: Callable[[], float] | None = None, *, still: Any = None
    ) -> None:
        """From here on `reader` reads; `clock` tells the timed training seconds, by default the last one. Of
        the model `still` no weight may move before the next reader comes."""
        if self.still is not None and weight_sums(self.still[0]) != self.still[1]:
            self.faults.append(f"{self.stage}: weights moved beside the timed steps, under {self.reader}")
        self.still = None if still is None else (still, weight_sums(still))
        if stage in HELD_BEFORE and (stage, reader) != (self.stage, self.reader) and "val" in self.held():
            self.stage = stage
            self.reader = reader
            self.note("val", 0, 0, opened=True)
        self.stage, self.reader, self.clock = stage, reader, clock or self.clock

    def timing(self, clocks: int) -> None:
        """So many more timed clocks run."""
        self.clocks += clocks

    @contextmanager
    def lap(self, model: Any) -> Iterator[None]:
        """A timed span that counts if data are read in it, or if the model runs in it once data were read:
        they may have been kept."""
        kept = self.calibrated_s > 0.0
        kind = type(model.blocks[0])  # of a copy of the model, too
        hook = register_module_forward_pre_hook(lambda m, _: self._used(type(m) is kind)) if kept else None
        self.settle()
        before = self.reads
        self.lap_began = self.seconds()
        self.timing(1)
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()
            self.settle()
            self.timing(-1)
            self.lap_s = self.seconds() - self.lap_began
            self.lap_began = None
            self.calibrated_s += self.lap_s if self.reads > before else 0.0

    def _used(self, runs: bool) -> None:
        self.reads += runs

    def calibrating(self, timed_s: float) -> None:
        """Calibration reads from here on; training used `timed_s` of the budget."""

        def now() -> float:
            lap_s = 0.0 if self.lap_began is None else self.seconds() - self.lap_began
            return timed_s + self.calibrated_s + lap_s

        self.at("quantize", "calibration", now)

    def note(self, split: str, first: int, count: int, *, opened: bool = False, tokens: Any = None) -> None:
        """Tokens first … first + count - 1 of the split's stream; `same_tokens` compares `tokens`."""
        if tokens is not None:
            self.scored = tokens
        now = self.clock()
        fresh = {"reads": 0, "tokens": 0, "first": first, "end": 0, "from_s": now, "to_s": now, "opened": 0}
        entry = self.entries.setdefault((self.stage, self.reader, split), {**fresh, "untimed": 0})
        entry["opened"] += opened
        entry["untimed"] += not self.clocks
        self.reads += 1
        if not opened:
            entry["reads"] += 1
            entry["tokens"] += count
            entry["first"], entry["end"] = min(entry["first"], first), max(entry["end"], first + count)
            entry["to_s"] = now

    def taken(self, split: str) -> None:
        """A part of what `note` told is handed over only now."""
        entry = self.entries.get((self.stage, self.reader, split))
        if entry is None:
            self.note(split, 0, 0)
        else:
            self.reads += 1
            entry["untimed"] += not self.clocks

    @contextmanager
    def report(self, model: Any) -> Iterator[None]:
        """Validation tokens are read in here for people, and no weight may move."""
        before, sums = (self.stage, self.reader), weight_sums(model)
        if self.stage == "train":
            self.reader = "report"
        try:
            yield
        finally:
            if weight_sums(model) != sums:
                self.faults.append(f"{before[0]}: weights moved while {self.reader} read validation tokens")
            self.stage, self.reader = before

    def same_tokens(self, kind: str) -> None:
        """Scores of this kind are compared with each other: the last one's tokens must be the first one's."""
        found = hashlib.sha256()
        for part in self.scored.split(1 << 20):
            found.update(part.to(torch.int32).numpy())
        self.tokens = (len(self.scored), found.hexdigest()[:16])
        self.scored = None
        first = self.compared.setdefault(kind, self.tokens)
        if first != self.tokens:
            self.faults.append(
                f"{self.stage}: a {kind} scored {self.tokens[0]:,} tokens ({self.tokens[1]}), the first one "
                f"{first[0]:,} ({first[1]})"
            )

    def trained_early(self, count: int) -> None:
        """So many positions were read for training before their score was written."""
        if count:
            self.faults.append(
                f"{self.stage}: {self.reader} trained on {count:,} validation tokens before they were scored"
            )

    def saw_later(self, scorer: str, moved: int, count: int) -> None:
        """Of `count` scores so many moved when every token was replaced whose score comes later."""
        if count:
            self.note("val", 0, count)
        if moved:
            self.faults.append(
                f"{self.stage}: {moved:,} of {count:,} scores of {scorer} moved with tokens behind them"
            )

    # -- the interpreter's own record ----------------------------------------------------------------------

    def watch(self, folder: Path | str) -> None:
        """Every shard of `folder` that is opened from now on is noted; the hook stays with the process."""
        if not self.watching:
            sys.addaudithook(self._seen)
        self.watching = True
        self.shards = {}
        for path in Path(folder).glob("fineweb_*"):
            split = path.name.removeprefix("fineweb_").split("_")[0]
            if split in ("train", "val"):
                found = path.stat()
                self.shards[found.st_dev, found.st_ino] = split

    def _seen(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | bytes):
            self._note_opened(args[0])
            if args[1] is None and not os.path.isabs(args[0]):  # of os.open, which takes a folder beside it
                for folder in self._open_files():
                    self._note_opened(args[0], dir_fd=folder)
        elif event == "mmap.__new__" and args[0] >= 0:
            self._note_opened(args[0])

    def _note_opened(self, path: str | bytes | int, dir_fd: int | None = None) -> None:
        """Once for a map behind its opening, which was noted."""
        with suppress(OSError, ValueError):  # whoever opens it is told
            found = os.stat(path, dir_fd=dir_fd)
            split = self.shards.get((found.st_dev, found.st_ino))
            entry = self.entries.get((self.stage, self.reader, split or ""), {"opened": 0})
            if split and not (isinstance(path, int) and entry["opened"]):
                self.note(split, 0, 0, opened=True)

    def _open_files(self) -> list[int]:
        return [int(name) for name in os.listdir(OPEN_FILES)] if OPEN_FILES.is_dir() else []

    def held(self) -> set[str]:
        """Splits of which a shard is open or mapped in this process now. {} where there is no /proc."""
        if not (self.shards and MAPS.exists()):
            return set()
        mapped = {line.split(maxsplit=5)[-1] for line in MAPS.read_text().splitlines() if "/" in line}
        found: set[str] = set()
        for place in (*mapped, *self._open_files()):
            with suppress(OSError, ValueError):
                there = os.stat(place)
                found.add(self.shards.get((there.st_dev, there.st_ino), ""))
        return found

    # -- what it tells -------------------------------------------------------------------------------------

    def summary(self) -> list[dict[str, Any]]:
        """One object an entry, in the order of the first read: stage, reader, split, reads, tokens, first and
        end token, timed seconds of the first and last read, shards opened."""
        return [
            {"stage": s, "reader": r, "split": split, **entry}
            for (s, r, split), entry in self.entries.items()
        ]

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return {"reads": self.summary(), "faults": list(self.faults)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The reads of stages that an earlier process finished."""
        self.faults = [*state["faults"]]
        for told in state["reads"]:
            entry = dict(told)
            key = (entry.pop("stage"), entry.pop("reader"), entry.pop("split"))
            self.entries.setdefault(key, entry)

    def findings(self, budget_s: float = 0.0) -> list[str]:
        """What the rules forbid; `budget_s`: the training budget in timed seconds, 0: it is steps."""
        found = list(self.faults)
        for (stage, reader, split), e in self.entries.items():
            allowed = ("val",) if stage == "evaluate" else LEDGER_ALLOWED.get((stage, reader), ())
            name = {"train": "training", "val": "validation"}[split]
            what = f"{e['tokens']:,} {name} tokens" if e["reads"] else f"a {name} shard"
            if split not in allowed:
                found.append(f"{stage}: {reader} read {what} that it may not read there")
            elif e.get("untimed") and (stage, reader) not in LEDGER_UNTIMED:
                found.append(f"{stage}: {reader} read {what} while no timed clock ran")
            elif budget_s and stage == "quantize" and e["to_s"] > budget_s:
                found.append(
                    f"{stage}: {reader} read training tokens at {e['to_s']:.2f} s of a training budget of "
                    f"{budget_s:g} s"
                )
        return found


def weight_sums(model: Any) -> list[float]:
    """Σ p and Σ |p| of every parameter: other sums, other weights."""
    with torch.no_grad():
        whole = (p.double() for p in model.parameters())
        parts = [s for p in whole for s in (p.sum(), p.abs().sum())]
    return torch.stack(parts).tolist()
