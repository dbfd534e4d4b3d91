"""What stands on a terminal of 80 columns: lines break between words, and what rows share is told once."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from search.common.console import print_step, print_wait
from search.report.leaderboard import print_rows
from search.report.rows import Row

LONG = "corpus: built once, from the installed packages' documentation; about half a minute of one processor"


def lines_of(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_breaks_lines_between_words(terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None)
    print_wait(console, LONG)
    print_step(console, LONG, time.monotonic())
    lines = lines_of(console)
    assert len(lines) == (4 if terminal else 2)  # a pipe's line stays whole
    assert " ".join(line.strip() for line in lines).startswith(f"{LONG} … {LONG}")
    assert not terminal or max(map(len, lines)) <= 80


def row(number: int, *techniques: str, inactive: tuple[str, ...] = ()) -> Row:
    slack = {"artifact_bytes": 1.0, "train_seconds": 1.0, "eval_seconds": 1.0}
    return Row(number, 2.0, slack, slack, 100, "legal", techniques, inactive, ())


def printed(*rows: Row, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_rows(console, rows, "study")
    return "\n".join(lines_of(console))


def test_what_all_rows_share_is_told_once() -> None:
    shared = ("ema", "gptq", "xsa")
    told = printed(row(1, *shared), row(2, *shared, "zstd"), row(3, "lqer", *shared))
    assert "on in all of these: ema, gptq, xsa" in told and told.count("gptq") == 1
    assert "#1: legal; nothing else" in told and "#2: legal; also zstd" in told
    assert "#3: legal; also lqer" in told


def test_a_technique_that_did_nothing_in_one_row_is_not_shared() -> None:
    shared = ("ema", "gptq", "xsa")
    told = printed(row(1, *shared), row(2, *shared, inactive=("ema",)), row(3, *shared))
    assert "in all of these" not in told and "#2: legal; ema!, gptq, xsa" in told


@pytest.mark.parametrize("width", [80, 160])
def test_few_rows_or_few_shared_are_told_in_full(width: int) -> None:
    told = printed(row(1, "ema", "gptq"), row(2, "ema", "gptq"), row(3, "ema", "gptq"), width=width)
    assert "in all of these" not in told and told.count("gptq") == 3
    assert "no technique" in printed(row(1), row(2), row(3))
