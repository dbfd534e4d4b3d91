"""greedy(console, asked, candidates=...) -> Path: forward selection as record holders do it by hand.

Each round adds each candidate to what stands, on fresh seeds that all arms of the round share; the best one
that clearly helps is kept, until none does. A round shares the level evenly among its candidates. A step's
effect is a winner's and therefore too good; the last line holds the end against the start on seeds that chose
nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.markup import escape

from claims.ablation.ablate import Start, start_of
from claims.ablation.changes import Change, added, findings_of, that_fit, wanted
from claims.ablation.tables import signed
from claims.answers import Answer, Rules, answer, p_text, sentence
from claims.arms import Arm
from claims.compare import Asked, check_seeds, interval, new_table, place_of, print_where, run_all, say
from claims.race import Course, Results
from claims.runs import number, register, write_json
from claims.schedule import Clock, Schedule
from claims.sequential import LEVEL
from search.study.model import Study
from techniques.config import digest

CANDIDATES = 6  # of the study's likeliest, where nobody names any
LEFT = {
    "hurts": "hurts",
    "same": "makes no difference",
    "undecided": "shows no evidence",
    "fails": "fails",
    "base fails": "cannot be told",
}


@dataclass(frozen=True)
class Round:
    """What stands, and each candidate added to it."""

    base: Arm
    changes: Sequence[Change]
    rules: Rules
    seeds: Sequence[int] = ()

    @property
    def arms(self) -> list[Arm]:
        return [self.base, *(change.arm for change in self.changes)]

    def answers(self, results: Results) -> list[Answer]:
        return [answer(results, c.arm.label, self.base.label, self.seeds, self.rules) for c in self.changes]

    def best(self, results: Results) -> Answer | None:
        """Of those that clearly help and keep the limits, the best mean."""
        helping = [one for one in self.answers(results) if one.kind == "helps" and not one.over[one.arm]]
        return min(helping, key=lambda one: one.verdict.mean, default=None)

    def behind(self, results: Results, label: str, leader: Answer) -> bool:
        """Whether an arm is worse than the leader for certain."""
        return label != leader.arm and (
            answer(results, label, leader.arm, self.seeds, self.rules).kind == "hurts"
        )

    def settled(self, results: Results) -> set[str]:
        done = {one.arm for one in self.answers(results) if one.kind != "undecided"}
        if leader := self.best(results):
            done |= {c.arm.label for c in self.changes if self.behind(results, c.arm.label, leader)}
        return done | ({self.base.label} if len(done) == len(self.changes) else set())

    def more(self, results: Results) -> dict[str, tuple[int, int]]:
        done = self.settled(results)
        left = [one for one in self.answers(results) if one.arm not in done]
        return {one.arm: (one.verdict.pairs, one.verdict.more) for one in left}


@dataclass
class Path:
    """The rounds, and the end against the start."""

    start: Arm
    steps: list[tuple[Change, Answer, Rules]] = field(default_factory=list[tuple[Change, Answer, Rules]])
    last: list[Answer] = field(default_factory=list[Answer])  # of the round in which nothing helped
    claim: Answer | None = None
    used: set[int] = field(default_factory=set[int])  # seeds that are not fresh
    plans: list[str] = field(default_factory=list[str])

    @property
    def end(self) -> Arm:
        return self.steps[-1][0].arm if self.steps else self.start


@dataclass(frozen=True)
class Ground:
    """What all rounds share."""

    console: Console
    asked: Asked
    study: Study | None
    clock: Clock

    def rules(self, questions: int) -> Rules:
        limits = self.study.limits if self.study else None
        return Rules(self.asked.within, LEVEL / questions, limits)

    def run(self, round_: Round, path: Path) -> tuple[Round, Results]:
        """A round on seeds of its own."""
        place = place_of(round_.arms, self.asked, self.study)
        plan = register("greedy", round_.arms, place, used=path.used)
        round_ = replace(round_, seeds=plan.seeds[: self.asked.seeds])
        names = ", ".join(change.technique for change in round_.changes)
        print_where(self.console, f"{names} added to {round_.base.label}", plan, len(round_.seeds), place)
        schedule = Schedule(round_.base.label, round_.seeds, round_.more, self.clock)
        course = Course(round_.seeds, round_.settled, schedule)
        results = run_all(self.console, plan, round_.arms, place, course)
        path.used |= set(plan.seeds)
        path.plans.append(plan.hash)
        return round_, results


def greedy(console: Console, asked: Asked, *, candidates: str, minutes: float = math.inf) -> Path:
    """Raises ValueError for what a person must solve; KeyboardInterrupt when it was stopped."""
    check_seeds(asked.seeds)
    start = start_of(asked)
    names = names_of(start, asked, candidates)
    ground = Ground(console, asked, start.study, Clock(60.0 * minutes))
    path = Path(start.base, used=start.used)
    while left := that_fit(path.end, names):
        say(console, f"\nround {len(path.steps) + 1}")
        if not select(ground, path, added(path.end, left)):
            break
    if path.steps:
        say(console, "\nthe end against the start, on seeds that chose nothing")
        end = Change(", ".join(change.name for change, _, _ in path.steps), "added", path.end)
        round_, results = ground.run(Round(path.start, [end], ground.rules(1)), path)
        (path.claim,) = round_.answers(results)
    print_path(console, path, ground.rules(1))
    if ground.clock.stopped:
        say(console, ground.clock.sentence)
    folder = asked.home / "runs" / "greedy" / digest([path.plans, names])
    write_json(folder / "answer.json", start.facts | facts_of_path(path, ground.rules(1)))
    return path


def select(ground: Ground, path: Path, changes: Sequence[Change]) -> bool:
    """One round; whether it kept anything."""
    rules = ground.rules(len(changes))
    round_, results = ground.run(Round(path.end, changes, rules), path)
    path.last = round_.answers(results)
    if (best := round_.best(results)) is None:
        return False
    chosen = next(change for change in changes if change.arm.label == best.arm)
    arm = replace(chosen.arm, label=f"{path.end.label} + {chosen.name}")
    path.steps.append((replace(chosen, arm=arm), best, rules))
    say(ground.console, f"kept: {chosen.name}")
    return True


def names_of(start: Start, asked: Asked, text: str) -> list[str]:
    """The candidates. ValueError without any, and for one that is unknown, on, or does not fit."""
    asks_study = not text and (start.session or asked.study)
    found = findings_of(start.session or asked.session()) if asks_study else None
    names = wanted(start.base, text, found, most=CANDIDATES)
    if not names:
        raise ValueError(
            f"A selection needs candidates that fit {start.base.label}, but none was named and no study of "
            "20 trials finds any likely to help. Give --candidates NAME,NAME or --candidates all."
        )
    added(start.base, names)
    return names


def print_path(console: Console, path: Path, rules: Rules) -> None:
    """The steps as a table, then what stands behind them."""
    table = new_table("kept", "effect", "interval", "p", "seeds")
    for k, (change, one, level) in enumerate(path.steps, start=1):
        table.add_row(escape(f"{k} {change.name}"), *cells_of(one, level))
    if path.claim:
        table.add_row("the end against the start", *cells_of(path.claim, rules))
    say(console, "")
    if path.steps:
        console.print(table)
        say(console, "effect: BPB less that of the round before; a step's is a winner's, and too good")
        say(console, "")
    if path.claim:
        say(console, sentence(path.claim, rules))
    left = [f"{one.arm.removeprefix('with ')} {LEFT[one.kind]}" for one in path.last if one.kind != "helps"]
    if left:
        say(console, f"Last round: {', '.join(left)}.")
    if not path.steps:
        say(console, f"Nothing that was tried clearly helps {path.start.label}.")


def cells_of(one: Answer, rules: Rules) -> tuple[str, ...]:
    v = one.verdict
    return signed(v.mean, "+.4f"), interval(v.low, v.high), p_text(rules.p_of(v)), str(v.pairs)


def facts_of_path(path: Path, rules: Rules) -> dict[str, Any]:
    """For a machine."""

    def facts_of(one: Answer, level: Rules) -> dict[str, Any]:
        v = one.verdict
        figures = {name: number(getattr(v, name)) for name in ("mean", "low", "high", "sd")}
        return figures | {"p": level.p_of(v), "verdict": one.kind, "pairs": v.pairs}

    steps = [
        {"technique": change.technique, "also": list(change.also)} | facts_of(one, level)
        for change, one, level in path.steps
    ]
    return {
        "start": path.start.label,
        "configuration": path.end.settings(),
        "path": steps,
        "claim": facts_of(path.claim, rules) if path.claim else None,
        "plans": path.plans,
    }
