"""Who read which tokens, when: an entry for each stage, reader and split; what the rules forbid is a finding.

Reads are noted where tokens leave the files: training tokens by the loader, validation tokens where an
evaluation opens. Beside that an audit hook of the interpreter sees every shard that is opened, by whomever:
code that goes to the files itself is found under the stage it ran in. Allowed are: any read while the data
are checked, before training; training tokens while training, and by calibration inside the training budget;
validation tokens by a report of the training, which must leave every weight as it was (sums are compared),
and by the scorer. A position whose target was read with gradients on before its score was written is a
finding, too. Not seen: a reader that keeps tokens from one stage to the next, or that hides from both.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

LEDGER_ALLOWED = {
    ("data", "check"): ("train", "val"),  # shapes, document starts, bytes, overlap; no weight exists yet
    ("train", "build"): ("train",),  # the loader opens its first shard
    ("train", "warm-up"): ("train",),
    ("train", "steps"): ("train",),
    ("train", "audit"): ("train",),  # one batch after the last step, without gradient
    ("train", "report"): ("val",),
    ("quantize", "calibration"): ("train",),
}


class Ledger:
    """The reads of one process. `at` says who reads from now on."""

    def __init__(self) -> None:
        self.stage, self.reader = "data", "check"
        self.clock: Callable[[], float] = lambda: 0.0
        self.entries: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.faults: list[str] = []
        self.tokens = (0, "")  # how many the last evaluation had, and their hash
        self.compared: dict[str, tuple[int, str]] = {}
        self.folder = ""

    def forget(self) -> None:
        """Another run begins in this process."""
        self.entries, self.faults, self.compared = {}, [], {}

    def at(self, stage: str, reader: str, clock: Callable[[], float] | None = None) -> None:
        """From here on `reader` reads; `clock` tells the timed training seconds, by default the last one."""
        self.stage, self.reader, self.clock = stage, reader, clock or self.clock

    def calibrating(self, timed_s: float) -> None:
        """Calibration begins when `timed_s` of the training budget are used; its own seconds count on."""
        start = time.perf_counter()
        self.at("quantize", "calibration", lambda: timed_s + time.perf_counter() - start)

    def note(self, split: str, first: int, count: int, *, opened: bool = False, tokens: Any = None) -> None:
        """Tokens first … first + count - 1 of the split's stream; `same_tokens` compares `tokens`."""
        if tokens is not None:
            self.tokens = (count, hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:16])
        now = self.clock()
        fresh = {"reads": 0, "tokens": 0, "first": first, "end": 0, "from_s": now, "to_s": now, "opened": 0}
        entry = self.entries.setdefault((self.stage, self.reader, split), fresh)
        entry["opened"] += opened
        if not opened:
            entry["reads"] += 1
            entry["tokens"] += count
            entry["first"], entry["end"] = min(entry["first"], first), max(entry["end"], first + count)
            entry["to_s"] = now

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

    def saw_later(self, moved: int, count: int) -> None:
        """Of `count` scores so many moved when every token was replaced whose score comes later."""
        before, self.reader = self.reader, f"{self.reader}, a sample again"
        if count:
            self.note("val", 0, count)
        self.reader = before
        if moved:
            self.faults.append(
                f"{self.stage}: {moved:,} of {count:,} scores of {self.reader} moved with tokens behind them"
            )

    # -- the interpreter's own record ----------------------------------------------------------------------

    def watch(self, folder: Path | str) -> None:
        """Every shard of `folder` that is opened from now on is noted; the hook stays with the process."""
        if not self.folder:
            sys.addaudithook(self._opened)
        self.folder = str(Path(folder).resolve())

    def _opened(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and self.folder and isinstance(args[0], str | Path):
            path = Path(args[0])
            split = path.name.removeprefix("fineweb_").split("_")[0]
            if split in ("train", "val") and str(path.resolve().parent) == self.folder:
                self.note(split, 0, 0, opened=True)

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
            if split not in allowed:
                name = {"train": "training", "val": "validation"}[split]
                what = f"{e['tokens']:,} {name} tokens" if e["reads"] else f"a {name} shard"
                found.append(f"{stage}: {reader} read {what} that it may not read there")
            elif budget_s and stage == "quantize" and e["to_s"] > budget_s:
                found.append(
                    f"{stage}: {reader} read training tokens at {e['to_s']:.2f} s of a training budget of "
                    f"{budget_s:g} s"
                )
        return found


def weight_sums(model: Any) -> list[float]:
    """Σ p and Σ |p| of every parameter: other sums, other weights."""
    with torch.no_grad():
        parts = [s for p in model.parameters() for s in (p.double().sum(), p.double().abs().sum())]
    return torch.stack(parts).tolist()
