"""ask(console, wish, ...) -> Question: the submitted configuration and what it must be better than, on seeds
that were written down before they ran.

Runs that `confirm` or `compare` made of the same configurations (settings, code, data, machine) count: the
question whose runs are the most advanced goes on. p is then times the number of configurations that it raced.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from claims.answers import BYTES, text_notes
from claims.arms import Arm, OpenSession, arm_of_source, distinct
from claims.compare import Asked, place_of, say, teller
from claims.race import Results, in_order, loss_of, nats, pairs, race
from claims.runs import OUTCOME, PLAN, Place, Plan, Runner, question_of, register
from claims.sequential import FIRST, LAST
from search.common.attributes import CONFIG
from search.common.console import counted
from search.common.paths import ROOT, shown
from search.report.trial import shortcoming
from search.session.session import Session
from submission.evidence import SeedRun
from submission.significance import FEWEST, Test, rule_p
from techniques.config import digest

KINDS = ("submit", "confirm", "compare")  # of questions whose runs count
PUBLISHED = "published:"  # before a record's name in --against
FIGURES = ROOT / "studies" / "published.json"
EARLY = "looked_at_three_seeds"
HALVED = (
    "p is twice the smaller one of Student's t at three seeds and of `confirm`'s test from the fourth on."
)
RACED = "It is {} times as large again, because so many configurations were raced on these seeds."


@dataclass(frozen=True)
class Wish:
    """What the command line said."""

    source: str  # a trial's number, a preset, a file
    name: str
    author: str
    github_id: str = ""
    track: str = "record"
    seeds: int = 3
    to: Path = Path("records")
    against: str = ""
    workers: int | None = None
    home: Path = Path()
    session: OpenSession = lambda: _no_session()

    @property
    def study_session(self) -> Session | None:
        """Where a trial is named."""
        return self.session() if self.source.isdecimal() or self.against.isdecimal() else None


def _no_session() -> Session:
    raise ValueError("A trial is one of a study. Give its --study.")


@dataclass(frozen=True)
class Reference:
    """What the submission must be better than: a configuration that runs here, or a figure."""

    label: str
    arm: Arm | None = None
    bpb: float = math.nan
    note: str = ""
    tokenizer: str = ""  # of a figure, where it is known


def reference_of(wish: Wish) -> Reference | None:
    """None where nothing is named. ValueError for what is none."""
    given = wish.against.strip()
    if not given:
        return None
    if given.startswith(PUBLISHED):
        return published(given.removeprefix(PUBLISHED))
    if re.fullmatch(r"\d*\.\d+", given):
        note = (
            f"The record's val_bpb {given} was given as a number: how and where it was measured is not known "
            "here. It is taken for exact, in nats at the bytes per token of these runs."
        )
        return Reference(f"the record ({given} BPB)", bpb=float(given), note=note)
    arm = arm_of_source(given, wish.session)
    return Reference(arm.label, arm)


def published(name: str) -> Reference:
    """A record's own figure. ValueError for one that is not known."""
    told: list[dict[str, Any]] = json.loads(FIGURES.read_text(encoding="utf-8"))["result"]
    plain = [one for one in told if "settings" not in one]
    known = {one["preset"]: one for one in reversed(plain)}  # the first is the record's own, then repeats
    if name not in known:
        raise ValueError(
            f"--against {PUBLISHED}NAME has one of {', '.join(sorted(known))}, but got {name!r}."
        )
    one = known[name]
    note = (
        f"{name}'s val_bpb {one['val_bpb']} is its published mean of {one['seeds']} seeds ({one['source']}; "
        f"from its {one.get('trust', 'text')}; protocol: {one['protocol']}; 8×H100). It is taken for exact, "
        "in nats at the bytes per token of these runs."
    )
    tokenizer = arm_of_source(name, _no_session).tokenizer
    return Reference(f"{name} as published", bpb=float(one["val_bpb"]), note=note, tokenizer=tokenizer)


@dataclass(frozen=True)
class Question:
    """The runs, and what they are of."""

    plan: Plan
    arm: Arm
    reference: Reference | None
    place: Place
    seeds: tuple[int, ...]

    @property
    def arms(self) -> list[Arm]:
        both = [self.reference.arm] if self.reference and self.reference.arm else []
        return [*both, self.arm]

    def runner(self) -> Runner:
        """Without the stage cache: each run is whole, and so is its log."""
        return Runner(self.plan, self.arms, self.place, None)

    def run(self, console: Console) -> Results:
        """Every seed of every arm, those that are kept and new ones."""
        runner = self.runner()
        if kept := sum(map(len, runner.kept(self.seeds).values())):
            say(console, f"kept of this question: {counted(kept, 'run')}")
        return race(runner, self.seeds, settled=lambda _: set(), tell=teller(console, self.seeds))

    def test(self, results: Results, runs: Sequence[SeedRun]) -> Test | None:
        """Against the reference. A look at three seeds is noted in the question's folder."""
        told = self.reference
        if told is None:
            return None
        if told.arm is not None:
            both = pairs(results, self.arm.label, told.label, self.seeds)
            found = nats(both, one_text=self.arm.has_text_of(told.arm))
            notes = text_notes([told.arm, self.arm], nats=True)
            scores = [run.bpb for run in in_order(results, told.label, self.seeds)]
        else:
            scored = [run for run in runs if not run.reason]
            found = [run.of("val_loss") - loss_of(told.bpb, run.result) for run in scored]
            notes = [BYTES] if told.tokenizer not in ("", self.arm.tokenizer) else []
            scores = [told.bpb]
        early = self.plan.folder / EARLY
        if FEWEST <= len(found) < FIRST:
            early.touch()
        raced = max(1, len(self.plan.question["arms"]) - 1)
        p = rule_p(found, questions=raced, early=early.exists())
        shares = [HALVED if early.exists() else "", RACED.format(raced) if raced > 1 else ""]
        note = " ".join(one for one in (told.note, *notes, *shares) if one)
        return Test(told.label, "paired" if told.arm else "figure", found, p, note, scores)


def arms_of_both(wish: Wish, arm: Arm, reference: Reference | None) -> list[Arm]:
    """[the reference where it runs here, the submission], names apart. ValueError where both are one."""
    if reference is None or reference.arm is None:
        return [arm]
    if digest(reference.arm.identity()) == digest(arm.identity()):
        raise ValueError(
            f"A record differs from the one before, but --against {wish.against} has the settings of "
            f"{arm.label}. Name another one."
        )
    return distinct([reference.arm, arm])


def place_of_runs(wish: Wish, arms: Sequence[Arm]) -> Place:
    """Where they run. ValueError for seeds that are too few or too many."""
    if not 1 <= wish.seeds <= LAST:
        raise ValueError(f"A submission has 1 to {LAST} seeds, but got --seeds {wish.seeds}.")
    session = wish.study_session
    return place_of(arms, Asked(workers=wish.workers, home=wish.home), session.study if session else None)


def ask(
    console: Console, wish: Wish, arms: Sequence[Arm], reference: Reference | None, place: Place
) -> Question:
    """The question, registered or found."""
    session = wish.study_session
    plan = found_plan(arms, place, wish.seeds) or register("submit", arms, place, used=used_seeds(session))
    *others, own = (replace(arm, label=name) for arm, name in zip(arms, names_in(plan, arms), strict=True))
    if reference and others:
        reference = replace(reference, label=others[0].label, arm=others[0])
    where = f"{place.workers} at once on {'GPUs' if place.gpus else 'the CPU'}"
    against = f" against {reference.label}" if reference else ""
    say(console, f"{own.label}{against}: {counted(wish.seeds, 'seed')} each, {where}")
    path = f"{shown(plan.folder)}/{PLAN}"
    console.print(
        f"plan, written before the first run: {path}", highlight=False, markup=False, soft_wrap=True
    )
    if session and wish.source.isdecimal() and (told := shortcoming(session, int(wish.source))):
        say(console, told.replace("Not to be submitted", "In the search", 1))
    return Question(plan, own, reference, place, plan.seeds[: wish.seeds])


def used_seeds(session: Session | None) -> set[int]:
    """Of a study's trials: no fresh ones."""
    trials = session.optuna_study.get_trials(deepcopy=False) if session else []
    return {int(c["seed"]) for t in trials if "seed" in (c := t.user_attrs.get(CONFIG, {}))}


def found_plan(arms: Sequence[Arm], place: Place, seeds: int) -> Plan | None:
    """An earlier question that holds these configurations, the one with the most of their runs; None where
    none has any."""
    mine = written(question_of(arms, place))
    best: tuple[int, Plan] | None = None
    for path in sorted(p for kind in KINDS for p in place.home.glob(f"runs/{kind}/*/{PLAN}")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        question = kept["question"]
        identities = list(question["arms"].values())
        own_trainer = "script" not in question
        alike = own_trainer and all(one in identities for one in mine["arms"].values())
        if not (
            alike and set(mine["data"]) <= set(question["data"]) and mine["machine"] == question["machine"]
        ):
            continue
        plan = Plan(path.parent, kept["hash"], tuple(kept["seeds"]), question)
        runner = Runner(
            plan, [replace(a, label=n) for a, n in zip(arms, names_in(plan, arms), strict=True)], place, None
        )
        there = [
            (runner.folder(label, seed) / OUTCOME).exists()
            for label in runner.arms
            for seed in plan.seeds[:seeds]
        ]
        if (count := sum(there)) and (best is None or count > best[0]):
            best = (count, plan)
    return best[1] if best else None


def names_in(plan: Plan, arms: Sequence[Arm]) -> list[str]:
    """What a plan calls these arms."""
    told = written(plan.question)["arms"]
    return [next(n for n, one in told.items() if one == written(arm.identity())) for arm in arms]


def written(value: Any) -> Any:
    """As a file gives it back."""
    return json.loads(json.dumps(value))
