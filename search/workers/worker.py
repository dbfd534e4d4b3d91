"""`python -m search.workers.worker`: asks for a trial, runs it as a trainer process, tells; until the target.

A trial ends as COMPLETE (value: val_bpb), as PRUNED (given up on, or the configuration failed: then the
constraint `run` is violated and TPE learns from it), or as FAIL (the machine's fault; its configuration is
tried again). Its constraints are set in every case. SIGTERM, SIGINT or the end of --lifeline's stdin stop it:
the trainer is killed, the configuration queued again. Exit status: 0 done or stopped, 1 too many failures, 2
a problem that only a person can solve (`error: ...` on stderr).
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.exceptions import TrialPruned
from optuna.trial import FrozenTrial, Trial

from search.common.attributes import (
    CACHE_NOTES,
    OUTCOME,
    OVERHEAD,
    PRIOR,
    REPLICATE,
    RETRY_HISTORY,
    SPARED,
    TRACKING,
    UNUSED,
    WORKER,
)
from search.common.console import quiet_log, redact
from search.common.errors import Interrupted, TooManyFailures, UsedUp
from search.common.options import WorkerSpec
from search.costs.preflight import costs_of
from search.pruning.pruner import Pruner, remember
from search.samplers.caddie import CaddieSampler
from search.samplers.checkpoints import StageChooser
from search.samplers.choose import sampled_by
from search.session.passport import check_joining, hardware_here
from search.session.session import Session, baseline_of, open_session
from search.space.native import build_space
from search.stage_cache.reuse import REPLAYED, Fill, Reuse, open_reuse
from search.storage.bulk import collected
from search.storage.patient import MAX_RETRY
from search.study.limits import set_all, violations
from search.study.load import find_study
from search.trackers.feed import Feed
from search.trainers.files import Record, changed
from search.trainers.process import DiskTrouble, Outcome, TrainerCrashed, run_trainer
from search.trainers.trainer import trainer_of
from search.workers import prepare, record
from search.workers.exact import Hooks, locked, run_exactly
from search.workers.prepare import read_command, trainer_job
from search.workers.prior import sources_of
from search.workers.warm_start import find_warm_start, teach_baseline
from techniques import catalog

SAME_REFUSALS = 5  # in a row, in the same words: then it is not the configurations
log = logging.getLogger(__name__)


@dataclass
class Clock:
    """Seconds of one trial that are not the trainer's work."""

    told_at: float = field(default_factory=time.perf_counter)  # when the trial before was done with
    finished_at: float = 0.0  # when its objective returned
    tell_s: float = 0.0
    ask_s: float = 0.0
    sample_s: float = 0.0
    store_s: float = 0.0

    def summary(self, outcome: Outcome) -> dict[str, float]:
        """What is kept as `overhead`: all between ask and tell that is not training, quantising, packing or
        scoring. The tell is the one of the trial before: its own is still to come."""
        whole_s = time.perf_counter() - self.told_at + self.tell_s
        result = outcome.result or {}
        true_s = float(result.get("true_seconds") or outcome.process_s)
        idle = {"data", *(result.get("reused") or ())}
        stages: Mapping[str, Mapping[str, float]] = result.get("stage_seconds") or {}
        work_s = sum(float(clocks["true"]) for name, clocks in stages.items() if name not in idle)
        parts = {
            "ask_s": self.ask_s,
            "sample_s": self.sample_s,
            "start_s": max(0.0, outcome.process_s - true_s),
            "setup_s": max(0.0, true_s - work_s) if stages else 0.0,  # its data, its script
            "store_s": self.store_s,
            "tell_before_s": self.tell_s,
        }
        known_s = sum(parts.values())
        other_s = whole_s - outcome.process_s - known_s + parts["start_s"] + parts["setup_s"]
        parts |= {"other_s": max(0.0, other_s), "report_s": outcome.report_s}  # beside the trainer's work
        shown = {name: round(seconds, 4) for name, seconds in parts.items()}
        share = (known_s + parts["other_s"]) / whole_s
        return shown | {"process_s": round(outcome.process_s, 3), "share": round(share, 4)}


class Worker:
    """One worker of a study; `stopping` may be set from anywhere."""

    def __init__(self, session: Session, spec: WorkerSpec, *, reuse: Reuse | None = None):
        self.session = session
        self.spec = spec
        self.reuse = reuse
        self.trainer = session.trainer
        self.study = session.study
        self.space = build_space(self.study, catalog.metadata())
        self.hardware = hardware_here(self.study, num_threads=spec.threads, environ=os.environ)
        share = self.study.sampler.reuse
        chooser = StageChooser(self.space, share, reuse.has_training) if reuse and share else None
        preflight = costs_of(self.trainer, self.study, self.hardware)
        self.baseline = baseline_of(session.optuna_study) or {}
        find_warm_start(session, self.hardware).apply(preflight)
        teach_baseline(preflight, self.space, self.baseline)
        asked = PRIOR in session.optuna_study.user_attrs and self.study.sampler.kind == "structured"
        sources = sources_of(session, self.hardware) if asked else ()
        self.sampler = CaddieSampler(
            self.space, preflight, stages=chooser, sources=sources, planned=spec.target
        )
        self.pruner = Pruner(self.study.pruning, exact=self.trainer.keeps_stages)
        self.hidden = self.trainer.hidden()
        self.warm = prepare.warm_trainers(session, spec)
        self.code_check: Callable[[], str] = lambda: ""  # says why no trial may run on this code
        self.name = f"{os.uname().nodename}:{os.getpid()}:{spec.index}"
        self.stopping = threading.Event()
        self.lost = threading.Event()  # the running trial was given to somebody else
        self.fatal = ""
        self.refusals: list[str] = []
        self.clock = Clock()
        self.feeds = [Feed(name, session.folders, self.complain) for name in self.study.trackers]

    def run(self) -> None:
        study = self.session.optuna_study
        study.sampler = self.sampler
        target = self.spec.target
        url = self.session.url
        self.sampler.claim = locked(study, url)
        hooks = Hooks(self.after_trial, self.lost, lambda: self.sampler.more(study))
        try:
            run_exactly(study, self.objective, target=target, url=url, stop=self.should_stop, hooks=hooks)
        finally:
            if self.warm:
                self.warm.close()
            for feed in self.feeds:
                feed.close(wait=not self.should_stop())

    def complain(self, trouble: str) -> None:
        """Of a tracker, for the launcher to tell."""
        log.warning(trouble)
        self.session.optuna_study.set_user_attr(TRACKING, redact(trouble))

    def should_stop(self) -> bool:
        return self.stopping.is_set() or bool(self.fatal)

    def should_leave(self) -> bool:
        return self.lost.is_set() or self.should_stop()

    def after_trial(self, trial: FrozenTrial) -> None:
        now = time.perf_counter()
        self.clock = Clock(told_at=now, tell_s=now - self.clock.finished_at)
        for feed in self.feeds:
            feed.tell(trial)

    def objective(self, trial: Trial) -> float:
        """val_bpb of the trial's configuration; raises what run_exactly understands."""
        began = time.perf_counter()
        self.clock.ask_s = began - self.clock.told_at
        result, failure = None, "it had no chance to end"
        try:
            outcome = self.run_trial(trial)
            result, failure = outcome.result, outcome.reason if outcome.kind == "failed" else None
        finally:
            with collected(trial):
                set_all(trial, violations(result, self.study.limits, failure=failure))
            self.clock.finished_at = time.perf_counter()
        if outcome.kind != "finished" or outcome.result is None:
            raise TrialPruned(outcome.reason)
        return float(outcome.result["val_bpb"])

    def run_trial(self, trial: Trial) -> Outcome:
        began = time.perf_counter()
        trial.set_user_attr(WORKER, self.name)  # first: so that our trial is found when we die
        try:
            _ = trial.relative_params  # sampled and stored at once: no other worker takes the same
        except UsedUp:
            trial.set_user_attr(OUTCOME, UNUSED)
            raise
        with collected(trial):
            params = self.space.suggest(trial)
            resolved = self.space.resolve(params)
            config = self.config_of(params, resolved.values)
            run = resolved
            if again := trial.user_attrs.get(REPLICATE):
                config, run = self.trainer.seeded(config, resolved, int(again["seed"]))
            legality = self.trainer.legality(resolved)
            record.started(trial, config=config, resolved=resolved, legality=legality)
        self.clock.sample_s = time.perf_counter() - began
        reused = self.reuse.around(trial, run, self.session.folders) if self.reuse else nullcontext()
        with reused as fill:
            outcome = self.run_process(trial, config, fill)
        began = time.perf_counter()
        with collected(trial, until_told=True):
            record.ended(trial, outcome, limits=self.study.limits, hardware=self.hardware)
            if self.reuse and self.reuse.store.notes:
                trial.set_user_attr(CACHE_NOTES, self.reuse.store.notes)
                self.reuse.store.notes = []
            try:
                record.show(trial, outcome, self.session.folders, limits=self.study.limits)
                self.session.folders.forget_weights(trial.number)
            except OSError as error:
                raise self.disk_trouble(f"{error.filename or 'the disk'}: {error.strerror}") from error
            self.clock.store_s = time.perf_counter() - began
            trial.set_user_attr(OVERHEAD, self.clock.summary(outcome))
        self.watch_refusals(outcome)
        return outcome

    def config_of(self, params: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """config.json: with a thread for each worker's share of the cores when the study does not say."""
        config = self.trainer.complete(self.space.config(params))
        if not values.get("num_threads"):
            config["num_threads"] = self.spec.threads
        return config

    def run_process(self, trial: Trial, config: Mapping[str, Any], fill: Fill | None) -> Outcome:
        if problem := self.code_check():
            self.fatal = problem
            raise Interrupted(problem)
        folder = self.session.folders.trial(trial.number)
        job = trainer_job(self.session, self.spec, folder=folder, config=config, hidden=self.hidden)

        def on_report(point: Record, reports: tuple[Record, ...]) -> str | None:
            step = int(float(point["progress"]) * self.study.num_reports + 0.05)
            with collected(trial):
                trial.report(float(point["val_bpb"]), step)
                if REPLAYED not in point:  # one training is one standard, however many take it over
                    remember(trial, reports)
            if REPLICATE in trial.user_attrs:  # a mean of the seeds that were not given up tells nothing
                return None
            verdict = self.pruner.verdict(self.session.optuna_study, trial.number, reports)
            if verdict is not None and verdict.spared:
                trial.set_user_attr(SPARED, verdict.facts)
            return None if verdict is None or verdict.spared else verdict.reason

        try:
            job = replace(job, fill=fill, warm=self.warm)
            outcome = run_trainer(job, on_report=on_report, stop=self.should_leave)
            return record.judged(outcome, self.baseline)
        except DiskTrouble as error:
            raise self.disk_trouble(error) from error
        except TrainerCrashed as error:
            storage, trial_id = trial.storage, trial._trial_id  # pyright: ignore[reportPrivateUsage]
            tried = len(storage.get_trial_system_attrs(trial_id).get(RETRY_HISTORY, []))
            if tried < MAX_RETRY:
                raise
            return Outcome("failed", reason=f"crashed {tried + 1} times: {error}")

    def disk_trouble(self, error: object) -> Interrupted:
        """Ends the session: no trial can be kept until somebody helps."""
        self.fatal = (
            f"Trials must be able to write, but {error}. Free some space or fix the permissions, and run "
            "the same command to go on; nothing stored is lost."
        )
        return Interrupted(str(error))

    def watch_refusals(self, outcome: Outcome) -> None:
        """The same refusal again and again is not the configurations' fault: the corpus is gone, say."""
        blamed = outcome.kind == "failed" and outcome.reason.startswith(("refused: ", "crashed "))
        self.refusals = [*self.refusals, outcome.reason] if blamed else []
        last = self.refusals[-SAME_REFUSALS:]
        if len(last) == SAME_REFUSALS and len(set(last)) == 1:
            self.fatal = (
                f"The trainer must take what the study samples, but {SAME_REFUSALS} trials in a row ended "
                f"in the same way: {last[0]} Fix that, and run the same command to go on."
            )


def watch_lifeline(stopping: threading.Event) -> None:
    while os.read(0, 1024):
        continue
    stopping.set()


def main(argv: list[str]) -> int:
    spec, lifeline = read_command(argv)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stopping.set())
    if lifeline:
        threading.Thread(target=watch_lifeline, args=(stopping,), daemon=True).start()
    quiet_log()
    try:
        study = sampled_by(find_study(spec.study), spec.sampler)
        trainer = trainer_of(study, spec.trainer)
        trainer.check()
        session = open_session(
            study, home=spec.home, storage=None, environ=os.environ, worker=True, trainer=trainer
        )
        code = check_joining(session, mixed=spec.mixed)
        keeps = trainer.keeps_stages
        reuse = open_reuse(spec, ranks=study.gpus_per_trial, environ=os.environ) if keeps else None
        if spec.prepare:
            session = prepare.machine(session, spec)
        worker = Worker(session, spec, reuse=reuse)
        worker.code_check = lambda: "" if spec.mixed else changed(trainer.code_files(), code)
        worker.stopping = stopping
        worker.run()
    except (TooManyFailures, ValueError) as error:
        print(f"error: {redact(error)}", file=sys.stderr)
        return 1 if isinstance(error, TooManyFailures) else 2
    if worker.fatal:
        print(f"error: {redact(worker.fatal)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
