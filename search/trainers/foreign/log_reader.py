"""LogReader(rules).feed(line, at_s): what a run has told in the challenge's standard log lines.

    step:<i>/<N> train_loss:<f> train_time:<ms>ms          training; nan or inf ends the run
    step:<i>/<N> val_loss:<f> val_bpb:<f> train_time:...   validation; becomes early reports for the pruner
    <label> val_loss:<f> val_bpb:<f> eval_time:<ms>ms      a score line; which one counts is a rule, see below
    Total submission size <codec>: <n> bytes               the artifact; `Code size: <n> bytes` its code

The score is never "the last line that matches": of `Rules.score`'s labels the first that was printed counts.
Without a rule it must be exactly one of KNOWN_SCORES (`X` and `X_exact` are one score). A label
printed with different values is an error too, unless `occurrence` says first or last.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EXACT = "_exact"
# What published trainers call a final score, from what is added last to what every script prints.
KNOWN_SCORES = (
    "quantized_ttt_phased",
    "legal_ttt",
    "final_int6_sliding_window",
    "final_int6_roundtrip",
    "final_int8_zlib_roundtrip",
)
MAX_LABELS = 64  # of one run; more is noise
MAX_LABEL = 80  # characters
SAME_POINT = 0.02  # a validation this close to a grid point of the budget is taken for it
PREFIX = re.compile(r"^\[(?:rank|default)?\d+\]:\s*")  # what torchrun puts before a rank's lines
RULE = re.compile(r"={100,}")  # ends the source code at the head of a log
STEP = re.compile(r"step:(\d+)/(\d+)\s")
PAIR = re.compile(r"(?<!\S)([A-Za-z_]\w*):\s*(\S+)")
NUMBER = re.compile(r"([-+]?(?:\d[\d,]*(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+|nan|inf))(ms|s)?", re.IGNORECASE)
SIZE = re.compile(r"(Total submission size|Serialized model|Code size)(?: (\S+))?: ([\d,]+) bytes")
PEAK = re.compile(r"peak memory allocated: (\d+) MiB")
Report = dict[str, Any]


@dataclass(frozen=True)
class Rules:
    """How the lines of one study's trainer are read."""

    score: tuple[str, ...] = ()  # labels, the first that was printed counts; empty: the only known one
    occurrence: str = "only"  # of a label that is printed several times: only, first, last
    size: str | None = None  # the codec behind "Total submission size"; None: the only one
    eval_lines: tuple[str, ...] = ()  # labels whose eval_time is summed; empty: all but diagnostics
    num_reports: int = 8  # grid of the budget on which early scores are told
    wallclock_s: float = 0.0  # the run's training budget, s; 0: what the log says
    warmdown_iters: float = 0.0  # steps of falling learning rate at the end; 0: not known
    warmdown_frac: float = 0.0  # or its share of the budget


@dataclass
class Score:
    """One label's lines."""

    first: float
    last: float
    loss: float
    at_s: float  # of the last one, since the process began
    differ: bool = False


class LogError(ValueError):
    """The log does not say what a result needs."""


@dataclass
class LogReader:
    """Fed line by line; memory is bounded whatever is printed."""

    rules: Rules
    failure: str = ""  # why the run need not go on
    steps: int = 0
    train_loss: float | None = None
    train_s: float = 0.0  # printed train_time
    first_step_at_s: float | None = None
    last_step_at_s: float | None = None
    scores: dict[str, Score] = field(default_factory=dict[str, Score])
    eval_s: dict[str, float] = field(default_factory=dict[str, float])
    total_eval_s: float | None = None
    sizes: dict[str, int] = field(default_factory=dict[str, int])  # codec ("" without one) -> bytes
    code_bytes: int | None = None
    params: int | None = None
    peak_memory_bytes: int | None = None
    wallclock_s: float = 0.0
    _point: tuple[float, float, float] | None = None  # progress, val_bpb, lr_scale of the last validation
    _told: float = 0.0  # grid points up to here are done with

    def __post_init__(self) -> None:
        self.wallclock_s = self.rules.wallclock_s

    def feed(self, line: str, at_s: float) -> list[Report]:
        """Reads one line, printed `at_s` seconds after the start; returns the early reports it completes."""
        line = PREFIX.sub("", line.strip())
        if RULE.fullmatch(line) and self.train_loss is None:
            self.scores.clear()  # what came so far was source code, however much it looks like a log
            self.eval_s.clear()
            self.sizes.clear()
        if step := STEP.match(line + " "):
            return self._step(int(step[1]), int(step[2]), numbers(line), at_s)
        if size := SIZE.match(line):
            self._size(size[1], size[2] or "", int(size[3].replace(",", "")))
        elif peak := PEAK.match(line):
            self.peak_memory_bytes = int(peak[1]) * 2**20
        elif ":" in line:
            self._told_of(line, numbers(line), at_s)
        return []

    def _told_of(self, line: str, found: Mapping[str, float], at_s: float) -> None:
        """A line of pairs that is no step: a score, or one of the facts at the head and at the end."""
        if "val_bpb" in found:
            label = label_of(line)
            if label in self.scores or len(self.scores) < MAX_LABELS:
                self._score(label, found, at_s)
        elif line.startswith("model_params:") and "model_params" in found:
            self.params = int(found["model_params"])
        elif line.startswith("stopping_early:"):
            self.train_s = max(self.train_s, found.get("train_time", 0.0))
        elif "total_eval_time" in found:
            self.total_eval_s = found["total_eval_time"]
        elif "max_wallclock_seconds" in found and not self.rules.wallclock_s:
            self.wallclock_s = found["max_wallclock_seconds"]

    def _size(self, what: str, codec: str, count: int) -> None:
        if what == "Code size":
            self.code_bytes = count
        elif what == "Total submission size" and (codec in self.sizes or len(self.sizes) < MAX_LABELS):
            self.sizes[codec] = count

    def _score(self, label: str, found: Mapping[str, float], at_s: float) -> None:
        value, loss = found["val_bpb"], found.get("val_loss", math.nan)
        if "eval_time" in found:
            self.eval_s[label] = found["eval_time"]
        old = self.scores.get(label, Score(value, value, loss, at_s))
        self.scores[label] = Score(old.first, value, loss, at_s, old.differ or value != old.last)

    def _step(self, step: int, total: int, found: Mapping[str, float], at_s: float) -> list[Report]:
        self.steps = max(self.steps, step)
        self.train_s = max(self.train_s, found.get("train_time", 0.0))
        self.first_step_at_s = at_s if self.first_step_at_s is None else self.first_step_at_s
        self.last_step_at_s = at_s
        for name in ("train_loss", "val_loss", "val_bpb"):
            if name in found and not math.isfinite(found[name]):
                self.failure = f"diverged: {name} is {found[name]} at step {step}"
        if "train_loss" in found:
            self.train_loss = found["train_loss"]
        if self.failure or "val_bpb" not in found:
            return []
        by_steps = step / total if total else 0.0
        by_clock = found.get("train_time", 0.0) / self.wallclock_s if self.wallclock_s else 0.0
        progress = min(1.0, max(by_steps, by_clock))
        point = (progress, found["val_bpb"], self._scale(step, total, progress, found.get("train_time", 0.0)))
        reports = self._on_grid(step, point, at_s)
        self._point = point
        return reports

    def _scale(self, step: int, total: int, progress: float, train_s: float) -> float:
        """Learning-rate scale by the published rule for the warm-down; 1 where the study names none."""
        rules = self.rules
        if rules.warmdown_frac:
            return min(1.0, (1.0 - progress) / rules.warmdown_frac)
        if rules.warmdown_iters:
            left = max(0.0, total - step)
            if self.wallclock_s and step and train_s:
                left = max(0.0, self.wallclock_s - train_s) / (train_s / step)
            return min(1.0, left / rules.warmdown_iters)
        return 1.0

    def _on_grid(self, step: int, point: tuple[float, float, float], at_s: float) -> list[Report]:
        """Reports of grid points since the last validation; interpolated across at most two of them."""
        reports: list[Report] = []
        for k in range(1, self.rules.num_reports):
            at, here = k / self.rules.num_reports, point
            if at <= self._told or at > point[0] + SAME_POINT:
                continue
            self._told = at
            if abs(at - point[0]) > SAME_POINT:
                before = self._point
                near = before is not None and 0.0 < before[0] < at
                if before is None or not near or point[0] - before[0] > 2.0 / self.rules.num_reports:
                    continue
                share = (at - before[0]) / (point[0] - before[0])
                here = (at, *(a + share * (b - a) for a, b in zip(before[1:], point[1:], strict=True)))
            report = {"kind": "report", "step": step, "progress": here[0], "val_bpb": here[1]}
            more = {"lr_scale": here[2], "train_loss": self.train_loss, "elapsed_s": round(at_s, 3)}
            reports.append(report | more)
        return reports

    def value(self) -> tuple[str, float, float]:
        """(label, val_bpb in bits per byte, val_loss in nats per token) of the score; or LogError."""
        label = self._label()
        found = self.scores[label]
        if found.differ and self.rules.occurrence == "only":
            raise LogError(
                f"ambiguous score: {label!r} was printed with different values, {found.first:g} first and "
                f'{found.last:g} last. Set occurrence = "first" or "last" in [trainer]'
            )
        return label, found.first if self.rules.occurrence == "first" else found.last, found.loss

    def _label(self) -> str:
        printed = ", ".join(repr(label) for label in self.scores) or "none"
        if self.rules.score:
            if found := next((label for label in self.rules.score if label in self.scores), None):
                return found
            wanted = ", ".join(map(repr, self.rules.score))
            raise LogError(f"no score: none of {wanted} was printed; lines with a val_bpb: {printed}")
        families = {label.removesuffix(EXACT) for label in self.scores}
        known = [name for name in KNOWN_SCORES if name in families]
        if len(known) > 1:
            raise LogError(
                f"ambiguous score: the run printed {printed}. Name the one that counts: score = [...] in "
                "[trainer]"
            )
        if not known:
            raise LogError(f"no score: lines with a val_bpb: {printed}. Name one: score = [...] in [trainer]")
        return known[0] + EXACT if known[0] + EXACT in self.scores else known[0]

    def artifact_bytes(self) -> int | None:
        """Bytes of the "Total submission size" line that counts; None when none was printed."""
        if self.rules.size is not None:
            return self.sizes.get(self.rules.size)
        packed = {codec: count for codec, count in self.sizes.items() if codec} or self.sizes
        if len(set(packed.values())) > 1:
            names = ", ".join(map(repr, packed))
            raise LogError(f"ambiguous size: sizes of {names} were printed. Name one: size = in [trainer]")
        return next(iter(packed.values()), None)

    def train_seconds(self, end_s: float) -> tuple[float, str]:
        """(timed training in s, where it is from): train_time, the clock of the step lines, else `end_s`.
        The wall's clock, on a CPU too: what another trainer takes of the processor is not known."""
        if self.train_s > 0.0:
            return self.train_s, "train_time"
        if self.first_step_at_s is not None and self.last_step_at_s is not None:
            return self.last_step_at_s - self.first_step_at_s, "clock"
        return end_s, "clock"

    def eval_seconds(self, end_s: float) -> tuple[float, str]:
        """(timed evaluation in s, where it is from): total_eval_time, the eval_time of the lines that the
        rule names, of all but diagnostics, else the clock from the last step line to the score."""
        if self.rules.eval_lines:
            missing = [label for label in self.rules.eval_lines if label not in self.eval_s]
            if missing:
                raise LogError(f"no evaluation time: no eval_time on a line {', '.join(map(repr, missing))}")
            return sum(self.eval_s[label] for label in self.rules.eval_lines), "eval_time"
        if self.total_eval_s is not None:
            return self.total_eval_s, "total_eval_time"
        counted = {k: s for k, s in self.eval_s.items() if not k.lower().startswith("diagnostic")}
        if counted:
            return sum(counted.values()), "eval_time"
        at_s = self.scores[self._label()].at_s if self.scores else end_s
        return max(0.0, at_s - (self.last_step_at_s or 0.0)), "clock"


def label_of(line: str) -> str:
    """The words before the first pair: `final_int6 stride:64 val_bpb:…` has the label `final_int6`."""
    pair = PAIR.search(line)
    words = line[: pair.start()] if pair else line
    return " ".join(words.split())[:MAX_LABEL]


def numbers(line: str) -> dict[str, float]:
    """The `key:number` pairs of a line; a number with ms or s is in seconds."""
    found: dict[str, float] = {}
    for name, text in PAIR.findall(line):
        if number := NUMBER.fullmatch(text):
            value = float(number[1].replace(",", ""))
            found.setdefault(name, value / 1000.0 if (number[2] or "").lower() == "ms" else value)
    return found
