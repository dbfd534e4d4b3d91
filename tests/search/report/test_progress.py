"""The live view and its plain lines, on trials made by hand, drawn into a terminal of a given size."""

from __future__ import annotations

import io
import json
import os
import re
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from search.common.attributes import PREFLIGHT, REJECTIONS, REPLICATE, REPORTS, WORKER
from search.common.paths import Folders
from search.report.progress import Progress, clock, fit
from tests.search.report.test_report import trial_of

HERE = os.uname().nodename
PREDICTED = {"train_seconds": 8.0, "eval_seconds": 2.0}


def terminal(width: int, height: int) -> Console:
    return Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, _environ={"TERM": "xterm"}
    )


def running(study: optuna.Study, seconds: float, worker: str = HERE, **attrs: Any) -> int:
    """A running trial that began so long ago; its number."""
    facts = {WORKER: f"{worker}:1:0", PREFLIGHT: PREDICTED, "techniques": ["xsa", "ema"], **attrs}
    trial = trial_of(None, TrialState.RUNNING, **facts)
    trial.datetime_start = datetime.now() - timedelta(seconds=seconds)
    trial.datetime_complete = None
    study.add_trial(trial)
    return len(study.get_trials()) - 1


def ended(study: optuna.Study, value: float | None, **facts: Any) -> None:
    trial: FrozenTrial = trial_of(value, **facts)
    trial.datetime_complete = datetime.now()
    trial.datetime_start = datetime.now() - timedelta(seconds=28.0)
    study.add_trial(trial)


def folder_of(home: Path, number: int, *records: dict[str, Any], done: tuple[str, ...] = ()) -> None:
    """What a trainer of this machine wrote so far."""
    folder = Folders(home, "told").trial(number)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    values = {"iterations": 100, "max_wallclock_seconds": 0.0}
    (folder / "resolved.json").write_text(json.dumps({"values": values}))
    for name in done:
        (folder / name).write_text("{}")


def view(progress: Progress) -> list[str]:
    progress.look(now=True)
    return [line.plain for line in progress.lines()]


def progress_of(study: optuna.Study, home: Path, width: int = 80, height: int = 24) -> Progress:
    return Progress(study, 20, terminal(width, height), Folders(home, "told"))


REPORT = {"kind": "report", "step": 50, "progress": 0.5, "val_bpb": 2.9928, "elapsed_s": 4.0}


def test_a_row_tells_stage_step_early_bpb_and_the_end(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="told")
    ended(study, 2.65)  # twice the 14 s that were predicted: so will the others
    trains = running(study, 10.0)
    folder_of(tmp_path, trains, {"kind": "train", "step": 9, "elapsed_s": 0.7}, REPORT)
    scores = running(study, 27.0)
    folder_of(tmp_path, scores, REPORT, done=("stage_average.json", "stage_pack.json"))
    cached = running(study, 5.0)
    folder_of(tmp_path, cached, done=("stage_average.json",))
    slow = running(study, 60.0)
    folder_of(tmp_path, slow, REPORT)
    late = running(study, 90.0)
    young = running(study, 1.0)
    at = study.get_trials(deepcopy=False)[young].user_attrs
    host = at.pop(WORKER)  # it was asked for, and its worker has not said who it is
    folder_of(tmp_path, young, {"kind": "train", "step": 9, "elapsed_s": 0.7})
    far = running(study, 20.0, "elsewhere", **{REPORTS: [[0.25, 3.1, 1.0], [0.5, 2.8812, 1.0]]})
    folder_of(
        tmp_path, far, {"kind": "train", "step": 9, "elapsed_s": 0.7}
    )  # of an earlier study: not its own
    study_of_before = study.get_trials()[0]
    study_of_before.user_attrs[PREFLIGHT] = PREDICTED
    progress = progress_of(study, tmp_path)
    with progress:
        assert progress.watch is not None
        progress.watch.ended(study_of_before)
        assert any(line.split()[:2] == [f"#{young}", "start"] for line in view(progress))
        at[WORKER] = host
        lines = view(progress)
    rows = {int(m[1]): line.split() for line in lines if (m := re.match(r" *#(\d+)  [a-z]+ ", line))}
    assert rows[trains][1:4] == ["train", "50/100", "2.9928"] and rows[trains][5] in ("0:17", "0:18")
    assert rows[scores][1:3] == ["evaluate", "50/100"] and rows[scores][-1] in ("soon", "0:01")
    assert rows[cached][1] == "quantize" and rows[cached][-1] in ("0:07", "0:06")  # it need not train
    assert rows[slow][1:3] == ["train", "50/100"] and rows[slow][5] in ("0:56", "0:55")  # by its own pace
    assert rows[late][1] == "start" and rows[late][-1] == "soon"
    assert rows[young][1:3] == ["train", "9/100"]
    assert rows[far][1:5] == ["train", "50%", "2.8812", "0:20"]
    assert max(map(len, lines)) <= 80


def test_the_last_ended_ones_their_verdicts_and_the_counts_by_reason(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="told")
    ended(study, 2.05, **{REJECTIONS: {"bytes": 3, "duplicate": 1}})
    ended(study, 1.9, broken="eval", eval_seconds=150.0)
    ended(study, None, state=TrialState.PRUNED, reason="it would end at 2.4, the standard is 2.1")
    ended(study, None, state=TrialState.PRUNED, broken="run", reason="diverged: train_loss is nan at step 7")
    ended(study, None, state=TrialState.FAIL)
    ended(study, 2.01, **{REPLICATE: {"of": 0, "seed": 5}})
    with progress_of(study, tmp_path, 100) as progress:
        text = "\n".join(view(progress))
    assert "told · 5 of 20 done, 0 running" in text and "none: workers start" in text
    assert (
        "best observed #0: 2.0500 bits/byte (mean of seeds 2.0300 ± 0.0283 (2 seeds)), 1,900,000 bytes"
        in text
    )
    assert "#1  1.9000  over a limit: evaluation, 150.0 of 100 s" in text
    assert "#3          failed: diverged: train_loss is nan at step 7" in text
    assert "#5  2.0100  within all limits, trial #0 again" in text
    assert "#0  2.0500" not in text.replace("best observed #0", "")  # the five newest
    counts = " ".join(text.splitlines()[-3:])
    assert "2 within all limits, 1 over a limit (evaluation 1), 1 pruned, 1 failed (diverged 1), " in counts
    assert "4 resampled before running (bytes 3, duplicate 1), 1 interrupted and tried again" in counts


def test_at_its_end_no_worker_is_said_to_start(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="told")
    for _ in range(20):
        ended(study, 2.05)
    with progress_of(study, tmp_path) as progress:
        text = "\n".join(view(progress))
    assert "20 of 20 done, 0 running" in text and "none: workers stop" in text


def test_the_best_is_told_whole_on_eighty_columns(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="told")
    ended(study, 2.05)
    ended(study, 2.01, **{REPLICATE: {"of": 0, "seed": 5}})
    with progress_of(study, tmp_path) as progress:
        lines = view(progress)
    text = " ".join(lines)
    assert max(map(len, lines)) <= 80 and "…" not in text
    assert "(mean of seeds 2.0300 ± 0.0283 (2 seeds)), 1,900,000 bytes" in text and " s evaluation" in text


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (40, 10), (80, 12)])
def test_the_view_fits_whatever_runs_and_whatever_its_name(tmp_path: Path, size: tuple[int, int]) -> None:
    study = optuna.create_study(study_name="a-very-long-name-" * 9)
    for k in range(9):
        ended(study, 2.0 + k, reason="x " * 90)
    for k in range(32):
        running(study, k)
    with progress_of(study, tmp_path, *size) as progress:
        lines = view(progress)
    assert len(lines) < size[1] and max(map(len, lines)) <= size[0]
    if size == (80, 24):
        assert any(re.fullmatch(r" +and 2\d trials more: 2\d in start", line) for line in lines)
        assert any("#8  10.0000" in line for line in lines)


def test_the_clock_moves_while_nothing_ends_and_a_narrower_terminal_begins_anew(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="told")
    running(study, 5.0)
    with progress_of(study, tmp_path) as progress:
        first = view(progress)
        progress.began -= 61.0
        progress.drawn = 0.0
        progress.look()  # no reading: it is too soon
        out: Any = progress.console.file
        first_lines = progress.lines()
        assert "1:01" in out.getvalue() and first != [line.plain for line in first_lines]
        before = len(out.getvalue())
        progress.console.width = 40  # the terminal wraps what stands there: all of it is taken away
        wrapped = sum((len(line.plain) - 1) // 40 for line in first_lines if line.plain)
        progress.look(now=True)
        assert wrapped >= 1 and out.getvalue()[before:].count("\x1b[1A") == len(first_lines) - 1 + wrapped
        study._storage.set_trial_state_values(0, TrialState.FAIL)  # what a stopped worker does with it
        progress.look(now=True)
        before = len(out.getvalue())
        progress.leave("stopping: what runs is queued again")
        last = out.getvalue()[before:]
        assert "stopping" in last and "none: workers stop" in last and "#0          interrupted" in last
    text: str = out.getvalue()
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor is back, and nothing is left
    assert text.endswith("\x1b[2K")


@pytest.mark.parametrize("environ", [{"TERM": "dumb"}, {}])
def test_plain_lines_where_there_is_no_terminal_one_a_trial(tmp_path: Path, environ: dict[str, str]) -> None:
    study = optuna.create_study(study_name="told")
    ended(study, 2.5)
    file = io.StringIO()
    console = Console(file=file, width=160, force_terminal=bool(environ) or None, _environ=environ)
    with Progress(study, 20, console, Folders(tmp_path, "told")) as progress:
        for _ in range(3):
            progress.look(now=True)
        assert file.getvalue() == ""  # what had ended before is no news, nor is time
        ended(study, 2.4, broken="bytes", artifact_bytes=3_000_000)
        ended(study, 2.3)
        running(study, 1.0)
        for _ in range(3):
            progress.look(now=True)
    lines = file.getvalue().splitlines()
    assert lines[0] == "#1 2.4000 bits/byte, over a limit: artifact, 3,000,000 of 2,000,000 bytes"
    assert lines[1].startswith(
        "#2 2.3000 bits/byte, within all limits, the best observed so far · 3 of 20 trials done, 1 running"
    )
    assert len(lines) == 2 and "\x1b" not in file.getvalue()


def test_a_look_costs_little_with_two_thousand_finished_trials(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="told")
    study.add_trials([trial_of(2.0 + k / 1000) for k in range(2000)])
    for _ in range(2):
        folder_of(tmp_path, running(study, 5.0), REPORT)
    with progress_of(study, tmp_path) as progress:
        progress.look(now=True)
        began = time.process_time()
        for _ in range(10):
            progress.look(now=True)
        with_reading_s = (time.process_time() - began) / 10
    assert with_reading_s < 0.04  # of 2 s: at most 2 % of a core, on a machine half as fast as any other


def test_words_of_the_view() -> None:
    assert [clock(s) for s in (-3.0, 7.2, 760.0, 3900.0)] == ["0:00", "0:07", "12:40", "1:05:00"]
    assert fit("a line\nand another", 10) == "a line an…" and fit("short", 10) == "short"
