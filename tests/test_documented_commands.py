"""Every command that a page shows is one that its program takes: options, their values' types, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
import typer.main

import validate
from corpus.__main__ import app as corpus
from search.cli import app as search
from techniques import catalog
from techniques.settings import settings_from
from tests.test_docs import PAGES

COMMAND = re.compile(r"python (search\.py|train_gpt\.py|validate\.py|-m corpus)((?: [^`\n|]*)?)")
PLACEHOLDERS = {"N": "7", "A": "1", "B": "2", "VALUE": "1"}
SKIPPED = re.compile(r"…|\.\.\.")  # a command with something left out


def commands() -> Iterator[tuple[str, str, list[str]]]:
    """(page, program, words) of each; a line that goes on in the next is joined, a comment cut off."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        text = re.sub(r"`[^`]*`", lambda code: code[0].replace("\n", " "), text)
        for program, rest in COMMAND.findall(text):
            shown = rest.split("  ")[0].split(" #")[0].strip()
            if not SKIPPED.search(shown):
                words = [PLACEHOLDERS.get(word, word) for word in shlex.split(shown)]
                yield page.name, program.removeprefix("-m "), words


def check_app(app: typer.Typer, words: list[str]) -> None:
    """Parses as the program does, and runs nothing. ValueError."""
    group: Any = typer.main.get_command(app)
    try:
        with group.make_context("", list(words)) as context:
            rest = [*context._protected_args, *context.args]
            if rest:
                name, command, rest = group.resolve_command(context, rest)
                command.make_context(name, rest, parent=context)
    except Exception as error:  # the library's own errors have no public base
        raise ValueError(f"{type(error).__name__}: {error}") from error


def check(program: str, words: list[str]) -> None:
    """Raises SystemExit or ValueError for what the program does not take."""
    if program == "search.py":
        check_app(search, words)
    elif program == "validate.py":
        validate.arguments([word for word in words if word != "NAME"])
    elif program == "corpus":
        check_app(corpus, words)
    elif not any(word.endswith(".json") or word.isupper() for word in words):
        settings_from(words, {}, catalog.runtime(), has_gpu=False)


def test_every_command_of_a_page_is_taken() -> None:
    bad: list[str] = []
    shown = set[str]()
    for page, program, words in commands():
        shown.add(program)
        try:
            check(program, words)
        except (SystemExit, ValueError) as error:
            bad.append(f"{page}: python {program} {' '.join(words)}: {error}")
    assert not bad, "\n".join(bad)
    assert shown == {"search.py", "train_gpt.py", "validate.py", "corpus"}


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("search.py", ["--trails", "20"]),
        ("search.py", ["comfirm"]),
        ("search.py", ["show", "first"]),
        ("train_gpt.py", ["--preset", "laptop", "--xsa.lastn", "2"]),
        ("validate.py", ["--gpu"]),
        ("corpus", ["build", "--txt", "x"]),
    ],
)
def test_what_a_program_does_not_take_is_found(program: str, words: list[str]) -> None:
    with pytest.raises((SystemExit, ValueError)):
        check(program, words)
