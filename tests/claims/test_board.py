"""The leaderboard across studies: by protocol, with verdicts; nothing is ranked against what was measured
otherwise."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import create_trial
from rich.console import Console

from claims.answers import BYTES
from claims.arms import arm_of_source
from claims.board import Entry, compared, machine_text, print_board, published
from claims.runs import OUTCOME, PLAN, write_json
from search.common.attributes import ARCHIVED, STUDY_IDENTITY
from search.common.tables import TableConsole
from search.study.model import study_identity
from tests.pages.made_up import made_up_session


def study_of(folder: Path, count: int, *, confirmed: bool = False, **changed: Any) -> optuna.Study:
    folder.mkdir()
    session = made_up_session(folder, count, confirmed=confirmed)
    identity = study_identity(session.study)
    identity["fixed"] = {**identity["fixed"], **changed}
    session.optuna_study.set_user_attr(STUDY_IDENTITY, json.loads(json.dumps(identity)))
    return session.optuna_study


def told(studies: list[optuna.Study], home: Path, *, every: bool = False) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_board(console, studies, home, top=3, every=every)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    return text


def test_a_protocol_is_a_table_and_says_what_is_behind_each_score(tmp_path: Path) -> None:
    same = [study_of(tmp_path / "a", 60, confirmed=True), study_of(tmp_path / "b", 8)]
    text = told(same, tmp_path)
    ours, theirs = text.split("published: runs of others")
    assert ours.count("configuration") == 1 and "100 steps of 1,024 tokens" in ours
    rows = [line for line in ours.splitlines() if line.startswith("made_up")]
    verdicts = [row.split("│")[4].strip() for row in rows]
    assert verdicts == sorted(verdicts, key=["confirmed", "believed", "single"].index)
    assert {*verdicts} == {"confirmed", "believed", "single"} and "its start" in ours
    assert theirs.count("\npr") == 12 and "more (--top" in theirs
    assert "this is no ranking" in " ".join(theirs.split())
    assert "different protocols do not compare" not in text and BYTES[:20] not in text


def test_other_data_other_scale_other_table(tmp_path: Path) -> None:
    """And where tokenizers differ it is said what bytes BPB divides by."""
    studies = [
        study_of(tmp_path / "a", 30),
        study_of(tmp_path / "b", 30, iterations=200),
        study_of(tmp_path / "c", 30, data_path="data/datasets/mine", tokenizer_path="data/mine.model"),
    ]
    ours = told(studies, tmp_path).split("published: runs")[0]
    assert ours.count("configuration") == 3 and "200 steps" in ours and "tokens of mine" in ours
    text = " ".join(told(studies, tmp_path).split())
    assert "different protocols do not compare" in text and "normalised text" in text


def test_what_is_put_away_or_not_ours_stays_out(tmp_path: Path) -> None:
    study = study_of(tmp_path / "a", 30)
    study.set_user_attr(ARCHIVED, True)
    other = optuna.create_study(direction="maximize")
    other.add_trial(create_trial(value=3.0))
    text = told([study, other], tmp_path)
    assert "made_up" not in text and f"Without a feasible trial: {other.study_name}" in " ".join(text.split())
    assert "made_up #" in told([study, other], tmp_path, every=True)


def test_comparisons_are_there_with_their_seeds(tmp_path: Path) -> None:
    arm = arm_of_source("laptop", lambda: pytest.fail("no study"))
    folder = tmp_path / "runs" / "compare" / "q"
    question = {
        "arms": {"laptop": arm.identity(), "odd/name": arm.identity()},
        "machine": {"cpu": "a machine avx2 fma", "threads": 2},
    }
    write_json(folder / PLAN, {"question": question})
    for seed, score in enumerate((2.8, 2.9)):
        run = {"seed": seed, "reason": "", "figures": {"val_bpb": score}}
        write_json(folder / "laptop" / str(seed) / OUTCOME, run)
    failed = {"seed": 9, "reason": "diverged", "figures": {}}
    write_json(folder / "laptop" / "9" / OUTCOME, failed)
    (found,) = compared(tmp_path)
    assert (found.name, found.seeds, found.verdict) == ("laptop", 2, "confirmed, 1 failed")
    assert found.bpb == pytest.approx(2.85) and "no limits" in found.protocol
    assert "a machine" in told([], tmp_path)
    assert found.hardware == "a machine, 2 threads"
    assert "published, " in told([], tmp_path), "a published row has its verdict too"
    assert machine_text({"gpus": ["NVIDIA H200"], "ranks": 8}) == "8 x NVIDIA H200"


def test_programs_get_all_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = TableConsole("json")
    print_board(console, [study_of(tmp_path / "a", 30)], tmp_path, top=1, every=False)
    console.close()
    tables = json.loads(capsys.readouterr().out)
    row = tables[0]["rows"][0]
    assert row["verdict"] == "believed" and row["observed"] and "100 steps" in row["protocol"]
    assert len(tables[1]["rows"]) == len(list(published()))
    assert all(isinstance(one, Entry) and one.legality for one in published())
