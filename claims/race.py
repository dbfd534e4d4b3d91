"""race(runner, ...) -> {arm: {seed: Run}}: the same seeds through every arm, several at once, until nothing
is left to tell. Seeds are judged in the order of the plan, never in that of their ends: what is decided does
not depend on which run is quicker.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from claims.runs import Run, Runner
from search.common.errors import Interrupted

Results = Mapping[str, Mapping[int, Run]]
Settled = Callable[[Results], set[str]]  # arms that need no more runs
Tell = Callable[[str, Run], None]  # after each new run
Task = tuple[int, tuple[str, ...]]  # a seed, and the arms that run it one after the other
Pick = Callable[[Results, Sequence[Task], set[str]], Task | None]  # of a task each group; None: none starts


@dataclass
class Chains:
    """Which arms run one after the other on a seed, because a later one takes over the training of an
    earlier one."""

    groups: list[list[str]] = field(default_factory=list[list[str]])

    @classmethod
    def of(cls, labels: Sequence[str], training: Callable[[str], str]) -> "Chains":
        found: dict[str, list[str]] = {}
        for label in labels:
            found.setdefault(training(label), []).append(label)
        return cls(list(found.values()))


def first(results: Results, tasks: Sequence[Task], done: set[str]) -> Task:
    """Seed by seed."""
    return tasks[0]


@dataclass(frozen=True)
class Course:
    """How far a race goes, and in which order."""

    seeds: Sequence[int]
    settled: Settled
    pick: Pick = first


def race(
    runner: Runner, seeds: Sequence[int], *, settled: Settled, tell: Tell, pick: Pick = first
) -> Results:
    """Every arm's runs. Raises what a run raises; KeyboardInterrupt once nothing of it is left."""
    labels = list(runner.arms)
    results = runner.kept(seeds)  # all of them: what ended beside a decision counts when one asks again
    chains = Chains.of(labels, runner.training)
    if len(chains.groups) == len(labels):
        runner.reuse = None  # nothing to share: fresh seeds would only push a study's stages out
    tasks = [(seed, tuple(group)) for seed in seeds for group in chains.groups]

    def one(task: Task, skip: set[str]) -> None:
        seed, group = task
        for label in group:
            if label not in skip and seed not in results[label]:
                results[label][seed] = runner.run(label, seed)
                tell(label, results[label][seed])

    def next_task(done: set[str]) -> Task | None:
        """Of the first seed that is left to each group which still tells something."""
        heads: dict[tuple[str, ...], Task] = {}
        for task in tasks:
            if not done.issuperset(task[1]):
                heads.setdefault(task[1], task)
        ordered = sorted(heads.values(), key=tasks.index)
        return pick(results, ordered, done) if ordered else None

    running: set[Future[None]] = set()
    with closing(runner), ThreadPoolExecutor(runner.place.workers) as pool:
        try:
            while len(done := settled(results)) < len(labels):
                while len(running) < runner.place.workers and (task := next_task(done)) is not None:
                    tasks.remove(task)
                    running.add(pool.submit(one, task, done))
                if not running:
                    break
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()
        finally:  # decided, or Ctrl-C: what still runs is not waited for
            runner.stopping.set()
    for future in running:
        if (error := future.exception()) is not None and not isinstance(error, Interrupted):
            raise error
    return results


def in_order(results: Results, label: str, seeds: Sequence[int]) -> list[Run]:
    """An arm's runs up to the first seed that it has none of."""
    found = list[Run]()
    for seed in seeds:
        if seed not in results[label]:
            break
        found.append(results[label][seed])
    return found


def pairs(results: Results, new: str, base: str, seeds: Sequence[int]) -> list[tuple[Run, Run]]:
    """(new, base) on each seed in order, as far as both have a run."""
    both = zip(in_order(results, new, seeds), in_order(results, base, seeds), strict=False)
    return list(both)


def differences(found: Sequence[tuple[Run, Run]], figure: str = "val_bpb") -> list[float]:
    """new - base where both have a score."""
    return [a.of(figure) - b.of(figure) for a, b in found if not a.reason and not b.reason]


def loss_of(bpb: float, figures: Mapping[str, Any]) -> float:
    """Nats per token of a BPB, at the bytes per token of these figures of a run."""
    return bpb * float(figures.get("val_loss", math.nan)) / float(figures["val_bpb"])


def nats(found: Sequence[tuple[Run, Run]], *, one_text: bool) -> list[float]:
    """new - base in nats per token where both have a score. A token of another tokenizer or of other data
    (not `one_text`) is another piece of text: then it is the difference in BPB, at the bytes per token of the
    new arm's own runs."""
    if one_text:
        return differences(found, "val_loss")
    both = [(a, b) for a, b in found if not a.reason and not b.reason]
    return [a.of("val_loss") - loss_of(b.bpb, a.figures or {}) for a, b in both]


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """nan for the mean of none and the sd of one."""
    d = np.asarray(values, dtype=float)
    return (float(d.mean()) if d.size else float("nan")), (
        float(d.std(ddof=1)) if d.size > 1 else float("nan")
    )
