"""Tables for other programs: `--csv` and `--json` of every command that prints one."""

from __future__ import annotations

import csv
import json
import re
import sys
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

NUMBER = re.compile(r"[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?")
WIDE = 10_000  # columns: no table leaves out one of its own
NATS = (  # what is said of a score in bits per byte, and of one in nats per token
    *(("bits per byte", "nats per token"), ("Bits per byte", "Nats per token")),
    ("bits/byte", "nats/token"),
    *(("val_bpb", "val_loss"), ("BPB", "loss")),
)
UNNAMED = ("name", "value")  # columns of a table that has no heads


@dataclass(frozen=True)
class Plain:
    """A table's text, without its look."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class TableConsole(Console):
    """Keeps the tables for `close`, which writes them to stdout; all other text goes to stderr."""

    def __init__(self, form: str):
        super().__init__(width=WIDE, color_system=None, stderr=True, emoji=False)
        self.form = form
        self.kept: list[Plain] = []

    def print(self, *objects: Any, **how: Any) -> None:
        """As Console.print."""
        self.kept += [plain(o) for o in objects if isinstance(o, Table)]
        rest = [o for o in objects if not isinstance(o, Table)]
        if rest or not objects:
            how["soft_wrap"] = True
            super().print(*rest, **how)

    def close(self) -> None:
        write = write_csv if self.form == "csv" else write_json
        write(self.kept, sys.stdout)


def say_nats(console: Console) -> None:
    """From now on the console calls a score nats per token: its trainer counts no bytes."""
    say = console.print

    def print_(*objects: Any, **how: Any) -> None:
        say(*(in_nats(o) for o in objects), **how)

    console.print = print_


def in_nats(what: Any) -> Any:
    """A text, or a table of texts, about a loss in nats per token where it speaks of bits per byte."""
    if isinstance(what, Table):
        what.title = in_nats(what.title)
        for column in what.columns:
            column.header = in_nats(column.header)
            column._cells = [in_nats(cell) for cell in column.cells]  # pyright: ignore[reportPrivateUsage]
    if isinstance(what, str):
        for bits, nats in NATS:
            what = what.replace(bits, nats)
    return what


def plain(table: Table) -> Plain:
    """What a table of rich shows."""
    columns = [text_of(column.header) for column in table.columns]
    if not table.show_header:
        columns = list(UNNAMED[: len(columns)])
    cells = [[text_of(cell) for cell in column.cells] for column in table.columns]
    title = "" if table.title is None else text_of(table.title)
    return Plain(title, tuple(columns), tuple(zip(*cells, strict=True)))


def text_of(cell: Any) -> str:
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell), emoji=False).plain


def value_of(text: str) -> str | int | float | None:
    """A cell as JSON has it: a number where all of it is one, null where it is empty."""
    if not NUMBER.fullmatch(text):
        return text or None
    digits = text.replace(",", "")
    return int(digits) if re.fullmatch(r"[+-]?\d+", digits) else float(digits)


def write_csv(tables: list[Plain], to: TextIO) -> None:
    """RFC 4180; a line without cells between two tables."""
    for k, table in enumerate(tables):
        if k:
            to.write("\r\n")
        rows = (
            [text.replace(",", "") if NUMBER.fullmatch(text) else text for text in row] for row in table.rows
        )
        csv.writer(to).writerows([table.columns, *rows])


def write_json(tables: list[Plain], to: TextIO) -> None:
    """A list of tables: title, and a row an object by the columns' names."""
    told = [
        {
            "title": table.title,
            "rows": [dict(zip(table.columns, map(value_of, row), strict=True)) for row in table.rows],
        }
        for table in tables
    ]
    json.dump(told, to, indent=1, ensure_ascii=False)
    to.write("\n")
