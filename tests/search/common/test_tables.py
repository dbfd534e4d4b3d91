"""--csv and --json: what a table shows, for other programs."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
import typer
import typer.main
from rich.table import Table
from rich.text import Text

from search.cli import app
from search.common.tables import TableConsole, plain, value_of, write_csv, write_json
from search.report.leaderboard import print_leaderboard
from search.report.status import print_status
from search.report.trial import print_trial
from search.session.session import Session
from tests.search.report.test_report import session as session  # the fixture


def made() -> Table:
    table = Table(title="two [b]trials[/b]")
    for name in ("trial", "BPB", "bytes", "techniques"):
        table.add_column(name)
    table.add_row("#1", "2.5120", "315,000", 'xsa, "ema"')
    table.add_row(Text("#2"), "2.6?", "", r"\[odd]")
    return table


def test_csv_is_read_back() -> None:
    out = io.StringIO()
    write_csv([plain(made()), plain(made())], out)
    parts = out.getvalue().split("\r\n\r\n")
    assert len(parts) == 2
    rows = list(csv.reader(io.StringIO(parts[0])))
    assert rows[0] == ["trial", "BPB", "bytes", "techniques"]
    assert rows[1] == ["#1", "2.5120", "315000", 'xsa, "ema"'] and rows[2] == ["#2", "2.6?", "", "[odd]"]


def test_json_has_numbers() -> None:
    out = io.StringIO()
    write_json([plain(made())], out)
    told = json.loads(out.getvalue())
    assert told[0]["title"] == "two trials"
    assert told[0]["rows"][0] == {"trial": "#1", "BPB": 2.512, "bytes": 315000, "techniques": 'xsa, "ema"'}
    assert told[0]["rows"][1]["bytes"] is None and told[0]["rows"][1]["BPB"] == "2.6?"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-3", -3),
        ("+0.0100", 0.01),
        ("1,234.5", 1234.5),
        ("1e-05", 1e-5),
        ("12%", "12%"),
        ("", None),
        ("#7", "#7"),
    ],
)
def test_what_counts_as_a_number(text: str, value: Any) -> None:
    assert value_of(text) == value


@pytest.mark.parametrize("form", ["csv", "json"])
def test_stdout_holds_tables_alone(session: Session, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    for show, arguments in ((print_leaderboard, ()), (print_status, ()), (print_trial, (2,))):
        console = TableConsole(form)
        show(console, session, *arguments)
        console.close()
        out, err = capsys.readouterr()
        assert "told" in err  # the study's name: the sentences went there
        if form == "json":
            tables = json.loads(out)
            assert tables and all(table["rows"] for table in tables)
        else:
            assert [row for row in csv.reader(io.StringIO(out)) if row]
    console = TableConsole("json")
    print_leaderboard(console, session)
    console.close()
    best = json.loads(capsys.readouterr().out)[0]["rows"][0]
    assert (
        best["trial"] == "#2" and best["bytes"] == 1900000 and "techniques on (! = changed nothing)" in best
    )


def test_every_command_that_prints_a_table_has_both_forms() -> None:
    """Those that print none write files or pages, or change what is stored."""
    others = {"archive", "delete", "rename", "dashboard", "export", "report", "scan", "submit"}
    group: Any = typer.main.get_command(app)
    told = {name for name, one in group.commands.items() if {"csv", "json"} <= {p.name for p in one.params}}
    assert {p.name for p in group.params} >= {"csv", "json"}, "the leaderboard at a search's end"
    assert group.commands.keys() - told == others
