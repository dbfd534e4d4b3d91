"""What every command is told: the options that commands share, their study, the form of an answer.

`@command(OF_STUDY | AS_TABLES)` makes a function a command with those options; it gets them as a Request.
Imports of ours stand inside functions: a command starts with what it needs, --help with next to nothing.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.common.console import clear_errors, printed
from search.common.options import StudyOptions, folder_of

if TYPE_CHECKING:
    from rich.console import Console

    from search.session.session import Session
    from search.session.shelf import Shelf


StudyOption = Annotated[Path | None, typer.Option(help="The study's file. [default: studies/laptop.toml]")]
StorageOption = Annotated[
    str | None,
    typer.Option(
        help="URL of a PostgreSQL; better in the variable CADDIE_STORAGE, which process lists do not show. "
        "[default: a private one under HOME/.caddie]"
    ),
]
HomeOption = Annotated[
    Path | None,
    typer.Option(
        parser=folder_of,
        metavar="PATH",
        help="Folder of the private database and of runs/. [default: the project]",
    ),
]
FromOption = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="OLD[,OLD2]",
        help="Earlier studies of this database whose BPB it begins with, whatever differs (docs/prior.md).",
    ),
]
RunsOption = Annotated[int | None, typer.Option(min=1, help="Runs at once. [default: GPUs, cores]")]
SeedsOption = Annotated[int, typer.Option(help="Fresh seeds of each configuration at most, 4 to 64.")]
NoForkOption = Annotated[
    bool, typer.Option("--no-fork", help="A fresh process for each trainer; on a GPU there is no other.")
]
ScriptOption = Annotated[Path | None, typer.Option(help="A script of our trainer's contract.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="Its tables as CSV; other text goes to stderr.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Its tables as JSON; other text goes to stderr.")]
NicenessOption = Annotated[
    int, typer.Option(min=0, max=19, help="Lowers the trainers' priority: for a shared machine.")
]
NoConfirmOption = Annotated[
    bool, typer.Option("--no-confirm", help="Leave out what [confirm] of the study asks for at its end.")
]
OF_SHELF = {"storage": StorageOption, "home": HomeOption}
OF_STUDY = {"study": StudyOption, **OF_SHELF}
AS_TABLES = {"csv": CsvOption, "json": JsonOption}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@dataclass(frozen=True)
class Request:
    """What a command was told of its study, and in which form it answers."""

    given: StudyOptions
    csv: bool = False
    json: bool = False

    def session(self, *, brief: bool = False) -> Session:
        """The study, which was begun; only to be read."""
        from search.session.session import read_session
        from search.study.load import find_study

        study = find_study(self.given.study)
        home = self.given.home_folder
        storage = self.given.storage
        return read_session(study, home=home, storage=storage, environ=os.environ, brief=brief)

    def read(self, then: Callable[[Console, Session], None]) -> None:
        """Reads the study for one report. Nothing that it reads becomes garbage before its end: not to look
        for any saves a tenth of the time."""
        gc.disable()
        with clear_errors(), self.told() as console:
            session = self.session(brief=True)
            if session.study.in_nats:
                from search.common.tables import say_nats

                say_nats(console)
            if session.note:
                print(session.note, file=sys.stderr if self.csv or self.json else sys.stdout)
            then(console, session)

    def shelf(self, then: Callable[[Console, Shelf], None]) -> None:
        """For a command about a database's studies."""
        with clear_errors(), self.told() as console:
            from search.session.shelf import shelf_of

            then(console, shelf_of(self.given.home_folder, self.given.storage, os.environ))

    def told(self) -> AbstractContextManager[Console]:
        """Where it prints."""
        return printed(csv=self.csv, json=self.json)


def command(shared: Mapping[str, Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function the command of its name; where it has `request`, the command has these options."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        parameters = [Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)]
        for own in signature(function, eval_str=True).parameters.values():
            if own.name != "request":
                parameters.append(own.replace(kind=Parameter.KEYWORD_ONLY))
                continue
            for name, kind in shared.items():
                off = False if name in AS_TABLES else None
                parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=off, annotation=kind))

        @functools.wraps(function)
        def whole(context: typer.Context, **values: Any) -> None:
            forms = {name: values.pop(name) for name in AS_TABLES if name in shared}
            options = StudyOptions(**{name: values.pop(name) for name in shared if name not in forms})
            function(request=Request(options.over(context.obj), **forms), **values)

        whole.__signature__ = Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
        app.command()(whole)
        return function

    return add
