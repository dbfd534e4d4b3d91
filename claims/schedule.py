"""Schedule: which run comes next: the arm that is soonest and most cheaply decided, until the time is over.

An arm's worth is one decision over the seeds that it probably still needs; the cost of a task is the seconds
of its arms, and of the base's run where that seed has none yet. The highest
quotient goes first: "weighted shortest processing time" (Smith 1956), which tells most in the least time.
What is decided does not depend on the order: the test of each arm holds whenever one stops.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from claims.race import Results, Task, mean_sd

OUT_OF_REACH = 0.01  # worth of an arm that these seeds will probably not tell, over one that they will
SPARE = 0.3  # of a run beyond those that will probably tell, which others may make needless
UNKNOWN_SECONDS = 1.0  # of a run before any has ended: all are equal then


@dataclass
class Clock:
    """The seconds that a question may take; no run starts that would end later."""

    limit_s: float
    stopped: bool = False  # whether it kept a run from starting
    began_s: float = field(default_factory=time.monotonic)

    def allows(self, seconds: float) -> bool:
        fits = time.monotonic() - self.began_s + seconds <= self.limit_s
        self.stopped = self.stopped or not fits
        return fits

    @property
    def sentence(self) -> str:
        minutes = f"{self.limit_s / 60:g} minute{'' if self.limit_s == 60.0 else 's'}"
        return f"Stopped for the time ({minutes}); the same command goes on from here."


@dataclass(frozen=True)
class Schedule:
    """A `Pick` of claims/race.py."""

    base: str
    seeds: Sequence[int]
    more: Callable[
        [Results], Mapping[str, tuple[int, int]]
    ]  # undecided arm -> (seeds it has, would need more)
    clock: Clock

    def __call__(self, results: Results, tasks: Sequence[Task], done: set[str]) -> Task | None:
        own = next((task for task in tasks if self.base in task[1]), None)
        more = self.more(results)

        def before(task: Task) -> bool:
            return own is not None and self.seeds.index(own[0]) <= self.seeds.index(task[0])

        def cost(task: Task) -> float:
            first = seconds_of(results, own[1], done) if own is not None and before(task) else 0.0
            return first + (0.0 if task == own else seconds_of(results, task[1], done))

        def index(task: Task) -> float:
            at = self.seeds.index(task[0])
            return sum(self.worth(at, *more[label]) for label in task[1] if label in more) / cost(task)

        chosen = max(tasks, key=index)  # the first of equals: the lowest seed
        chosen = own if own is not None and before(chosen) else chosen
        return chosen if self.clock.allows(cost(chosen) if any(results.values()) else 0.0) else None

    def worth(self, at: int, has: int, more: int) -> float:
        """Of the seed at this place for an arm."""
        reach = 1.0 if has + more <= len(self.seeds) else OUT_OF_REACH
        needed = 1.0 if at < has + more else SPARE
        return reach * needed / max(1, more)


def seconds_of(results: Results, labels: Sequence[str], done: set[str]) -> float:
    """On the clock, of one seed of arms that run one after the other, those that are done left out: means of
    an arm's runs, of all runs where it has none. One that takes over a training has its own part alone."""

    def known(label: str) -> list[float]:
        values = [run.of("true_seconds") for run in results[label].values() if not run.reason]
        return [value for value in values if math.isfinite(value)]

    def mean(label: str) -> float:
        found = known(label) or [value for other in results for value in known(other)]
        return mean_sd(found)[0] if found else UNKNOWN_SECONDS

    return max(1e-6, sum(mean(label) for label in labels if label not in done))
