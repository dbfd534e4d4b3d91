"""What the dashboard shows of a trial: short texts, curves over steps, a note; what is stored stays."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial

from search.report.shown import LONGEST, Course, course_of, curve_of, note_of, shown_attributes, shown_trial
from search.study.limits import LIMITS, Limits
from search.study.load import find_study
from search.workers.record import trial_note
from tests.pages.made_up import made_up_trials
from tests.search.fake_studies import write_study

FINISHED: dict[str, Any] = {"outcome": "finished", "val_bpb": 2.5, "artifact_bytes": 9, "legality": "legal"}
NUMBERS = (int, float)


def limits() -> Limits:
    return Limits(artifact_bytes=100, train_seconds=10.0, eval_seconds=3.0)


def first_line(**facts: Any) -> str:
    return trial_note(FINISHED | facts, limits()).splitlines()[0]


def test_a_notes_first_line_says_what_became_of_the_trial() -> None:
    seconds = {"train_seconds": 9.0, "eval_seconds": 2.0}
    assert first_line(**seconds) == "**2.5000 bits per byte, within all limits**"
    over = first_line(**seconds | {"eval_seconds": 4.2})
    assert over == "**over a limit: evaluation 4.2 s of 3.0**"
    both = first_line(train_seconds=10.004, eval_seconds=2.0, artifact_bytes=101)
    assert both == "**over a limit: artifact 101 bytes of 100; training 10.004 s of 10.000**"
    for outcome, reason in (("pruned", "given up at 50%"), ("failed", "diverged: a|b *c* <d>\n$e$")):
        line = first_line(outcome=outcome, reason=reason)
        assert line.startswith(f"**{outcome}: ") and ("\\|b" in line) == (outcome == "failed")
    assert first_line(outcome="pruned", reason="") == "**pruned**"


def test_a_notes_audit_is_a_small_table() -> None:
    on = [f"technique_{k}" for k in range(20)]
    note = trial_note(
        FINISHED | {"techniques": on, "inactive": {"technique_3": "inactive: no | change"}}, limits()
    )
    rows = [line for line in note.splitlines() if "technique" in line]
    assert rows[0] == "| audit | techniques |" and rows[1] == "| inactive: no \\| change | technique_3 |"
    assert rows[2].startswith("| active | technique_0, ") and len(rows) == 3
    assert "not judged" in trial_note({"outcome": "pruned", "techniques": on}, limits())


def test_every_attribute_is_short_and_what_is_stored_stays(tmp_path: Path) -> None:
    trials = made_up_trials(60)
    before = copy.deepcopy([(t.user_attrs, t.intermediate_values, t.values) for t in trials])
    course = course_of(trials, 4)
    given = find_study(write_study(tmp_path, "shown")).limits
    for trial in trials:
        shown = shown_trial(trial, course)
        for name, value in shown.user_attrs.items():
            assert isinstance(value, NUMBERS) or (len(value) <= LONGEST and "{" not in value), name
        assert shown.user_attrs.get("outcome") != "finished", "beside 'over a limit'"
        assert "config" not in shown.user_attrs and next(iter(shown.user_attrs)) in ("reason", "legality")
        over = max(trial.constraints.values()) > 0.0  # under limits that are not the file's any more
        first = note_of(trial, given).splitlines()[0]
        kept = " bits per byte, within all limits" in first or first.startswith("**over a limit: ")
        if trial.state == TrialState.COMPLETE:
            assert kept and first.startswith("**over a limit: ") == over, first
        else:
            assert first.startswith(("**pruned: ", "**failed: ")), first
        assert max(shown.intermediate_values, default=100) <= 100 and shown.params == trial.params
        assert trial.state != TrialState.COMPLETE or 100 in shown.intermediate_values
    assert before == [(t.user_attrs, t.intermediate_values, t.values) for t in trials]


@pytest.mark.parametrize("odd", [None, 3, "text", [1], {"a": [{"b": "c" * 900}]}, {"seconds": None}, [["x"]]])
def test_an_attribute_of_another_version_is_shown_as_it_is(odd: Any) -> None:
    names = ("stages", "overhead", "bpb_chain", "learnt", "confirmed", "whatever")
    shown = shown_attributes(dict.fromkeys(names, odd))
    assert all(len(str(value)) <= LONGEST for value in shown.values())
    json.dumps(shown)


def test_a_curve_is_over_steps_where_anybody_knows_them() -> None:
    early = {1: 3.0, 2: 2.8}
    pruned = create_trial(state=TrialState.PRUNED, intermediate_values=early)
    assert curve_of(pruned, Course(100.0, 4)) == ((25.0, 3.0), (50.0, 2.8))
    assert curve_of(pruned, Course(0.0, 4)) == () and curve_of(pruned, Course(100.0, 0)) == ()
    assert shown_trial(pruned, Course()).intermediate_values == early, "as it was"
    told = create_trial(value=2.5, user_attrs={"steps": 80, "reports": [[0.5, 2.9, 1.0], [1.0, 2.7, 0.0]]})
    assert curve_of(told, Course(100.0, 4)) == ((40.0, 2.9), (80.0, 2.5))


def test_the_limits_of_the_table_all_have_their_words() -> None:
    for limit in LIMITS:
        assert limit.excess(4.2, 3.0).startswith(f"{limit.label} 4") and " of 3" in limit.excess(4.2, 3.0)
