"""confirm(session, ...): `search.py confirm`: a study's best trials again, on fresh seeds, and who is left.

Successive elimination: every contender and the reference run the same seeds in the same order; who is worse
than another contender by the paired test, or fails, runs no more. The level is shared evenly among all pairs
of contenders and each one's difference from the reference (Bonferroni), so that any wrong word of one command
has a probability of 1 %. What came out is stored with the study (attribute CONFIRMED), and the leaderboard
ranks by it.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.markup import escape

from claims.answers import Answer, Rules, answer, p_text, row_of_arm, sentence, text_notes
from claims.arms import Arm, arm_of_source, arm_of_study, arm_of_trial
from claims.compare import Asked, check_seeds, new_table, place_of, print_plan, run_all, say, say_notes
from claims.race import Course, Results, in_order, mean_sd, nats, pairs
from claims.runs import Plan, number, register
from claims.sequential import LEVEL, best_p, judge
from search.common.attributes import CONFIG, CONFIG_HASH, CONFIRMED
from search.report.rows import beliefs_of_study, ranked
from search.session.session import Session
from search.storage.patient import creation_lock
from techniques.config import digest

MARGIN_NATS = 0.005  # the challenge's rule: better by so much per token
RULE_P = 0.01  # at p below
BASELINE_LABEL = "baseline"
ASKED = "asked"  # of a stored confirmation: its seeds at most
SHRUNKEN = (
    "shrunken = search + (median - search)·s²/v: the median of the study's feasible trials, v the mean "
    "square of the better half about it, s the standard deviation of a seed ({:.4f}): what to expect of a "
    "trial that was picked for its value"
)


@dataclass(frozen=True)
class Contender:
    """A trial on its way, and what the search said of it."""

    number: int
    search_bpb: float
    arm: Arm


@dataclass(frozen=True)
class Confirmed:
    """What came out for a contender."""

    contender: Contender
    answer: Answer  # against the reference
    nats: float  # mean difference, per token
    rule_p: float  # one-sided p of "better by MARGIN_NATS", times the number of contenders
    notes: Sequence[str]  # on tokenizers that differ
    beaten_by: str
    shrunken: float

    @property
    def rule(self) -> bool:
        """Whether it holds: better by so much, on every seed, within the limits."""
        return self.rule_p < RULE_P and self.sound and not self.answer.failed[self.contender.arm.label]

    @property
    def sound(self) -> bool:
        """Whether it ends and keeps the study's limits."""
        return self.answer.kind != "fails" and not self.answer.over[self.contender.arm.label]


def confirm(
    console: Console, session: Session, asked: Asked, *, top: int, against: str, once: bool = False
) -> list[Confirmed]:
    """Races the `top` feasible trials, ranked as `best` does without confirmations; `once`: unless they are
    confirmed already. Raises ValueError for what a person must solve."""
    check_seeds(asked.seeds)
    trials = session.optuna_study.get_trials(deepcopy=False)
    reference = arm_of_source(against, lambda: session) if against else None
    reference = reference or reference_of(session)
    contenders = contenders_of(session, reference, top)
    if once and is_answered(session, contenders, asked.seeds):
        say(console, f"{', '.join(one.arm.label for one in contenders)}: confirmed before")
        return []
    arms = [reference, *(one.arm for one in contenders)]
    place = place_of(arms, asked, session.study)
    plan = register("confirm", arms, place, used=seeds_of(trials))
    seeds = plan.seeds[: asked.seeds]
    race_ = Race(contenders, reference, seeds, session)
    print_plan(console, plan, arms, place, asked.seeds, race_.rules.level)
    results = run_all(console, plan, arms, place, Course(seeds, race_.settled))
    found = race_.confirmed(results, [float(t.value or 0.0) for t in ranked(trials)[0]])
    print_confirmed(console, results, found, race_)
    store(session, found, results, race_, plan, starts_of(trials, reference))
    return found


def confirm_at_end(console: Console, session: Session, *, workers: int | None, trainer: Path | None) -> None:
    """What a study's [confirm] asks for, once its trials are done. Raises as `confirm` does."""
    wanted = session.study.confirm
    assert wanted is not None
    say(console, "\nThe best again on fresh seeds, as [confirm] asks (--no-confirm leaves it out):")
    if not found_contenders(session, reference_of(session), wanted.top):
        say(console, "Nothing to confirm: no trial kept every limit, or only the start did.")
        return
    asked = Asked(seeds=wanted.seeds, workers=workers, home=session.folders.home, trainer=trainer)
    confirm(console, session, asked, top=wanted.top, against="", once=True)
    say(console, "")


def is_answered(session: Session, contenders: Sequence[Contender], seeds: int) -> bool:
    """Whether as many seeds were asked of all of them before."""
    before: dict[str, Any] = session.optuna_study.user_attrs.get(CONFIRMED) or {}
    told = [before.get(str(one.number), {}) for one in contenders]
    return all(facts and facts.get(ASKED, len(facts["seeds"])) >= seeds for facts in told)


def reference_of(session: Session) -> Arm:
    """What the study starts from."""
    return replace(arm_of_study(session.study), label=BASELINE_LABEL)


def seeds_of(trials: Iterable[FrozenTrial]) -> set[int]:
    """Those of a study's trials: none of them is fresh."""
    return {int(c["seed"]) for t in trials if "seed" in (c := t.user_attrs.get(CONFIG, {}))}


def contenders_of(session: Session, reference: Arm, top: int) -> list[Contender]:
    """The best feasible trials, each another run. ValueError where there is none."""
    if found := found_contenders(session, reference, top):
        return found
    raise ValueError(
        f"Only feasible trials can be confirmed, but {session.study.name} has none that differs from "
        f"{reference.label}. See `python search.py status`."
    )


def found_contenders(session: Session, reference: Arm, top: int) -> list[Contender]:
    taken = {digest(reference.identity())}
    found = list[Contender]()
    trials = session.optuna_study.get_trials(deepcopy=False)
    for trial in ranked(trials, beliefs=beliefs_of_study(session.optuna_study, trials))[0]:
        if len(found) == top:
            break
        if trial.user_attrs.get(CONFIG_HASH) in taken:
            continue
        arm = arm_of_trial(session, trial.number)
        if (key := digest(arm.identity())) not in taken:
            found.append(Contender(trial.number, float(trial.value or 0.0), arm))
            taken |= {key, str(trial.user_attrs.get(CONFIG_HASH))}
    return found


@dataclass(frozen=True)
class Race:
    """The contenders, and the rules of elimination."""

    contenders: Sequence[Contender]
    start: Arm  # what they are held against
    seeds: Sequence[int]
    session: Session

    @property
    def reference(self) -> str:
        return self.start.label

    @cached_property
    def one_text(self) -> dict[str, bool]:
        """label -> whether its nats per token compare with the reference's."""
        return {one.arm.label: one.arm.has_text_of(self.start) for one in self.contenders}

    def nats(self, results: Results, label: str) -> list[float]:
        found = pairs(results, label, self.reference, self.seeds)
        return nats(found, one_text=self.one_text[label])

    @property
    def rules(self) -> Rules:
        count = len(self.contenders)
        return Rules(0.0, LEVEL / (count + count * (count - 1) // 2), self.session.study.limits)

    def beaten_by(self, results: Results, label: str) -> str:
        """A contender that is better for certain, or "" ."""
        for other in (one.arm.label for one in self.contenders if one.arm.label != label):
            if answer(results, label, other, self.seeds, self.rules).kind == "hurts":
                return other
        return ""

    def rule_p(self, results: Results, label: str) -> float:
        return min(1.0, len(self.contenders) * best_p(self.nats(results, label), -MARGIN_NATS))

    def settled(self, results: Results) -> set[str]:
        """Who needs no more runs."""
        labels = [one.arm.label for one in self.contenders]
        out = {label for label in labels if self.beaten_by(results, label) or self._fails(results, label)}
        left = [label for label in labels if label not in out]
        if len(left) == 1 and self._rule_decided(results, left[0]):
            out.add(left[0])
        return out | ({self.reference} if len(out) == len(labels) else set())

    def _fails(self, results: Results, label: str) -> bool:
        return answer(results, label, self.reference, self.seeds, self.rules).kind == "fails"

    def _rule_decided(self, results: Results, label: str) -> bool:
        """Whether it is better by the margin for certain, or less so for certain."""
        beyond = [d + MARGIN_NATS for d in self.nats(results, label)]
        told = judge(beyond, within=0.0, level=self.rules.level)
        return told.kind != "undecided"

    def confirmed(self, results: Results, values: Sequence[float]) -> list[Confirmed]:
        """The contenders, the best first; `values` are those of the study's feasible trials. One that another
        beat stands behind: its mean is of fewer seeds, which may have been the easy ones."""
        sd = seed_sd(results, self.seeds)
        found = list[Confirmed]()
        for one in self.contenders:
            label = one.arm.label
            found.append(
                Confirmed(
                    contender=one,
                    answer=answer(results, label, self.reference, self.seeds, self.rules),
                    nats=mean_sd(self.nats(results, label))[0],
                    rule_p=self.rule_p(results, label),
                    notes=text_notes([self.start, one.arm], nats=True),
                    beaten_by=self.beaten_by(results, label),
                    shrunken=shrunken(one.search_bpb, values, sd),
                )
            )
        means = {one.arm.label: mean_of(results, one.arm.label, self.seeds) for one in self.contenders}
        return sorted(found, key=lambda c: (not c.sound, bool(c.beaten_by), means[c.contender.arm.label]))


def mean_of(results: Results, label: str, seeds: Sequence[int]) -> float:
    """Mean BPB of the runs that have a score; inf without any."""
    scores = [run.bpb for run in in_order(results, label, seeds) if not run.reason]
    return mean_sd(scores)[0] if scores else math.inf


def seed_sd(results: Results, seeds: Sequence[int]) -> float:
    """Of one seed, pooled over the arms; nan where no arm has two."""
    scores = [[r.bpb for r in in_order(results, label, seeds) if not r.reason] for label in results]
    squares = sum(float(np.var(s)) * len(s) for s in scores if s)
    free = sum(len(s) - 1 for s in scores if s)
    return math.sqrt(squares / free) if free else math.nan


def shrunken(search_bpb: float, values: Sequence[float], sd: float) -> float:
    """Regression to the mean of a value that was picked among `values`: see SHRUNKEN. A normal prior, fitted
    to the better half: the worse one has a tail of configurations that nobody would pick."""
    middle = float(np.median(values))
    spread = float(np.mean([(v - middle) ** 2 for v in values if v <= middle]))
    if math.isnan(sd):
        return search_bpb
    share = min(1.0, sd**2 / spread) if spread > 0.0 else 1.0
    return search_bpb + (middle - search_bpb) * share


def print_confirmed(console: Console, results: Results, found: Sequence[Confirmed], race_: Race) -> None:
    seeds = race_.seeds
    table = new_table("trial", "search", "shrunken", "confirmed ± sd", "seeds", "diff.", "nats", "rule, p")
    _, score = row_of_arm(results, race_.reference, seeds)
    scored = [run for run in in_order(results, race_.reference, seeds) if not run.reason]
    table.add_row(escape(race_.reference), "", "", score, str(len(scored)), "", "", "")
    for one in found:
        told = one.answer
        runs, score = row_of_arm(results, one.contender.arm.label, seeds)
        table.add_row(
            one.contender.arm.label,
            f"{one.contender.search_bpb:.4f}",
            f"{one.shrunken:.4f}",
            score,
            str(sum(not run.reason for run in runs)),
            f"{told.verdict.mean:+.4f}",
            f"{one.nats:+.4f}",
            p_text(one.rule_p),
        )
    say(console, "")
    console.print(table)
    for one in found:
        rule = "holds" if one.rule else "does not hold"
        beaten = f" It is worse than {one.beaten_by}, and ran no more." if one.beaten_by else ""
        say(console, "")
        say(
            console,
            f"{sentence(one.answer, race_.rules)}{beaten} The challenge's rule (better by {MARGIN_NATS} nats "
            f"per token at p < {RULE_P}) {rule}.",
        )
    say(console, f"\nEvery seed's BPB, in order ({race_.reference} first):")
    for label in (race_.reference, *(one.contender.arm.label for one in found)):
        scores = [run.reason or f"{run.bpb:.4f}" for run in in_order(results, label, seeds)]
        say(console, f"  {label}: {', '.join(scores)}")
    say_notes(console, text_notes([race_.start, *(one.contender.arm for one in found)], nats=True))
    say(console, f"\n{SHRUNKEN.format(seed_sd(results, seeds))}.")


def starts_of(trials: Iterable[FrozenTrial], reference: Arm) -> list[int]:
    """The feasible trials that ran what the contenders are held against: its fresh seeds are theirs too, or a
    contender that is no better would stand above them."""
    own = digest(reference.identity())
    return [t.number for t in ranked([*trials])[0] if t.user_attrs.get(CONFIG_HASH) == own]


def store(
    session: Session,
    found: Sequence[Confirmed],
    results: Results,
    race_: Race,
    plan: Plan,
    starts: Sequence[int],
) -> None:
    """Keeps the confirmation with the study; what was confirmed before stays, for other trials and where the
    same question was answered from more seeds. `starts`: trials of the reference."""
    kept: dict[str, Any] = {}
    for one in found:
        label = one.contender.arm.label
        kept[str(one.contender.number)] = {
            **facts_of_runs(results, label, race_, plan),
            "sound": one.sound,
            "beaten_by": one.beaten_by,
            "over": list(one.answer.over[label]),
            "shrunken": one.shrunken,
            "verdict": one.answer.kind,
            "difference_bpb": number(one.answer.verdict.mean),
            "difference_nats": number(one.nats),
            "rule": one.rule,
            "notes": list(one.notes),
        }
    start = {**facts_of_runs(results, race_.reference, race_, plan), "beaten_by": "", "difference_bpb": 0.0}
    start["sound"] = not any(run.reason for run in in_order(results, race_.reference, race_.seeds))
    study = session.optuna_study
    with creation_lock(session.url):
        before: dict[str, Any] = study.user_attrs.get(CONFIRMED) or {}
        for trial in map(str, starts):
            if "rule" not in before.get(trial, {}):  # a contender's facts tell more
                kept[trial] = start
        longer = {n for n, facts in kept.items() if n in before and more_seeds(before[n], facts)}
        study.set_user_attr(CONFIRMED, {**before, **{n: kept[n] for n in kept if n not in longer}})


def facts_of_runs(results: Results, label: str, race_: Race, plan: Plan) -> dict[str, Any]:
    """What an arm's runs gave, as a study keeps it."""
    runs = in_order(results, label, race_.seeds)
    mean, sd = mean_sd([run.bpb for run in runs if not run.reason])
    return {
        "bpb": number(mean),
        "sd": number(sd),
        "seeds": {str(run.seed): run.reason or run.bpb for run in runs},
        "against": race_.reference,
        "plan": plan.hash,
        ASKED: len(race_.seeds),
        "at": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def more_seeds(before: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether the same question's answer was stored from more seeds than these facts have."""
    return before["plan"] == facts["plan"] and len(before["seeds"]) > len(facts["seeds"])
