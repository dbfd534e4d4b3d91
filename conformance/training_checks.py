"""Checks of a run: off is the baseline bitwise, warm-up leaves no trace, the loss falls, it is active."""

from __future__ import annotations

from itertools import pairwise

from conformance.lab import SHORT, NotApplicable, Violation
from conformance.subject import Subject
from techniques.base import Batch, Verdict, claims


def off(subject: Subject) -> None:
    """Switched off, after it has been built and run in this process, it leaves the baseline's losses bitwise;
    switched on, it leaves everybody else's initial values bitwise (unless `init` is its business; what it
    gives another size, or takes away, at `sizes` is its own)."""
    lab = subject.lab
    golden = lab.golden
    built = dict(lab.build(subject.resolved).named_parameters())
    if not any("init" in claims(t) for t in subject.resolved.techniques.values()):
        for name, p in lab.build(subject.without()).named_parameters():
            if "sizes" in claims(subject.cls) and (name not in built or built[name].shape != p.shape):
                continue
            if name not in built:
                raise Violation(f"switched on, it takes parameter {name} away")
            if not bool((built[name] == p).all()):
                raise Violation(f"switched on, it changes the initial values of {name}, which is not its own")
    losses = lab.train(lab.resolve({subject.name: False}, subject.known, **SHORT)).losses
    if losses != golden:
        raise Violation(f"switched off, the losses are {losses}, but the baseline's are {golden}")


def warm_up(subject: Subject) -> None:
    """Warm-up steps leave no trace: the losses after two of them are those after none."""
    with_none = subject.short
    with_some = subject.lab.train(subject.resolve(**{**SHORT, "warmup_steps": 2})).losses
    if with_some != with_none:
        raise Violation(f"losses are {with_some} after two warm-up steps, but {with_none} after none")


def learns(subject: Subject) -> None:
    """Some steps lower the loss."""
    losses = subject.run().losses
    first, last = losses[0], sum(losses[-3:]) / 3
    if not last < first - 0.2:
        raise Violation(f"{len(losses)} steps brought the loss from {first:.3f} to {last:.3f} nats only")


def activity(subject: Subject) -> None:
    """The run's own audit says that the technique did something."""
    verdict = subject.run().audit.report()[subject.name]["verdict"]
    if verdict != "active":
        raise Violation(f"the activity audit says {verdict}")


def reads(subject: Subject) -> str | None:
    """The run's ledger finds no read that the rules forbid; of an illegal scorer it finds one."""
    found, verdict = subject.run().findings, subject.technique.verdict().verdict
    if found and verdict in (Verdict.LEGAL, Verdict.LEGAL_IF_TIMED):
        raise Violation(f"{'; '.join(found)}, but the verdict is {verdict}")
    if not found and verdict is Verdict.ILLEGAL and subject.enters("scorer"):
        raise Violation("the verdict is illegal, but no read is on the ledger that the rules forbid")
    return f"as its verdict says: {'; '.join(found)}" if found else None


def phases(subject: Subject) -> str:
    """Between the progresses that it declares neither a step's size nor the layers' order changes, and the
    last one's stand at the end."""
    if not subject.enters("batch", "plan"):
        raise NotApplicable("no graph of it changes")
    for label, one in subject.variants:
        technique = one.technique
        c = one.resolved.config
        full = Batch(c.train_batch_tokens, c.train_seq_len)
        plan = technique.plan(one.resolved.shape()) if one.enters("plan") else lambda _progress: ()
        borders = [0.0, *technique.phases(), 1.0]
        seen = [[(technique.batch(full, p), plan(p)) for p in (a, (a + b) / 2)] for a, b in pairwise(borders)]
        ends = [*seen[-1], (technique.batch(full, 1.0), plan(1.0))]
        for (a, b), (first, middle) in zip(pairwise(borders), seen, strict=True):
            if first != middle:
                raise Violation(f"{label}it changes from {first} to {middle} between {a} and {b}")
        if ends[-1] != ends[0]:
            raise Violation(f"{label}its last phase gives {ends[0]}, the end {ends[-1]}")
        if any(one_phase[0] == next_phase[0] for one_phase, next_phase in pairwise(seen)):
            raise Violation(f"{label}it declares a phase in which nothing changes")
    return f"{len(seen)} phases"


CHECKS = (
    ("off", off),
    ("warm-up", warm_up),
    ("learns", learns),
    ("activity", activity),
    ("reads", reads),
    ("phases", phases),
)
