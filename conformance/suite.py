"""run(cls) -> Report: every check on one technique, each with its outcome and seconds; and the pairs."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from conformance import (
    data_checks,
    model_checks,
    optimizer_checks,
    scoring_checks,
    storage_checks,
    training_checks,
)
from conformance.lab import CRASHES, SEQ_LEN, Lab, NotApplicable, Violation, smoke_settings, write_corpus
from conformance.ranks import trace
from conformance.subject import MODEL_SEAMS, Subject
from techniques import catalog
from techniques.base import Technique, Unavailable, claims
from techniques.catalog import load

CHECKS = (
    *model_checks.CHECKS,
    *training_checks.CHECKS,
    *optimizer_checks.CHECKS,
    *data_checks.CHECKS,
    *storage_checks.CHECKS,
    *scoring_checks.CHECKS,
)
CHECK_NAMES = tuple(name for name, _ in CHECKS)


@dataclass
class Outcome:
    """What one check found."""

    check: str
    status: str  # passed, failed, skipped (nothing to look at) or unavailable (not on this machine)
    reason: str  # why it failed or does not apply; what a detector saw
    seconds: float


@dataclass
class Report:
    """What the suite found on one technique; the differences are against the baseline on the same bench."""

    technique: str
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    params_added: int | None = None
    bytes_added: int | None = None
    step_time_ratio: float | None = None
    bpb_added: float | None = None
    activity: str = ""
    verdict: str = ""
    trace: dict[str, Any] = field(default_factory=dict)  # one process' run, for the two ranks to match

    @property
    def failures(self) -> list[str]:
        return [f"{o.check}: {o.reason}" for o in self.outcomes if o.status == "failed"]

    @property
    def status(self) -> str:
        if self.failures:
            return "failed"
        return "unavailable" if any(o.status == "unavailable" for o in self.outcomes) else "passed"

    def add(self, check: str, status: str, reason: str = "", seconds: float = 0.0) -> None:
        self.outcomes.append(Outcome(check, status, " ".join(reason.split()), seconds))

    def as_json(self) -> dict[str, Any]:
        return {"status": self.status, "failures": self.failures, **dataclasses.asdict(self)}


@functools.cache
def shared_lab(folder: str, device: str, inductor: bool) -> Lab:
    """One bench per process; its baseline and golden losses come before any technique is built."""
    torch.set_num_threads(1)
    if device == "cuda":  # laws that say "bitwise" need kernels that always sum in one order
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True, warn_only=True)
    lab = Lab(Path(folder), device, inductor)
    assert lab.golden and lab.baseline
    return lab


def run(
    cls: type[Technique],
    settings: Mapping[str, Any] | None = None,
    *,
    lab: Lab | None = None,
    known: Mapping[str, type[Technique]] | None = None,
    only: Iterable[str] = (),
) -> Report:
    """Check one technique under `settings` (its `smoke` where they say nothing). `known` holds what it
    requires; `only` names the checks to make, all of them if empty."""
    if lab is None:
        with tempfile.TemporaryDirectory() as folder:
            own = Lab(write_corpus(Path(folder)))
            assert own.golden and own.baseline
            return run(cls, settings, lab=own, known=known, only=only)
    report, start = Report(cls.name), time.perf_counter()
    try:
        subject = Subject(lab, cls, known=known or {}, changes=settings)
        report.verdict = str(subject.technique.verdict().verdict)
    except CRASHES as error:
        report.add("construction", "failed", describe(error), time.perf_counter() - start)
        return report
    for name, check in CHECKS:
        if not only or name in only:
            examine(report, name, check, subject)
    measure(report, subject)
    report.seconds = time.perf_counter() - start
    return report


def examine(report: Report, name: str, check: Any, *args: Any) -> None:
    """One check, and its outcome in the report, whatever the technique's code does."""
    start = time.perf_counter()
    try:
        status, reason = "passed", check(*args) or ""
    except NotApplicable as error:
        status, reason = "skipped", str(error)
    except Unavailable as error:
        status, reason = "unavailable", str(error)
    except Violation as error:
        status, reason = "failed", str(error)
    except CRASHES as error:
        status, reason = "failed", describe(error)
    report.add(name, status, reason, time.perf_counter() - start)


def describe(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"


def measure(report: Report, subject: Subject) -> None:
    """The figures of the table, from the runs that the checks made."""
    if not subject.has_finished:
        return
    run, base = subject.run(), subject.lab.baseline
    assert run.score is not None and base.score is not None
    report.params_added = sum(w.numel() for w in run.weights.values())
    report.params_added -= sum(w.numel() for w in base.weights.values())
    report.bytes_added = len(run.artifact) - len(base.artifact)
    report.step_time_ratio = subject.lab.step_time_ratio(run)
    report.bpb_added = run.score.val_bpb - base.score.val_bpb
    report.activity = run.audit.report()[subject.name]["verdict"]


# -- what the pool's processes do: arguments and results travel between processes ---------------------------


def run_named(name: str, *, folder: str, device: str, inductor: bool) -> Report:
    """One technique of the catalogue, and its one-process trace for the two ranks to match."""
    lab = shared_lab(folder, device, inductor)
    start = time.perf_counter()
    report = Report(name)
    try:
        cls = load(name)
        known = {n: load(n) for n in cls.requires}
    except (*CRASHES, SyntaxError, StopIteration) as error:
        report.add("import", "failed", describe(error))
        return report
    report = run(cls, lab=lab, known=known)
    examine(report, "trace", lambda: report.trace.update(trace(lab, cls=cls, known=known)))
    report.outcomes = [o for o in report.outcomes if o.check != "trace" or o.status == "failed"]
    report.seconds = time.perf_counter() - start
    return report


def legal_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Two techniques that no slot, conflict or missing requirement keeps apart."""
    shelf, found = catalog.metadata(), []
    for pair in itertools.combinations(sorted(names), 2):
        needed = {*pair, *(r for n in pair for r in shelf[n].requires)}
        try:
            catalog.check_together({n: shelf[n]() for n in needed})
        except ValueError:
            continue
        found.append(pair)
    return found


def check_pair(pair: tuple[str, str], *, folder: str, device: str) -> str:
    """Construction and causality of two techniques together: the reason it fails, or nothing."""
    lab = shared_lab(folder, device, False)
    try:
        classes = {name: load(name) for name in pair}
        known = {**classes, **{r: load(r) for c in classes.values() for r in c.requires}}
        settings: dict[str, Any] = {}
        for cls in classes.values():
            settings |= smoke_settings(cls, known)
        model = lab.build(lab.resolve(settings, known))
        if any(set(claims(cls)) & {*MODEL_SEAMS, "init"} for cls in classes.values()):
            model_checks.probe_causality("", model, lab.ids(2, SEQ_LEN))
    except (Violation, *CRASHES) as error:
        return describe(error).removeprefix("Violation: ")
    return ""
