"""Leaderboard, counts and facts on trials made by hand: no database, no trainer."""

from __future__ import annotations

import io
import shlex
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from search.common.console import counted, make_console
from search.common.paths import Folders
from search.common.tables import TableConsole
from search.report.leaderboard import print_leaderboard
from search.report.progress import Progress, duration
from search.report.rows import overhead_of_study, overhead_text, ranked, snapshot
from search.report.status import print_status
from search.report.trial import print_trial, shortcoming
from search.session.session import Session
from search.study.load import find_study
from search.study.model import Price
from search.trainers.trainer import trainer_of
from tests.search.fake_studies import write_study

GOOD = {"bytes": -0.1, "train": -0.1, "eval": -0.1, "run": -1.0}


def trial_of(
    value: float | None, state: TrialState = TrialState.COMPLETE, *, broken: str = "", **attrs: Any
) -> FrozenTrial:
    figures = {"artifact_bytes": 1_900_000, "slack_bytes": 100_000, "train_seconds": 9.5, "eval_seconds": 1.5}
    return create_trial(
        state=state,
        value=value,
        params={"matrix_lr": 0.02},
        distributions={"matrix_lr": FloatDistribution(0.01, 0.1)},
        constraints=GOOD | ({broken: 0.5} if broken else {}),
        user_attrs=figures
        | {"steps": 1200, "techniques": ["xsa", "ema"], "config": {"matrix_lr": 0.02}}
        | attrs,
    )


@pytest.fixture
def session(tmp_path: Path) -> Session:
    study = find_study(write_study(tmp_path, "told"))
    stored = optuna.create_study()
    stored.add_trial(trial_of(2.10, inactive={"ema": "inactive: weights did not change"}))
    stored.add_trial(trial_of(1.90, broken="bytes"))
    stored.add_trial(trial_of(2.05, rejections={"bytes": 3, "duplicate": 1}))
    stored.add_trial(trial_of(None, TrialState.PRUNED, broken="run", reason="diverged: train_loss is nan"))
    stored.add_trial(trial_of(None, TrialState.PRUNED))
    stored.add_trial(trial_of(None, TrialState.FAIL))
    return Session(study, Folders(tmp_path, "told"), "", stored, trainer_of(study))


def printed(show: Any, *arguments: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(console, *arguments)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_feasible_first_whatever_the_infeasible_score(session: Session) -> None:
    good, bad = ranked(session.optuna_study.trials)
    assert [t.number for t in good] == [2, 0] and [t.number for t in bad] == [1]


def test_leaderboard_has_units_noise_and_the_way_to_repeat_it(session: Session) -> None:
    text = printed(print_leaderboard, session)
    assert "2 feasible trials; limits 2,000,000 bytes, 100 s training, 100 s evaluation; track open" in text
    assert "slack, bytes" in text and "train, s" in text and "1,200" in text and "Infeasible: 1 trial" in text
    assert "xsa, ema!" in text  # on, but changed nothing
    assert "0.005 to 0.010" in text and "not a claim" in text
    path = session.folders.trial(2) / "config.json"
    assert f"python train_gpt.py {shlex.quote(str(path))}" in text
    assert path.exists()  # written anew: the trial's folder is not on this machine


def test_snapshot_counts_each_kind(session: Session) -> None:
    seen = snapshot(session.optuna_study.trials, 10)
    assert (seen.complete, seen.infeasible, seen.rejected, seen.pruned, seen.failed) == (3, 1, 1, 1, 1)
    assert seen.finished == 5 and seen.resampled == 4
    assert seen.best is not None and seen.best.number == 2
    assert seen.over == {"artifact": 1} and seen.infeasible_text == "1 over a limit (artifact 1)"


def test_the_limits_that_trials_broke_are_counted_and_named(session: Session) -> None:
    """By limit, with figures of the newest; one trial may break two; a trial of before tells too."""
    over = {"artifact_bytes": 2_100_000, "train_seconds": 200.0}
    trial = trial_of(1.7, broken="bytes", **over)
    session.optuna_study.add_trial(trial)
    for k in range(7):
        session.optuna_study.add_trial(trial_of(1.8, broken="train", train_seconds=101.0 + k))
    status = printed(print_status, session)
    board = printed(print_leaderboard, session)
    assert "4 configurations resampled before running (" in " ".join(status.split())  # and why
    for text in (status, board):
        assert "(artifact 2, training 7)" in text
        assert "over a limit: 7 × training (…; #9: 103.0 of 100 s; " in text or text is board
        assert "#6: 2,100,000 of 2,000,000 bytes" in text
    assert "over artifact; " in board or " artifact " in board
    assert "artifact, 2,100,000 of 2,000,000 bytes" in printed(print_trial, session, 6)
    assert "over a limit" not in printed(print_trial, session, 0)


def test_status_tells_why_configurations_failed(session: Session) -> None:
    text = printed(print_status, session)
    assert "failed configurations: 1 × diverged" in text
    assert "over a limit: 1 × artifact" in text and text.count("over a limit: ") == 1


def test_status_tells_what_rented_gpus_cost(session: Session) -> None:
    """Of GPUs alone; hours are on the clock, and there are several GPUs to a trial."""
    assert "dollars" not in printed(print_status, session)
    rented = replace(
        session.study, price=Price(2.5), gpus_per_trial=8, fixed={**session.study.fixed, "device": "cuda"}
    )
    start = datetime(2026, 1, 1)
    trial = session.optuna_study.trials[0]
    trial.datetime_start = start
    trial.datetime_complete = start + timedelta(hours=2)
    stored = optuna.create_study()
    stored.add_trial(trial)
    text = printed(print_status, replace(session, study=rented, optuna_study=stored))
    assert "2.00 hours of trials on the clock, 16.00 GPU hours, 40.00 dollars at 2.5 an hour" in text


@pytest.mark.parametrize("figure", [15_987_654, 123_456_789])
def test_tables_fit_80_columns_and_their_marks_have_a_legend(session: Session, figure: int) -> None:
    """Whole, with sizes of the challenge, and no figure cut."""
    more = {"artifact_bytes": figure, "train_seconds": 599.9, "eval_seconds": 599.9, "steps": 13_780}
    more |= {"legality": "gptq: legal-if-timed", "peak_memory_bytes": 70_000_000_000}
    for k in range(30):
        session.optuna_study.add_trial(trial_of(1.1 + k / 100, **more))
        session.optuna_study.add_trial(trial_of(1.0, broken="bytes", **more))
    console = Console(file=io.StringIO(), width=80)
    print_leaderboard(console, session)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    whole = [line for line in text.splitlines() if "python " not in line and "over a limit" not in line]
    assert max(map(len, whole)) <= 80 and f"{figure:,}" in text and "…" not in text
    assert "legal-if-timed: its work counts" in text
    assert "(!: the technique was on, and changed nothing" in text


def test_a_workers_name_is_no_emoji(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    """rich takes :100: for one; so may any name between colons be, in tables for programs too."""
    session.optuna_study.add_trial(trial_of(2.2, worker="host:100:0", reason=":fire: out of memory"))
    print_trial(make_console(), session, 6)
    for form in ("csv", "json"):
        console = TableConsole(form)
        print_trial(console, session, 6)
        console.close()
    text = capsys.readouterr().out
    assert text.count("host:100:0") == 3 and text.count(":fire:") == 3


def test_show_lists_facts_and_refuses_a_number_there_is_not(session: Session) -> None:
    text = printed(print_trial, session, 2)
    assert "artifact_bytes" in text and "1,900,000 bytes (limit 2,000,000" in text and "bytes -0.100" in text
    with pytest.raises(ValueError, match="trials 0 to 5, but not 17"):
        print_trial(Console(file=io.StringIO()), session, 17)


def test_an_export_says_why_a_trial_is_nothing_to_submit(session: Session) -> None:
    session.optuna_study.add_trial(trial_of(1.8, broken="bytes", artifact_bytes=2_100_000))
    told = [shortcoming(session, number) for number in range(7)]
    assert told[0] == told[2] == ""
    assert "is over a limit (artifact, 2,100,000 of 2,000,000 bytes)" in told[6]
    assert "no result (diverged: train_loss is nan)" in told[3] and "(it is PRUNED)" in told[4]
    assert "(it is FAIL)" in told[5]


def test_show_tells_processor_seconds_and_those_on_the_clock(session: Session) -> None:
    stages = {"seconds": {"train": 31.04, "evaluate": 2.0}, "reused": [], "spent_s": 40.0, "saved_s": 0.0}
    for device, told in (
        ("cpu", "9.5 s of processor time, 31.0 s on the clock (limit"),
        ("cuda", "9.5 s (limit"),
    ):
        session.optuna_study.add_trial(trial_of(2.0, stages=stages, passport={"device_type": device}))
        text = printed(print_trial, session, len(session.optuna_study.trials) - 1)
        assert told in text and ("1.5 s of processor time, 2.0 s" in text) == (device == "cpu")
    assert "9.5 s (limit" in printed(print_trial, session, 2)  # a trial of before


def test_words() -> None:
    assert [duration(s) for s in (40, 720, 3900)] == ["40 s", "12 min", "1 h 05 min"]
    shares = [
        {"ask_s": 0.01, "process_s": 10.0, "share": 0.01},
        {"ask_s": 0.03, "process_s": 20.0, "share": 0.03},
    ]
    trials = [trial_of(2.0), *(trial_of(2.0, overhead=share) for share in shares)]
    assert overhead_of_study(trials) == "overhead per trial: ask 20 ms; 2.0% of a trial of 15.0 s"
    assert [counted(n, "trial") for n in (0, 1, 1200)] == ["0 trials", "1 trial", "1,200 trials"]


def test_show_and_status_tell_overhead_in_one_way(session: Session) -> None:
    seconds = {"ask_s": 0.0083, "start_s": 14.07, "tell_before_s": 0.02, "process_s": 20.0, "share": 0.705}
    session.optuna_study.add_trial(trial_of(2.0, overhead=seconds))
    told = "ask 8 ms, start 14.1 s, tell 20 ms; 70.5% of a trial of 20.0 s"
    assert told in printed(print_trial, session, 6) and told in printed(print_status, session)


def test_the_share_of_overhead_is_of_the_seconds_that_are_told() -> None:
    """0.6 + 0.2 + 2.0 + 0.1 s, of 16.4 s in the process, start and setup among them, and 0.7 s around it."""
    parts = {"sample_s": 0.6, "start_s": 0.2, "setup_s": 2.0, "other_s": 0.1}
    told = overhead_text({**parts, "report_s": 0.035, "process_s": 16.4, "share": 2.9 / 17.1})
    assert told.endswith("; 17.0% of a trial of 17.1 s; reports 35 ms of its work")
    assert sum(parts.values()) / 17.1 == pytest.approx(0.17, abs=0.0005)


def test_the_best_is_told_by_its_distance_from_the_baseline_unless_it_is_that(session: Session) -> None:
    session.optuna_study.set_user_attr("baseline", {"val_bpb": 2.04, "hash": "abc"})
    assert ": 2.0400 val_bpb; trial #2 stands +0.0100 from it." in printed(print_leaderboard, session)
    session.optuna_study.add_trial(trial_of(2.04, hash="abc"))
    text = printed(print_leaderboard, session)
    assert "val_bpb; the best, trial #6, is that configuration." in text and "+0.0000" not in text


def test_a_trial_with_findings_carries_one_mark_and_show_tells_them(session: Session) -> None:
    assert "?" not in printed(print_leaderboard, session).split("Best:")[0]
    told = "plausibility: val_bpb is 0.2990, but the training loss explains nothing below 1.0"
    session.optuna_study.add_trial(trial_of(0.299, findings=[told]))
    text = printed(print_leaderboard, session)
    assert "0.2990?" in text and "2.0500 " in text and "? = has findings" in text
    assert told in " ".join(printed(print_trial, session, 6).split())


def test_trials_too_quick_to_be_seen_running_are_told_at_the_end() -> None:
    stored, console = optuna.create_study(), Console(file=io.StringIO(), width=200)
    with Progress(stored, 3, console) as progress:
        progress.look(now=True)
        stored.add_trials([trial_of(2.0)] * 3)
        progress.look()  # too soon after the first
        progress.look(now=True)
        progress.look(now=True)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("3 of 3 trials done") == 1


@pytest.mark.parametrize("show", [print_status, print_leaderboard])
def test_a_study_of_an_earlier_version_says_how_its_bytes_were_counted(session: Session, show: Any) -> None:
    assert "counted otherwise" not in printed(show, session)
    session.optuna_study.add_trial(trial_of(2.2, code_bytes=18_000))
    assert "counted otherwise" not in printed(show, session)
    session.optuna_study.add_trial(trial_of(2.2, code_bytes=291_000))
    assert "The bytes of 1 trial were counted otherwise" in printed(show, session)


def test_show_tells_where_the_bpb_came_from(session: Session) -> None:
    links = [["weights", 2.61], ["ema", 2.5867], ["packed", 2.6012]]
    session.optuna_study.add_trial(trial_of(2.6, bpb_chain=links))
    number = len(session.optuna_study.trials) - 1
    text = " ".join(printed(print_trial, session, number).split())
    assert "weights 2.6100, ema 2.5867 (-0.0233), packed 2.6012 (+0.0145); on the tokens of a report" in text
