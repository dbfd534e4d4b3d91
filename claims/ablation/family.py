"""Family: the questions of an ablation, and what its runs answer: single effects, interactions, the chain.

Half of the level goes to the single effects, half to all pairs that there could be (which of them are run
depends on the same seeds) and to the comparison with a reference; each half is shared evenly (Bonferroni), so
that any wrong "helps", "hurts", "overlap" or "reinforce" of one command has a probability of 1 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from claims.ablation.chain import Tilt, tilt_of
from claims.ablation.changes import Change, Pair, possible_pairs
from claims.answers import Answer, Rules, answer
from claims.arms import Arm
from claims.race import Results, in_order, mean_sd, pairs
from claims.runs import Run
from claims.sequential import LEVEL, Verdict, judge

HELPS = "helps"
HURTS = "hurts"
SAME = "no difference"
NO_EVIDENCE = "no evidence"
FAILS = "fails"
# what an arm's answer says of the technique that the arm has, or lacks
WORDS = {"same": SAME, "undecided": NO_EVIDENCE, "base fails": FAILS}
OPPOSITE = {HELPS: HURTS, HURTS: HELPS}
OF_PAIRS = {HELPS: "reinforce", HURTS: "overlap", "same": "additive", "undecided": NO_EVIDENCE}
More = dict[str, tuple[int, int]]  # undecided arm -> seeds that it has, more that would probably tell


@dataclass(frozen=True)
class Effect:
    """BPB with a technique less BPB without it: negative is better."""

    change: Change
    answer: Answer  # of the arm against the configuration
    mean: float
    low: float
    high: float
    seconds: float  # training and evaluation, with less without
    bytes: float  # of the artifact

    @property
    def verdict(self) -> str:
        kind = self.answer.kind
        if self.change.kind == "taken away":
            kind = OPPOSITE.get(kind, kind)
        return WORDS.get(kind, kind)


@dataclass(frozen=True)
class Interaction:
    """What two techniques do together beyond the sum of what each does beside the other."""

    pair: Pair
    verdict: Verdict
    both: float  # BPB with both less BPB without both
    sum: float  # of the two single effects
    failed: int  # seeds on which one of the four runs has no score

    @property
    def word(self) -> str:
        failing = self.failed and self.verdict.kind in ("undecided", "same")
        return FAILS if failing else OF_PAIRS[self.verdict.kind]


@dataclass(frozen=True)
class Family:
    """A configuration, what is changed of it, and the rules that all questions share."""

    base: Arm
    changes: Sequence[Change]
    reference: Arm | None  # of the chain; it may be one of the changes' arms
    reference_name: str
    rules: Rules
    seeds: Sequence[int] = ()
    pairs: bool = True  # whether any may be asked

    @property
    def possible(self) -> int:
        return len(possible_pairs(self.changes)) if self.pairs else 0

    @property
    def others(self) -> Rules:
        """Of pairs, and of the chain's two questions."""
        count = self.possible + (2 if self.reference else 0)
        return replace(self.rules, level=LEVEL / 2 / max(1, count))

    @property
    def single(self) -> Rules:
        share = 2 if self.possible or self.reference else 1
        return replace(self.rules, level=LEVEL / share / max(1, len(self.changes)))

    @property
    def arms(self) -> list[Arm]:
        found = [self.base, *(change.arm for change in self.changes)]
        new = self.reference is not None and self.reference.label not in {arm.label for arm in found}
        return [*found, self.reference] if new and self.reference else found

    def answers(self, results: Results) -> list[Answer]:
        return [
            answer(results, change.arm.label, self.base.label, self.seeds, self.single)
            for change in self.changes
        ]

    def tilt(self, results: Results) -> Tilt | None:
        if self.reference is None:
            return None
        labels = (self.base.label, self.reference.label)
        return replace(tilt_of(results, labels, self.seeds, self.others), reference=self.reference_name)

    def settled(self, results: Results) -> set[str]:
        done = {one.arm for one in self.answers(results) if one.kind != "undecided"}
        if (tilt := self.tilt(results)) and self.reference:
            done = done | {self.reference.label} if tilt.decided else done - {self.reference.label}
        others = {arm.label for arm in self.arms} - {self.base.label}
        return done | ({self.base.label} if done >= others else set())

    def more(self, results: Results) -> More:
        """Undecided arms: seeds that they have, and that they would need more."""
        verdicts = [(one.arm, one.verdict, one.kind) for one in self.answers(results)]
        if (tilt := self.tilt(results)) and self.reference:
            late = max((tilt.score, tilt.model), key=lambda v: (v.kind == "undecided", v.more))
            verdicts.append((self.reference.label, late, late.kind))
        return {label: (v.pairs, v.more) for label, v, kind in verdicts if kind == "undecided"}

    def effects(self, results: Results) -> list[Effect]:
        """Those of what was taken away first; in each part the best first."""
        told = zip(self.changes, self.answers(results), strict=True)
        found = [self.effect(results, change, one) for change, one in told]
        return sorted(found, key=lambda e: (e.change.kind == "added", math.isnan(e.mean), e.mean))

    def effect(self, results: Results, change: Change, told: Answer) -> Effect:
        v = told.verdict
        found = pairs(results, change.arm.label, self.base.label, self.seeds)
        both = [(a, b) for a, b in found if not a.reason and not b.reason]
        sign = -1.0 if change.kind == "taken away" else 1.0
        low, high = sorted((sign * v.low, sign * v.high))
        costs = [[sign * (cost(a) - cost(b)) for a, b in both] for cost in (run_seconds, run_bytes)]
        return Effect(change, told, sign * v.mean, low, high, *(mean_sd(values)[0] for values in costs))


def run_seconds(run: Run) -> float:
    return run.of("train_seconds") + run.of("eval_seconds")


def run_bytes(run: Run) -> float:
    return run.of("artifact_bytes")


@dataclass(frozen=True)
class PairRace:
    """The pairs of a family that are run."""

    family: Family
    pairs: Sequence[Pair]

    @property
    def arms(self) -> list[Arm]:
        """The configuration, without one, without the other, without both."""
        singles = {c.arm.label: c.arm for pair in self.pairs for c in (pair.one, pair.other)}
        return [self.family.base, *singles.values(), *(pair.arm for pair in self.pairs)]

    def interaction(self, results: Results, pair: Pair) -> Interaction:
        labels = [self.family.base.label, pair.one.arm.label, pair.other.arm.label, pair.arm.label]
        columns = [in_order(results, label, self.family.seeds) for label in labels]
        rows = list(zip(*columns, strict=False))
        good = [[run.bpb for run in row] for row in rows if not any(run.reason for run in row)]
        rules = self.family.others
        verdict = judge([c - a - b + ab for c, a, b, ab in good], within=rules.within, level=rules.level)
        both = mean_sd([c - ab for c, _, _, ab in good])[0]
        single = mean_sd([2 * c - a - b for c, a, b, _ in good])[0]
        return Interaction(pair, verdict, both, single, len(rows) - len(good))

    def interactions(self, results: Results) -> list[Interaction]:
        return [self.interaction(results, pair) for pair in self.pairs]

    def settled(self, results: Results) -> set[str]:
        waiting = [i.pair for i in self.interactions(results) if not over(i)]
        needed = {arm.label for pair in waiting for arm in (pair.arm, pair.one.arm, pair.other.arm)}
        needed |= {self.family.base.label} if waiting else set()
        return {arm.label for arm in self.arms} - needed

    def more(self, results: Results) -> More:
        found: More = {}
        for one in self.interactions(results):
            if not over(one):
                for arm in (one.pair.arm, one.pair.one.arm, one.pair.other.arm):
                    found[arm.label] = (one.verdict.pairs, one.verdict.more)
        return found


def over(one: Interaction) -> bool:
    """Whether a pair runs no more."""
    return one.verdict.kind != "undecided" or one.failed > 1


@dataclass(frozen=True)
class Ablated:
    """What came out, of an ablation."""

    family: Family
    results: Results
    effects: Sequence[Effect]
    interactions: Sequence[Interaction]
    tilt: Tilt | None
