"""The BPB chain of a configuration over its seeds: last weights, their average, the packed model, the scorer;
and whether a better score stands on a worse model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from claims.answers import Rules, p_text
from claims.race import Results, in_order, mean_sd, pairs
from claims.runs import Run
from claims.sequential import Verdict, judge

PACKED = "packed"  # the link that is the model as it is submitted, scored plainly


@dataclass(frozen=True)
class Link:
    """One stage, in bits per byte on the tokens of a report."""

    stage: str
    mean: float
    sd: float
    seeds: int
    step: float  # mean of what it adds to the stage before it; nan for the first
    step_sd: float


def chain_of(results: Results, label: str, seeds: Sequence[int]) -> list[Link]:
    """Over the runs that have a score; stages that only some of them have are over those."""
    chains = [links_of(run) for run in in_order(results, label, seeds) if not run.reason]
    stages = list(max(chains, key=len)) if chains else []
    found = list[Link]()
    for before, stage in zip(["", *stages], stages, strict=False):
        known = [links for links in chains if stage in links]
        values = [links[stage] for links in known]
        steps = [links[stage] - links[before] for links in known if before in links]
        found.append(Link(stage, *mean_sd(values), len(values), *mean_sd(steps)))
    return found


def links_of(run: Run) -> dict[str, float]:
    """stage -> bits per byte, in their order."""
    return {str(stage): float(bpb) for stage, bpb in run.chain}


@dataclass(frozen=True)
class Tilt:
    """A configuration against a reference: its score, and its model scored plainly."""

    name: str
    reference: str
    score: Verdict
    model: Verdict

    @property
    def decided(self) -> bool:
        return "undecided" not in (self.score.kind, self.model.kind)

    @property
    def hides_a_worse_model(self) -> bool:
        """By the means; `sure` says whether both are beyond doubt."""
        return self.score.mean < 0.0 < self.model.mean

    @property
    def sure(self) -> bool:
        return (self.score.kind, self.model.kind) == ("helps", "hurts")

    def sentence(self, scorer: str, rules: Rules) -> str:
        """`scorer`: who scores it."""
        score = f"{told(self.score)} than {self.reference}'s (p {p_text(rules.p_of(self.score))})"
        model = f"{told(self.model)} (p {p_text(rules.p_of(self.model))})"
        if not self.hides_a_worse_model:
            return f"{self.name}'s score is {score}; its packed model, scored plainly, is {model}."
        sure = "" if self.sure else " Not both are beyond doubt."
        return (
            f"A better score over a worse model: {self.name}'s score is {score}, but its packed model, "
            f"scored plainly, is {model}. The gain is {scorer or 'the scorer'}'s alone.{sure}"
        )


def told(v: Verdict) -> str:
    return f"{abs(v.mean):.4f} {'better' if v.mean < 0 else 'worse'}"


def tilt_of(results: Results, labels: tuple[str, str], seeds: Sequence[int], rules: Rules) -> Tilt:
    """`labels`: of the configuration and of the reference. Both questions are judged at `rules`' level."""
    both = [(a, b) for a, b in pairs(results, *labels, seeds) if not a.reason and not b.reason]
    models = [(links_of(a).get(PACKED), links_of(b).get(PACKED)) for a, b in both]
    score = judge([a.bpb - b.bpb for a, b in both], within=rules.within, level=rules.level)
    model = judge(
        [a - b for a, b in models if a is not None and b is not None], within=rules.within, level=rules.level
    )
    return Tilt(*labels, score, model)
