"""Test: is the configuration better than the current record by MARGIN_NATS per token, at p < RULE_P?

From the fourth seed on p is what `confirm` computes (claims/sequential.py): valid whenever one stops. Three
seeds, which the challenge takes, are no look of that test: they get Student's t at three, and because one may
ask for more seeds afterwards, the level is then halved between both (p is twice the smaller one).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtr  # pyright: ignore[reportMissingTypeStubs]

from claims.answers import p_text
from claims.confirm import MARGIN_NATS, RULE_P
from claims.race import mean_sd
from claims.sequential import FIRST, best_p
from search.common.console import counted

FEWEST = 3  # seeds of a test


@dataclass(frozen=True)
class Test:
    """What the differences tell."""

    reference: str  # of what
    kind: str  # "paired": the same seeds ran here; "figure": a number that somebody gave
    differences: Sequence[float]  # submission - reference, nats per token, one for each seed that both have
    p: float  # one-sided, of "better by MARGIN_NATS"
    note: str = ""  # what must be said beside it
    scores: Sequence[float] = ()  # BPB of the reference, seed by seed or the one figure

    @property
    def mean(self) -> float:
        return mean_sd(self.differences)[0]

    @property
    def holds(self) -> bool:
        return self.p < RULE_P

    def sentence(self) -> str:
        """What came out, with its numbers."""
        if not self.differences:
            return f"no seed has a score for both it and {self.reference}"
        way = "lower" if self.mean <= 0.0 else "higher"
        sd = mean_sd(self.differences)[1]
        spread = f" (standard deviation {sd:.5f})" if len(self.differences) > 1 else ""
        return (
            f"val_loss is {abs(self.mean):.5f} nats per token {way} than {self.reference}{spread}, "
            f"{counted(len(self.differences), 'seed')}; p of better by {MARGIN_NATS}: {p_text(self.p)}"
        )


def rule_p(nats: Sequence[float], *, questions: int = 1, early: bool = False) -> float:
    """`questions`: configurations among which this one was picked on these seeds. `early`: three seeds were
    looked at before."""
    found = [best_p(nats, -MARGIN_NATS)]
    if len(nats) >= FEWEST and (early or len(nats) < FIRST):
        found.append(p_of_three(nats[:FEWEST]))
    return min(1.0, questions * len(found) * min(found))


def p_of_three(nats: Sequence[float]) -> float:
    """One-sided p of Student's t for "the mean is below -MARGIN_NATS"."""
    mean, sd = mean_sd(nats)
    if sd == 0.0:
        return 0.0 if mean < -MARGIN_NATS else 1.0
    return float(stdtr(len(nats) - 1.0, (mean + MARGIN_NATS) * math.sqrt(len(nats)) / sd))
