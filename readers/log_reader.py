"""LogReader(rules).feed(line, at_s): what a run has told in the challenge's log lines.

    step:<i>/<N> train_loss:<f> train_time:<ms>ms          training; nan or inf ends the run
    <i>/<N> val_loss: <f> val_bpb: <f>                     validation; becomes early reports for the pruner
    <label> val_loss:<f> val_bpb:<f> eval_time:<ms>ms      a score line; which one counts is a rule, see below
    Total submission size <codec>: <n> bytes               the artifact; `Code size: <n> bytes` its code

`:` and `=` are one, and so are `step:` and nothing before `<i>/<N>`; colours, times and ranks before a line
are skipped. A score line is whatever names a BPB, has no step and is no running figure. With `Rules.score`
the first of its labels that was printed counts, unless a later one is unknown to it; without, the last that
was printed after training, unless another one, printed since the artifact was made, is better.
`Rules.score_pattern` and the like read other logs (readers/patterns.py); a loss in nats can stand for a BPB.
`X` and `X_exact` are one score; diagnostics are none. What competes is an error, never a guess.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from readers import patterns

EXACT = "_exact"
# What published trainers call a final score: known to every rule, also to one that does not list them.
KNOWN_SCORES = (
    "quantized_ttt_phased",
    "legal_ttt",
    "final_int6_sliding_window",
    "final_int6_roundtrip",
    "final_int8_zlib_roundtrip",
)
MAX_LABELS = 64  # of one run; of more, the oldest are forgotten
MAX_LABEL = 80  # characters
MAX_BPB = 64.0  # eight times what a uniform distribution over bytes has: more is no score
SAME_POINT = 0.02  # a validation this close to a grid point of the budget is taken for it
FINE = 10_000  # steps that stand for a run that tells its share alone
SAME_SCORE = 6e-5  # two prints of one score differ by their rounding
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# what stands before a line: torchrun's rank, a process, a time, a logger's level and place, a step's epoch
PREFIX = re.compile(
    r"(?:\[(?:rank|default)?\d+\]:\s*|(?:INFO|DEBUG|WARNING):[\w.]+:\s*|"
    r"(?:\((?=[^()]*pid=\d)[^()]*\)|"
    r"\[?(?:\d{4}-\d\d-\d\d[T ])?\d\d?:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?\]?|\[?\d{9,}(?:\.\d+)?\]?|"
    r"\[\d+(?:\.\d+)?s\]|\[?(?:INFO|DEBUG|WARNING|root|__main__)\]?:?|[\w.<>]{1,80}:[\w.<>]{1,80}:\d+(?= - )|"
    r"\[?(?i:epoch)\s?[:=#]?\s?\d{1,9}(?:\s?/\s?\d{1,9})?\]?[,:]?(?=[\s|]+\[?(?i:step|iter|\d{1,15}/\d))|"
    r"[-|])(?:\s+|$))+"
)
RULE = re.compile(r"={100,}")  # ends the source code at the head of a log
STEP = re.compile(
    r"(?:\[?(?:step|iter(?:ation)?)\s*(?:[:=#]\s*)?(\d{1,15})(?:\s*/\s*(\d{1,15}))?|(\d{1,15})/(\d{1,15}))\]?[:,]?(?=\s|$)",
    re.I,
)
PAIR = re.compile(
    r"(?<![\w.])([A-Za-z_]\w*)\s?[:=]\s*(?:([-+]?(?:\d[\d,]*(?:\.\d*)?(?:e[-+]?\d+)?|\.\d+|nan|inf))"
    r"(ms|s|m|min|h)?|\0)(?![\w.])",
    re.I,
)
UNITS = {"ms": 1e-3, "m": 60.0, "min": 60.0, "h": 3600.0}
ANY_BPB = re.compile(
    r"(?<![a-z\d_])((?:[a-z][a-z\d_]*_)?bpb)\b[^\d\n]{0,24}?([-+]?\d+\.\d+|\bnan\b|\binf\b)", re.I
)
METRIC = re.compile(r"(?i)(?:^|_)(?:loss|bpb|nats)$")
DIAGNOSTIC = re.compile(
    r"(?i)diag|pre.?quant|post.?ema|unquant|(?:^|[^a-z])pre.?ttt|float|^(?:ema|swa|fp32)\b|(?:^|[_ ])raw\b"
)
# a running figure or a difference; and, where it is not called val_bpb, somebody else's number
RUNNING = re.compile(
    r"(?i)\d\s*/\s*\d|\d\s*%|chunk|running|progress|search|sweep|batch|\bstep\W*\d|delta|(?:^|[^a-z])gap|differ|improve|penalty"
)
PART = re.compile(r"(?<![\d/.])(?:(\d{1,12})\s?/\s?(\d{1,12})(?![\d/.])|(\d{1,3}(?:\.\d{1,6})?)\s?%)")
NO_SCORE = re.compile(r"(?i)\bgain|target|\bvs\b|baseline|previous|\bsota|record|best|\best_|probe")
DIGITS = re.compile(r"(?<![A-Za-z_\d])\d[\d.]*")
SIZE = re.compile(
    r"(Total submission|Serialized model|Code size)(?: size)?(?: (\S+))?: (\d[\d,]{0,20}) bytes"
)
TOTAL = re.compile(
    r"(?i)\b(?:total|budget|artifact(?: size)?)[:=]\s*(\d[\d,]{3,20})(?:/\d+)?(?: bytes| \([\d./ ]+Mi?B\))"
)
PEAK = re.compile(r"peak memory allocated: (\d{1,15}) MiB")
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
    score_pattern: tuple[str, ...] = ()  # regular expressions: the only lines that are scores, where given
    progress_pattern: tuple[str, ...] = ()  # and the only validations
    seconds_pattern: tuple[str, ...] = ()
    steps: int = 0  # of the run, where the log does not say


@dataclass
class Score:
    """One label's lines since the last training step."""

    first: float
    last: float
    loss: float
    at_s: float  # of the last one, since the process began
    other: float | None = None  # the latest value that the next one did not repeat; None: all are one
    packed: bool = False  # the artifact had been made

    @property
    def differ(self) -> bool:
        return self.other is not None

    @property
    def possible(self) -> bool:
        return 0.0 < self.last <= MAX_BPB

    def same(self, other: "Score") -> bool:
        return abs(self.last - other.last) <= SAME_SCORE


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
    _reported: float = 0.0  # progress of the last report
    early: int = 0  # reports so far
    earlier: dict[str, float] = field(default_factory=dict[str, float])  # scores before training went on
    under_way: str = ""  # an evaluation with a running figure behind the last score, and how far it is

    def __post_init__(self) -> None:
        self.wallclock_s = self.rules.wallclock_s
        rules = self.rules
        self._patterns = {
            key: patterns.compiled(key, getattr(rules, key)) for key in patterns.NEEDS if getattr(rules, key)
        }
        self._total = float(rules.steps)

    def feed(self, line: str, at_s: float) -> list[Report]:
        """Reads one line, printed `at_s` seconds after the start; returns the early reports it completes."""
        line = ANSI.sub("", line).strip()
        line = line[before.end() :] if (before := PREFIX.match(line)) else line
        if RULE.fullmatch(line) and self.train_loss is None:
            for told in (self.scores, self.eval_s, self.sizes):
                told.clear()  # what came so far was source code, however much it looks like a log
        if self._patterns and (told := self._by_pattern(line, at_s)) is not None:
            return told
        if (step := STEP.match(line)) and (step[1] or "_loss" in line or "bpb" in line):
            return self._step(int(step[1] or step[3]), int(step[2] or step[4] or 0), figures(line), at_s)
        if size := SIZE.search(line):
            self._size(size[1], size[2] or "", int(size[3].replace(",", "")))
        elif total := TOTAL.search(line):
            self._size("Total submission", "", int(total[1].replace(",", "")))
        elif peak := PEAK.match(line):
            self.peak_memory_bytes = int(peak[1]) * 2**20
        elif "score_pattern" not in self._patterns and (scored := scores_of(line)):
            self.under_way = ""
            for label, value in scored:
                again = any(abs(score.last - value) <= SAME_SCORE for score in self.scores.values())
                if not (again and label.lower().endswith("bpb")):  # a summary says again what was said
                    self._score(label, value, figures(line), at_s)
        elif not self._patterns and (part := PART.search(line)) and ANY_BPB.search(line):
            label = line[: part.start()].strip(" :=|,-([")[:MAX_LABEL]
            done = float(part[3]) / 100.0 if part[3] else int(part[1]) / max(1, int(part[2]))
            self.under_way = f"{label!r} at {part[0]}" if done < 1.0 else ""
        elif ":" in line:
            self._told_of(line, figures(line))
        return []

    def _by_pattern(self, line: str, at_s: float) -> list[Report] | None:
        """The early reports of a line that a pattern knows; None for any other line."""
        found = {
            k: told for k, many in self._patterns.items() for p in many if (told := patterns.seen(p, line))
        }
        if not found:
            return None
        reports = list[Report]()
        for key, (told, label) in found.items():
            value = patterns.scored(told)
            if value is not None and not math.isfinite(value):
                name = "val_bpb" if "bpb" in told else "val_loss"
                self.failure = f"diverged: {name} is {value} at step {self.steps}"
            self.train_s = max(self.train_s, told.get("train_s", 0.0))
            self.total_eval_s = told.get("eval_s", self.total_eval_s)
            self.params = int(told["params"]) if "params" in told else self.params
            if "bytes" in told:
                self._size("Total submission", "", int(told["bytes"]))
            self._total = told.get("total", self._total)
            if key == "progress_pattern":
                reports += self._at(told, value, at_s)
            if key == "score_pattern" and value is not None:
                loss = {"val_loss": told["loss"]} if "loss" in told else {}
                self._score(label or ("val_bpb" if "bpb" in told else "val_loss"), value, loss, at_s)
        return reports

    def _at(self, told: Mapping[str, float], value: float | None, at_s: float) -> list[Report]:
        """A line of progress as the challenge's own would say it."""
        total = int(self._total)
        step = int(told.get("step", told.get("fraction", 0.0) * (total or FINE)))
        total = total or (FINE if "fraction" in told and "step" not in told else 0)
        figures = {"train_loss": told["train_loss"]} if "train_loss" in told else {}
        figures |= {} if value is None else {"val_bpb": value}
        if "train_s" in told:
            figures["train_time"] = told["train_s"]
        if "fraction" in told and total == 0:
            total = round(step / told["fraction"]) if told["fraction"] > 0 else 0
        return self._step(step, total, figures, at_s)

    def _told_of(self, line: str, found: Mapping[str, float]) -> None:
        """One of the facts at the head and at the end."""
        if line.startswith("model_params:") and "model_params" in found:
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
            return
        if what == "Total submission" and (codec in self.sizes or len(self.sizes) < MAX_LABELS):
            self.sizes[codec] = count

    def _score(self, label: str, value: float, found: Mapping[str, float], at_s: float) -> None:
        loss = found.get("val_loss", math.nan)
        if time := next((found[n] for n in ("eval_time", "time", "elapsed") if n in found), None):
            self.eval_s.pop(label, None)
            self.eval_s[label] = time
        old = self.scores.pop(label, Score(value, value, loss, at_s))  # the latest stand last
        other = old.last if abs(value - old.last) > SAME_SCORE else old.other
        self.scores[label] = Score(old.first, value, loss, at_s, other, bool(self.sizes))
        for told in (self.scores, self.eval_s):
            if len(told) > MAX_LABELS:
                told.pop(next((k for k in told if not {k, bare(k)} & {*self.rules.score}), label))

    def _step(self, step: int, total: int, found: Mapping[str, float], at_s: float) -> list[Report]:
        """One step; `found` has its train_loss, val_loss, val_bpb and train_time, s."""
        validated = {"val_loss", "val_bpb"} & found.keys() and step >= min(2, self.steps)
        if not validated and "score_pattern" not in self._patterns:  # training goes on: none was final
            self.earlier |= {label: score.last for label, score in self.scores.items()}
            self.earlier = dict([*self.earlier.items()][-MAX_LABELS:])
            self.scores.clear()
            self.eval_s.clear()
            self.under_way = ""
        if step < min(2, self.steps):  # a second run in one log
            self.steps = 0
            self.train_s = 0.0
            self._point = None
            self._told = 0.0
            self._reported = 0.0
            self.sizes.clear()
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
        """Reports of grid points since the last validation, interpolated across at most two of them; a
        validation far from all of them that stands alone is told where it stands."""
        found = list[tuple[float, float, float]]()
        grid = 1.0 / self.rules.num_reports
        before = self._point
        for k in range(1, self.rules.num_reports):
            at = k * grid
            if at <= self._told or at > point[0] + SAME_POINT:
                continue
            self._told = at
            if abs(at - point[0]) <= SAME_POINT:
                found.append(point)
            elif before is not None and 0.0 < before[0] < at and point[0] - before[0] <= 2.0 * grid:
                share = (at - before[0]) / (point[0] - before[0])
                _, bpb, scale = (a + share * (b - a) for a, b in zip(before, point, strict=True))
                found.append((at, bpb, scale))
        if not found and grid <= point[0] - self._reported and point[0] < 1.0 - SAME_POINT:
            found.append(point)
        self._reported = found[-1][0] if found else self._reported
        self.early += len(found)
        more = {"train_loss": self.train_loss, "elapsed_s": round(at_s, 3)}
        told = [{"progress": at, "val_bpb": bpb, "lr_scale": scale} for at, bpb, scale in found]
        return [{"kind": "report", "step": step} | one | more for one in told]

    def value(self) -> tuple[str, float, float]:
        """(label, val_bpb in bits per byte, val_loss in nats per token) of the score; or LogError."""
        label = self._label()
        found = self.scores[label]
        if found.differ and self.rules.occurrence == "only" and "score_pattern" not in self._patterns:
            between = "" if found.other == found.first else f", {found.other:g} between"
            raise LogError(
                f"ambiguous score: {label!r} was printed with different values, {found.first:g} first and "
                f'{found.last:g} last{between}. Set occurrence = "first" or "last" in [trainer]'
            )
        better = self.earlier.get(label, math.inf) < found.last - SAME_SCORE
        if better and self.rules.occurrence != "last":
            raise LogError(
                f"ambiguous score: two runs in one log, {label!r} was {self.earlier[label]:g} and is "
                f'{found.last:g}. Give each a log of its own, or set occurrence = "last" in [trainer]'
            )
        bpb = found.first if self.rules.occurrence == "first" else found.last
        if math.isfinite(bpb) and not found.possible:
            raise LogError(
                f"impossible score: {label!r} says val_bpb {bpb:g}; a BPB is above 0, at most {MAX_BPB:g}"
            )
        return label, bpb, found.loss

    def _label(self) -> str:
        printed = ", ".join(f"{label!r} {score.last:.4f}" for label, score in self.scores.items()) or "none"
        finals = [label for label in self.scores if not DIAGNOSTIC.search(label)]
        if rule := self.rules.score:
            for wanted in rule:
                if found := [k for k in self.scores if wanted in (k, bare(k))]:
                    self._refuse_rivals(wanted, found, finals, printed)
                    return found[-1]
            wanted = ", ".join(map(repr, rule))
            raise LogError(f"no score: none of {wanted} was printed; lines with a val_bpb: {printed}")
        if self.under_way:
            raise LogError(
                f"no score: {self.under_way} is the last that was told of an evaluation, and no score came "
                f"after it; before it: {printed}. Name the one that counts: score = [...] in [trainer]"
            )
        if not finals and not self.scores and self.early:
            raise LogError(
                "no score: only lines with a step tell a val_bpb, and those are early BPB. Print the final "
                "one on a line without a step, or name the line that counts: score_pattern in [trainer]"
            )
        if not finals:
            raise LogError(f"no score: lines with a val_bpb: {printed}. Name one: score = [...] in [trainer]")
        last = self.scores[finals[-1]]
        if not last.possible:
            return finals[-1]
        if last.differ:  # a name that is printed for every stage: the stage's own name, if there is one
            finals = [k for k in finals if k == finals[-1] or not self.scores[k].same(last)] + [
                k for k in finals if not self.scores[k].differ and self.scores[k].same(last)
            ]
            last = self.scores[finals[-1]]
        rivals = [k for k in finals[:-1] if self._rival(self.scores[k], last)]
        if rivals or sweep(finals[-1], finals):
            others = ", ".join(map(repr, rivals)) or "as one of several"
            raise LogError(
                f"ambiguous score: {finals[-1]!r} was printed last, but {others} competes; printed: "
                f"{printed}. Name the one that counts: score = [...] in [trainer]"
            )
        exact = finals[-1].removesuffix(EXACT) + EXACT
        return exact if exact in self.scores and self.scores[exact].same(last) else finals[-1]

    @staticmethod
    def _rival(score: Score, last: Score) -> bool:
        """Better than the last one, although the artifact had been made."""
        return score.possible and score.last < last.last - SAME_SCORE and score.packed >= last.packed

    def _refuse_rivals(self, wanted: str, found: list[str], finals: list[str], printed: str) -> None:
        """LogError when the rule's label stands for several values, or a later one is unknown to the rule."""
        score = self.scores[found[-1]]
        if any(not self.scores[k].same(score) for k in found):
            raise LogError(
                f"ambiguous score: {wanted!r} is {', '.join(map(repr, found))}; printed: {printed}"
            )
        known = {*KNOWN_SCORES, *self.rules.score, *(one.removesuffix(EXACT) for one in self.rules.score)}
        order = [*self.scores]
        later = [k for k in finals if order.index(k) > order.index(found[-1])]
        later = [k for k in later if not {k, bare(k), k.removesuffix(EXACT)} & known]
        if later := [k for k in later if not self.scores[k].same(score)]:
            raise LogError(
                f"ambiguous score: {', '.join(map(repr, later))} came later than {found[-1]!r} and is not in "
                "`score`. Add it there, first where it counts, last where it does not; printed: " + printed
            )

    def artifact_bytes(self) -> int | None:
        """Bytes of the "Total submission size" line that counts; None when none was printed."""
        if self.rules.size is not None:
            return self.sizes.get(self.rules.size)
        packed = {codec: count for codec, count in self.sizes.items() if codec} or self.sizes
        if len(set(packed.values())) > 1:
            names = ", ".join(map(repr, packed))
            raise LogError(f"ambiguous size: sizes of {names} were printed. Name one: size = in [trainer]")
        return next(iter(packed.values()), None)

    def seen(self) -> str:
        """What the log told and what it did not, for the one who reads the first run's."""
        missing = {
            "no steps": self.steps,
            "no early BPB: nothing will be pruned": self.early,
            "no size line: only `files` can tell bytes": self.sizes,
            "no train_time: the clock counts": self.train_s,
            "no eval_time: the clock counts": self.eval_s or self.total_eval_s,
        }
        told = [f"{self.steps:,} steps", f"{self.early} early BPB", f"{len(self.scores)} lines with a BPB"]
        return ", ".join(told) + "".join(f"; {what}" for what, there in missing.items() if not there)

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
    """What stands before the loss and the BPB of a score line: `final_int6 stride:64 val_bpb:…` is
    `final_int6 stride:64`."""
    metric = next((pair for pair in PAIR.finditer(line) if METRIC.search(pair[1])), None)
    return " ".join(line[: metric.start() if metric else None].split()).strip(" :=|,-([")[:MAX_LABEL]


def bare(label: str) -> str:
    """Without its parameters: `final_int6 stride:64` is `final_int6`."""
    pair = PAIR.search(label)
    return label[: pair.start()].strip() if pair else label


def plain(label: str) -> str:
    """What a label shares with those of other runs: no parameters, and `X` for `X_exact`."""
    return bare(label).removesuffix(EXACT)


def scores_of(line: str) -> list[tuple[str, float]]:
    """(label, val_bpb) of a line that names a BPB and is no running figure and no difference. Without a
    val_bpb every other BPB is one, by its name: `Sliding BPB: 1.2` is `Sliding BPB`."""
    if named := next((pair for pair in PAIR.finditer(line) if pair[1] == "val_bpb" and pair[2]), None):
        label = label_of(line)
        return [] if RUNNING.search(label) else [(label, float(named[2].replace(",", "")))]
    if RUNNING.search(label := label_of(line)) or NO_SCORE.search(line):
        return []
    found = [(f"{label} {name}", value) for name, value in ANY_BPB.findall(line)]
    return [(" ".join(k.split())[:MAX_LABEL], float(v)) for k, v in found if not RUNNING.search(k)]


def sweep(label: str, labels: list[str]) -> bool:
    """Whether it is one of three or more that differ in a number alone: none of them is the final one."""
    return sum(DIGITS.sub("#", one) == DIGITS.sub("#", label) for one in labels) > 2


def numbers(line: str) -> dict[str, float]:
    """The `key:number` pairs of a line; a number with a unit of time is in seconds."""
    found: dict[str, float] = {}
    for name, text, unit in PAIR.findall(line):
        if text:
            found.setdefault(name, float(text.replace(",", "")) * UNITS.get(unit.lower(), 1.0))
    return found


def figures(line: str) -> dict[str, float]:
    """Those of them that tell something: a loss that is nan is news, a time or count that is nan is none."""
    return {k: v for k, v in numbers(line).items() if math.isfinite(v) or METRIC.search(k)}
