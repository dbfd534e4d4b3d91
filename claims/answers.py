"""answer(results, ...) -> Answer: what the runs of two arms say; `sentence` says it to a person.

A run without a score (it diverged, ran out of time or memory) is a fact about its configuration: its seed is
no pair, and it is told. An arm that FAILURES runs failed on is given up; one failure withholds "helps" and
"no difference" from it, because those would speak of its lucky seeds alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from claims.arms import Arm
from claims.race import Results, differences, in_order, mean_sd, pairs
from claims.runs import Run
from claims.sequential import FIRST, LAST, LEVEL, WITHIN, Verdict, judge
from search.study.limits import Limits

FAILURES = 2
BYTES = (
    "Across tokenizers BPB divides by bytes of text as each sees it: SentencePiece counts those of "
    "normalised text, up to 8 % fewer on odd text; byte260 counts all."
)
CONVERTED = (
    "Tokenizer or data of {} are not those of {}, and a token is another piece of text: there a difference "
    "in nats per token is that in BPB, at the bytes per token of one's own runs."
)


@dataclass(frozen=True)
class Rules:
    """How differences are judged."""

    within: float = WITHIN  # bits per byte that count as no difference
    level: float = LEVEL
    limits: Limits | None = None  # that both arms must keep; None: none is known

    def p_of(self, verdict: Verdict) -> float:
        """Its p times the number of questions that share LEVEL: below LEVEL exactly where it decides."""
        return min(1.0, verdict.p * LEVEL / self.level)

    @property
    def interval(self) -> str:
        """What an interval is called: two digits of what it misses, so that none is said to be of 100 %."""
        missed = 100 * self.level
        digits = max(0, 1 - math.floor(math.log10(missed)))
        return f"{100 - missed:.{digits}f}".rstrip("0").rstrip(".") + " % interval"


@dataclass(frozen=True)
class Answer:
    """One arm against the base."""

    arm: str
    base: str
    kind: Literal["helps", "hurts", "same", "undecided", "fails", "base fails"]
    verdict: Verdict
    failed: Mapping[str, Sequence[Run]] = field(default_factory=dict[str, Sequence[Run]])  # of arm and base
    over: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])  # limits, in words


def answer(results: Results, arm: str, base: str, seeds: Sequence[int], rules: Rules) -> Answer:
    """What the seeds tell that both arms have."""
    found = pairs(results, arm, base, seeds)
    verdict = judge(differences(found), within=rules.within, level=rules.level)
    failed = {arm: [a for a, _ in found if a.reason], base: [b for _, b in found if b.reason]}
    kind = verdict.kind
    if kind != "hurts" and given_up(failed[arm], decided=kind != "undecided"):
        kind = "fails"
    elif kind != "helps" and given_up(failed[base], decided=kind != "undecided"):
        kind = "base fails"
    over = {name: over_limits(in_order(results, name, seeds), rules.limits) for name in (arm, base)}
    return Answer(arm, base, kind, verdict, failed, over)


def text_notes(arms: Sequence[Arm], *, nats: bool = False) -> list[str]:
    """What must be said where tokenizers differ among the arms, the reference first; of `nats` also data."""
    base = arms[0]
    apart = [arm.label for arm in arms if not arm.has_text_of(base)] if nats else []
    told = [CONVERTED.format(" and ".join(apart), base.label)] if apart else []
    return told + ([BYTES] if len({arm.tokenizer for arm in arms}) > 1 else [])


def given_up(failed: Sequence[Run], *, decided: bool) -> bool:
    return len(failed) >= (1 if decided else FAILURES)


def over_limits(runs: Sequence[Run], limits: Limits | None) -> list[str]:
    """The limits that more than half of the runs are over: `artifact, 331,000 of 310,000 bytes`."""
    found = list[str]()
    for limit in limits.given if limits else ():
        most = limits.of(limit) if limits else 0.0
        known = sorted(run.of(limit.figure) for run in runs if not run.reason)
        if known and (middle := known[len(known) // 2]) > most:
            found.append(limit.over(middle, most))
    return found


def sentence(told: Answer, rules: Rules) -> str:
    """One sentence that answers, and, where there is one, the fact that it must not hide."""
    v = told.verdict
    size = f"{abs(v.mean):.4f}"
    seeds = f"{v.pairs} seeds each"
    way = "lower" if v.mean < 0 else "higher"
    between = f"{rules.interval} {v.low:+.4f} to {v.high:+.4f}"
    measured = f"val_bpb is {size} {way} than {told.base} has ({between}; p {p_text(rules.p_of(v))}; {seeds})"
    if told.kind in ("helps", "hurts"):
        text = f"{told.arm} {told.kind}: {measured}."
    elif told.kind == "same":
        text = (
            f"{told.arm} makes no difference larger than {rules.within:g} bits per byte (95 %): val_bpb "
            f"is {size} {way} than {told.base} has, {seeds}."
        )
    elif told.kind == "undecided":
        text = f"{told.arm} is undecided after {seeds}: {more_text(v)}"
        if v.pairs >= FIRST:
            text += f" So far {measured}."
    else:
        who = told.arm if told.kind == "fails" else told.base
        text = f"{who} fails: {failures_text(told, who)}."
        if v.pairs >= FIRST:
            text += f" Where both have a score, {measured.replace('val_bpb', 'val_bpb of ' + told.arm)}."
    others = [one for one in told.failed if told.failed[one] and f"{one} fails" not in text]
    text += "".join(f" {one}: {failures_text(told, one)}." for one in others)
    return text + "".join(f" {who} is over a limit: {'; '.join(w)}." for who, w in told.over.items() if w)


def more_text(v: Verdict) -> str:
    if v.more >= LAST or v.pairs + v.more > LAST:
        return f"it would take more than {LAST - v.pairs} more seeds."
    return f"about {v.more} more seeds would tell (--seeds {v.pairs + v.more})."


def failures_text(told: Answer, who: str) -> str:
    """`2 of 5 runs have no score (diverged: train_loss is nan)`."""
    failed = told.failed[who]
    count = told.verdict.pairs + len({run.seed for runs in told.failed.values() for run in runs})
    reasons = ", ".join(dict.fromkeys(run.reason for run in failed))
    return f"{len(failed)} of {count} runs have no score ({reasons})"


def p_text(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def row_of_arm(results: Results, label: str, seeds: Sequence[int]) -> tuple[list[Run], str]:
    """An arm's runs that count, and `2.8377 ± 0.0071` of them."""
    runs = in_order(results, label, seeds)
    scores = [run.bpb for run in runs if not run.reason]
    mean, sd = mean_sd(scores)
    return runs, f"{mean:.4f} ± {sd:.4f}" if len(scores) > 1 else f"{mean:.4f}" if scores else "none"
