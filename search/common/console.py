"""What every command says, and where: the console, its errors, the log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from search.common.errors import redact

if TYPE_CHECKING:
    from rich.console import Console


class Redacted(logging.Formatter):
    """Lines of a log with passwords taken out."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def quiet_log() -> None:
    """Warnings go to stderr, and nothing less."""
    handler = logging.StreamHandler()
    handler.setFormatter(Redacted("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


@contextmanager
def clear_errors() -> Generator[None]:
    """One line on stderr and exit status 2 for whatever a person can solve; 130 for Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    except Exception as error:
        if isinstance(error, OSError):
            text = f"{error.filename or 'the system'}: {error.strerror or error}"
        elif isinstance(error, ValueError):
            text = str(error)
        elif says := getattr(error, "orig", None) or getattr(error.__cause__, "orig", None):  # SQLAlchemy's
            line = str(says).partition("\n")[0]
            text = f"The database must let us use its tables, but says: {line}. Nothing stored is lost."
        else:
            raise
        print(f"error: {redact(text)}", file=sys.stderr)
        raise typer.Exit(2) from None


def make_console() -> Console:
    """A terminal's width; 160 columns in a file or a pipe."""
    from rich.console import Console  # a third of the time that --help takes

    return Console() if sys.stdout.isatty() else Console(width=160)


def print_step(console: Console, step: str, since: float) -> float:
    """One step of the start and its seconds; returns now."""
    now = time.monotonic()
    console.print(f"{step}  [{now - since:.1f} s]", highlight=False, markup=False, soft_wrap=True)
    return now
