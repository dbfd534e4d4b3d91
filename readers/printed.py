"""log_patterns(lines) -> Patterns: regular expressions for the lines that a script prints about itself,
drafted from its f-strings, where they are not the challenge's. A running figure is no score."""

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from readers.literals import HOLE
from readers.log_reader import RUNNING

NUMBER = r"[-+.\w]*\w"
BEST = re.compile(r"(?i)\b(?:min(?:imum)?|max(?:imum)?|best|target|baseline|lowest)\b")
VALIDATION = r"(?:val(?:id(?:ation)?)?|eval|test|dev)"
# what stands before a value, and the group that it is (readers/patterns.py); the first that fits
BEFORE = (
    ("bpb", re.compile(r"(?i)(?:\bbpb|bits[ _]per[ _]byte|_bpb)\W*$")),
    ("loss", re.compile(rf"(?i)(?:^|\W){VALIDATION}[ _/-]*(?:loss|nll|ce)\W*$")),
    ("train_loss", re.compile(r"(?i)(?:^|[\W_])loss\W*$")),
    ("total", re.compile(r"^\s*/\s*$")),
    ("step", re.compile(r"(?i)(?:^|\W)(?:step|iter|iteration|it)\W*$")),
    (
        "train_",
        re.compile(r"(?i)(?:train(?:ing)?|total|elapsed)(?:[ _]training)?[ _]*time\W*$|\belapsed\W*$"),
    ),
)
UNIT = re.compile(r"^\s?(ms|s|sec|seconds|m|min|minutes)\b")
SPELT = {"ms": "ms", "s": "s", "sec": "s", "seconds": "s", "m": "min", "min": "min", "minutes": "min"}


@dataclass
class Patterns:
    """What [trainer] gets."""

    score: list[str] = field(default_factory=list[str])
    progress: list[str] = field(default_factory=list[str])
    has_total: bool = False  # the number of steps is printed

    @property
    def in_nats(self) -> bool:
        return bool(self.score) and "(?P<bpb>" not in self.score[0]


def log_patterns(lines: Iterable[str]) -> Patterns:
    """From lines whose values are HOLE. Bits per byte are taken before a loss."""
    known = list[tuple[str, set[str]]]()
    running = set[str]()
    for line in lines:
        text, groups = pattern_of(line)
        known += [(text, groups)] if text else []
        if "step" not in groups and RUNNING.search(line.replace(HOLE, "1")):
            running.add(text)
    patterns = Patterns()
    for metric in ("bpb", "loss"):
        scores = [text for text, groups in known if metric in groups and text not in running]
        if scores:
            patterns.score = list(dict.fromkeys(scores))
            break
    if patterns.score:
        told = {"total", "train_loss", "train_s", "train_ms", "train_min"}
        progress = [(x, g) for x, g in known if "step" in g and (x in patterns.score or told & g)]
        progress = [(x, g) for x, g in progress if x in patterns.score or not {"bpb", "loss"} & g]
        patterns.progress = list(dict.fromkeys(t for t, _ in progress))
        patterns.has_total = any("total" in g for _, g in progress)
    return patterns


def pattern_of(line: str) -> tuple[str, set[str]]:
    """(regular expression, its groups) of one printed line; ("", {}) where no value is known."""
    parts = line.split(HOLE)
    if BEST.search(line) or len(parts) < 2:
        return "", set()
    names = list[str]()
    for before, after in itertools.pairwise(parts):
        name = next((n for n, told in BEFORE if told.search(before)), "")
        if not names and after.strip() == "/" and not re.search(r"\w", before):  # a line begins with i/N
            name = "step"
        if name == "total" and (not names or names[-1] != "step"):
            name = ""
        if name == "train_":
            unit = UNIT.match(after)
            name = f"train_{SPELT[unit[1]]}" if unit else ""
        names.append("" if name in names else name)
    told = [k for k, name in enumerate(names) if name]
    if not told:
        return "", set()
    text = ""
    for k in range(told[0], told[-1] + 1):
        text += _escaped(parts[k]) + (f"(?P<{names[k]}>{_digits(names[k])})" if names[k] else r"\S*?")
    unit = UNIT.match(parts[told[-1] + 1])
    return text + (unit[1] if unit and names[told[-1]].startswith("train_") else ""), {n for n in names if n}


def _digits(name: str) -> str:
    return r"\d+" if name in ("step", "total") else NUMBER


def _escaped(text: str) -> str:
    return r"\s+".join(re.escape(part) for part in re.split(r"\s+", text.replace("'", ".")))
