"""What of a trial is overhead: all between ask and tell that is no stage's work."""

from __future__ import annotations

import time

import pytest

from search.trainers.process import Outcome
from search.workers.worker import Clock

STAGES = {"data": 0.5, "train": 6.0, "quantize": 0.5, "pack": 0.25, "evaluate": 1.0}


def clock(whole_s: float) -> Clock:
    """Of a trial that began so long ago."""
    return Clock(told_at=time.perf_counter() - whole_s, tell_s=0.1, ask_s=0.1, sample_s=0.2, store_s=0.1)


def outcome(**changes: object) -> Outcome:
    stages = {name: {"timed": s, "true": s} for name, s in STAGES.items()}
    result = {"true_seconds": 9.0, "stage_seconds": stages, "reused": []} | changes
    return Outcome("finished", result=result, process_s=10.0, report_s=0.3)


def test_what_is_no_stage_is_overhead() -> None:
    told = clock(11.0).summary(outcome())
    assert (told["start_s"], told["setup_s"]) == (1.0, 1.25)  # the data are no work, nor is the script
    assert told["other_s"] == pytest.approx(0.6, abs=0.01)  # finished stages, files, waiting for a poll
    assert told["share"] == pytest.approx((11.1 - 7.75) / 11.1, abs=0.002)


def test_a_stage_that_was_taken_over_is_no_work_of_this_trial() -> None:
    told = clock(5.0).summary(outcome(reused=["train", "quantize", "pack"], true_seconds=3.0))
    assert told["setup_s"] == 2.0


def test_a_trial_without_a_result_has_worked_as_long_as_its_process() -> None:
    told = clock(11.0).summary(Outcome("pruned", reason="worse", process_s=10.0))
    assert told["start_s"] == told["setup_s"] == 0.0 and told["share"] == pytest.approx(1.1 / 11.1, abs=0.002)
    nothing = clock(0.4).summary(Outcome("pruned", reason="worse"))  # recorded reports pruned it
    assert nothing["share"] == pytest.approx(1.0)
