"""What `compare` and `ablate` answered in a home, as they left it in runs/KIND/QUESTION/answer.json."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.common.console import counted
from search.report.effects import Effect

NEWEST = 20  # answers of compare that are told
Stamp = tuple[float, str]  # when it was written, and where
AWAY = "taken away"


@dataclass(frozen=True)
class Compared:
    """One arm against a base, on fresh seeds."""

    arm: str
    base: str
    sentence: str
    mean: float | None  # bits per byte, the arm's less the base's
    low: float | None
    high: float | None
    seeds: int

    @property
    def effect(self) -> Effect | None:
        """For a figure; None without a finite interval."""
        if self.mean is None or self.low is None or self.high is None:
            return None
        return Effect(f"{self.arm} against {self.base}", self.mean, self.low, self.high, math.nan, self.seeds)


@dataclass(frozen=True)
class Change:
    """What one technique, or a pair beyond the sum of both, does; with it less without it."""

    name: str
    change: str  # "taken away", "added"; "" of a pair
    mean: float | None  # bits per byte, negative is better
    low: float | None
    high: float | None
    verdict: str
    p: float | None
    seeds: int  # that both arms of it ran; 0: not told
    seconds: float | None
    bytes: float | None


@dataclass(frozen=True)
class Ablation:
    """A configuration taken apart."""

    label: str
    trial: int | None
    bpb: float | None  # mean over the seeds
    seeds: int
    changes: tuple[Change, ...]
    pairs: tuple[Change, ...]
    chain: tuple[tuple[str, float, float | None], ...]  # (stage, mean, sd), bits per byte
    sentences: tuple[str, ...]

    @property
    def away(self) -> tuple[Change, ...]:
        """Those of its own techniques whose effect is known, the largest first."""
        known = [one for one in self.changes if one.change == AWAY and one.mean is not None]
        return tuple(sorted(known, key=lambda one: -abs(one.mean or 0.0)))

    @property
    def seeds_text(self) -> str:
        """6 seeds each; or 6 seeds, each change on 4 to 6 of them."""
        each = [one.seeds for one in (*self.changes, *self.pairs) if one.seeds]
        if not each or min(each) == self.seeds:
            return f"{counted(self.seeds, 'seed')} each"
        some = f"{min(each)} to {max(each)}" if max(each) > min(each) else f"{min(each)}"
        return f"{counted(self.seeds, 'seed')}, each change on {some} of them"


def newest_answers(home: Path) -> list[tuple[Stamp, Path]]:
    """Of compare and ablate, the newest first."""
    found: list[tuple[Stamp, Path]] = []
    for kind in ("compare", "ablate"):
        for path in (home / "runs" / kind).glob("*/answer.json"):
            try:
                found.append(((path.stat().st_mtime, str(path)), path))
            except OSError:
                continue  # it went away
    return sorted(found, reverse=True)


def read_answers(home: Path, study: str, best: int | None) -> tuple[tuple[Compared, ...], Ablation | None]:
    """What was compared in this home, and the newest ablation of the study: of its best trial where there is
    one. What cannot be read is left out."""
    compared: list[Compared] = []
    taken: list[Ablation] = []
    for _, path in newest_answers(home):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            if path.parent.parent.name == "ablate":
                taken += [ablation_of(facts)] if facts["study"] == study else []
            elif len(compared) < NEWEST:
                compared += [compared_of(one) for one in facts["answers"]]
        except (OSError, AttributeError, KeyError, TypeError, ValueError):
            continue
    of_best = [one for one in taken if one.trial == best]
    return tuple(compared[:NEWEST]), next(iter([*of_best, *taken]), None)


def compared_of(one: Mapping[str, Any]) -> Compared:
    numbers = {name: number(one.get(name)) for name in ("mean", "low", "high")}
    return Compared(
        arm=str(one["arm"]),
        base=str(one["base"]),
        sentence=str(one["sentence"]),
        seeds=int(one["pairs"]),
        **numbers,
    )


def ablation_of(facts: Mapping[str, Any]) -> Ablation:
    score: Mapping[str, Any] = facts.get("score") or {}
    chain = [
        (str(x["stage"]), mean, number(x.get("sd")))
        for x in facts.get("chain") or ()
        if (mean := number(x["mean"])) is not None
    ]
    bpb = number(score.get("mean"))
    trial = facts.get("trial")
    return Ablation(
        label=f"#{trial}" if trial is not None else str(facts.get("label") or "configuration"),
        trial=None if trial is None else int(trial),
        bpb=bpb if bpb is not None else chain[-1][1] if chain else None,
        seeds=len(facts["seeds"]),
        changes=tuple(change_of(one, whole_name(one)) for one in facts["effects"]),
        pairs=tuple(change_of(one, names(one)) for one in facts.get("pairs") or ()),
        chain=tuple(chain),
        sentences=tuple(str(text) for text in facts.get("sentences") or ()),
    )


def change_of(one: Mapping[str, Any], name: str) -> Change:
    told = {key: number(one.get(key)) for key in ("mean", "low", "high", "p", "seconds", "bytes")}
    seeds = int(one.get("pairs") or 0)
    change = str(one.get("change") or "")
    return Change(name=name, change=change, verdict=str(one["verdict"]), seeds=seeds, **told)


def whole_name(one: Mapping[str, Any]) -> str:
    """`gptq with awq_lite`: all whose effect it is."""
    also: Sequence[str] = one.get("also") or ()
    return f"{one['technique']} with {' and '.join(also)}" if also else str(one["technique"])


def names(pair: Mapping[str, Any]) -> str:
    both: Sequence[str] = pair["techniques"]
    return " × ".join(map(str, both))


def number(value: object) -> float | None:
    """null, and what is no finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
