"""ablate(console, asked, options) -> Ablated: `search.py ablate`: what each technique does, and which clash.

Each technique that is on is taken away, and some that are off are added, on the same fresh seeds as the
configuration; then pairs: whether two do together more or less than the sum of both. Who is undecided and
cheap runs first, who is decided runs no more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from claims.ablation.changes import (
    ALL,
    NONE,
    Change,
    Pair,
    added,
    findings_of,
    pairs_that_matter,
    suggested_pairs,
    taken_away,
    wanted,
)
from claims.ablation.family import HELPS, HURTS, Ablated, Family, Interaction, PairRace
from claims.ablation.tables import facts_of_ablated, print_ablated
from claims.answers import Rules
from claims.arms import Arm, arm_of_source, arm_of_study, arm_of_trial
from claims.compare import Asked, check_seeds, place_of, print_where, run_all, say
from claims.confirm import BASELINE_LABEL, seeds_of
from claims.race import Course, Results
from claims.runs import Place, Plan, register, write_json
from claims.schedule import Clock, Schedule
from search.common.options import names_in
from search.report.effects import Findings
from search.session.session import Session
from search.study.model import Study
from techniques.config import digest

MOST_PAIRS = 3


@dataclass(frozen=True)
class Options:
    """Of ablate alone, as the command line said them."""

    out: str = ALL  # techniques to take away
    add: str = ""
    pairs: int = MOST_PAIRS
    against: str = ""  # the reference of the chain
    minutes: float = math.inf


@dataclass(frozen=True)
class Start:
    """The configuration, and the study that it is a trial of, which was begun."""

    base: Arm
    trial: int | None = None
    study: Study | None = None  # with the limits as they were measured
    session: Session | None = None

    @property
    def used(self) -> set[int]:
        """Seeds that are not fresh."""
        return seeds_of(self.session.optuna_study.get_trials(deepcopy=False)) if self.session else set()

    @property
    def facts(self) -> dict[str, Any]:
        return {"study": self.study.name if self.study else None, "trial": self.trial}


def start_of(asked: Asked) -> Start:
    """ValueError unless one configuration is named."""
    if len(asked.trials) + bool(asked.base) != 1:
        raise ValueError(
            "One configuration is taken apart: --trial N of a study, --preset NAME or --base FILE. Name one."
        )
    numbers = asked.trials or ((int(asked.base),) if asked.base.isdecimal() else ())
    if not numbers:
        return Start(arm_of_source(asked.base, asked.session), study=asked.study)
    session = asked.session()
    return Start(arm_of_trial(session, numbers[0]), numbers[0], session.study, session)


def ablate(console: Console, asked: Asked, options: Options) -> Ablated:
    """Raises ValueError for what a person must solve; KeyboardInterrupt when it was stopped."""
    check_seeds(asked.seeds)
    start = start_of(asked)
    found = told_by_study(asked, start, options)
    family = family_of(start, asked, options, found)
    place = place_of(family.arms, asked, start.study)
    plan = register("ablate", family.arms, place, used=start.used)
    limits = start.study.limits if start.study else None
    family = replace(family, seeds=plan.seeds[: asked.seeds], rules=replace(family.rules, limits=limits))
    print_plan(console, family, plan, place)
    clock = Clock(60.0 * options.minutes)
    schedule = Schedule(family.base.label, family.seeds, family.more, clock)
    results = run_all(console, plan, family.arms, place, Course(family.seeds, family.settled, schedule))
    interactions = list[Interaction]()
    if family.possible and (chosen := chosen_pairs(family, results, options, found)):
        race_ = PairRace(family, chosen)
        results = {**results, **race_pairs(console, race_, plan, place, clock)}
        interactions = race_.interactions(results)
    told = Ablated(family, results, family.effects(results), interactions, family.tilt(results))
    print_ablated(console, told)
    if clock.stopped:
        say(console, f"\n{clock.sentence}")
    write_json(plan.folder / "answer.json", start.facts | {"hash": plan.hash} | facts_of_ablated(told))
    return told


def told_by_study(asked: Asked, start: Start, options: Options) -> Findings | None:
    """What a study says of its techniques, where anything here depends on it."""
    if start.session and (options.add != NONE or options.pairs):
        return findings_of(start.session)
    return findings_of(asked.session()) if asked.study and options.add.isdecimal() else None


def family_of(start: Start, asked: Asked, options: Options, found: Findings | None) -> Family:
    """What is asked of a configuration. ValueError where that is nothing."""
    base = start.base
    gone = taken_away(base) if options.out != NONE else []
    if options.out not in (ALL, NONE):
        gone = named(gone, options.out, base)
    changes = [*gone, *added(base, wanted(base, options.add, found))]
    if not changes:
        raise ValueError(
            f"An ablation takes techniques away or adds some, but {base.label} has none on and none was "
            "named. Give --add NAME,NAME."
        )
    name, reference = reference_of(start, asked, options)
    same = {digest(change.arm.identity()): change.arm for change in changes}
    if reference is not None:
        key = digest(reference.identity())
        reference = None if key == digest(base.identity()) else same.get(key, reference)
    return Family(base, changes, reference, name, Rules(asked.within), pairs=options.pairs > 0)


def named(changes: Sequence[Change], text: str, base: Arm) -> list[Change]:
    """Those of the techniques that `--out` names. ValueError for one that is not on."""
    by_name = {change.technique: change for change in changes}
    names = list(names_in(text))
    for name in names:
        if name not in by_name:
            raise ValueError(
                f"Only a technique that is on can be taken away, but {name} is not on in {base.label}. "
                f"On: {', '.join(by_name) or 'none'}."
            )
    return [by_name[name] for name in names]


def reference_of(start: Start, asked: Asked, options: Options) -> tuple[str, Arm | None]:
    """Whose model a score is held against: what `--against` names; else, where the configuration has a
    scorer, what it starts from: the study's start, or the preset that a file changes."""
    if options.against:
        arm = arm_of_source(options.against, asked.session)
        return arm.label, replace(arm, label=f"reference {arm.label}")
    base = start.base
    if base.resolved().owner("scorer") is None:
        return "", None
    if start.session:
        return BASELINE_LABEL, replace(arm_of_study(start.session.study), label=BASELINE_LABEL)
    arm = Arm(f"preset {base.preset}", base.preset, {}, base.own_seed)
    return base.preset, arm if base.preset else None


def chosen_pairs(family: Family, results: Results, options: Options, found: Findings | None) -> list[Pair]:
    """The pairs that are run."""
    told = family.effects(results)
    clear = {e.change.technique: e.mean for e in told if e.verdict in (HELPS, HURTS)}
    return pairs_that_matter(family.base, family.changes, clear, suggested_pairs(found), options.pairs)


def race_pairs(console: Console, race_: PairRace, plan: Plan, place: Place, clock: Clock) -> Results:
    """Their runs, on the plan's seeds, beside those that are there."""
    say(console, f"\npairs, beyond the sum of both: {', '.join(pair.name for pair in race_.pairs)}")
    arms = race_.arms
    whole = replace(plan, question={**plan.question, "arms": {arm.label: arm.identity() for arm in arms}})
    schedule = Schedule(race_.family.base.label, race_.family.seeds, race_.more, clock)
    return run_all(console, whole, arms, place, Course(race_.family.seeds, race_.settled, schedule))


def print_plan(console: Console, family: Family, plan: Plan, place: Place) -> None:
    gone = sum(change.kind == "taken away" for change in family.changes)
    parts = [f"{gone} technique{'s' * (gone != 1)} taken away"] if gone else []
    parts += [f"{more} added"] if (more := len(family.changes) - gone) else []
    print_where(console, f"{family.base.label}: {', '.join(parts)}", plan, len(family.seeds), place)
    for change in family.changes:
        if change.also and change.kind == "taken away":
            say(console, f"{change.technique} is needed by {' and '.join(change.also)}: they go with it")
        elif change.also:
            say(console, f"{change.technique} needs {' and '.join(change.also)}: added with it")
