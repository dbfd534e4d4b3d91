"""What every command says, and where: the console, its errors, the log; no text of ours holds a password."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

import typer

if TYPE_CHECKING:
    from rich.console import Console


OPEN = ("host", "port", "dbname", "user", "sslmode")  # what may be told of a URL's query
SHORT = 3  # a secret of fewer characters protects nothing, and would garble every text
_secrets: set[str] = set()


def conceal(url: str) -> None:
    """From now on `redact` takes out the secrets of this URL: its password, and what its query gives, as they
    are written and as they are meant."""
    rest, _, query = url.partition("://")[2].partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")]
    values = [value for name, _, value in pairs if name not in OPEN and not re.fullmatch(r"\d{1,5}", value)]
    for value in (rest.rpartition("@")[0].partition(":")[2], *values):
        _secrets.update(v for v in (value, unquote_plus(value), value.replace(" ", "%20")) if len(v) >= SHORT)


def redact(text: object) -> str:
    """The text with every secret of a concealed URL, and whatever looks like one, replaced by ***."""
    clean = str(text)
    for secret in sorted(_secrets, key=len, reverse=True):
        clean = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", clean)
    found = r"(\w[\w+.-]*://[^\s:/@]*):(?!\*\*\*@|password@host)[^\n@]*@(?:\S*@)?(?=[\w\[/*])"
    clean = re.sub(found, r"\1:***@", clean)
    clean = re.sub(
        r"([?&][\w.-]*(?:pass|pwd|secret|token|key)[\w.-]*=)(?!\*\*\*)[^&\n'\"]+", r"\1***", clean, flags=re.I
    )
    return re.sub(r"(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^&\s'\"]+)", r"\1***", clean, flags=re.IGNORECASE)


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
    """A terminal's width; 160 columns in a file or a pipe. A worker `host:100:0` is no emoji."""
    from rich.console import Console  # a third of the time that --help takes

    if sys.stdout.isatty():
        return Console(emoji=False)
    return Console(width=160, force_interactive=False, emoji=False)


@contextmanager
def printed(*, csv: bool, json: bool) -> Generator[Console]:
    """Where a command prints: for a person, or its tables for a program. ValueError for both."""
    if csv and json:
        raise ValueError("A table has one form, but --csv and --json are both given. Leave one out.")
    if not csv and not json:
        yield make_console()
        return
    from search.common.tables import TableConsole

    console = TableConsole("csv" if csv else "json")
    yield console
    console.close()


def counted(number: int, noun: str) -> str:
    """1 trial, 2 trials, 1,200 trials."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def tell(console: Console, text: str) -> None:
    """Breaks between words on a terminal; one line in a file or a pipe, for other programs."""
    console.print(text, highlight=False, markup=False, soft_wrap=not console.is_terminal)


def print_wait(console: Console, what: str) -> None:
    """What begins now and takes its time; its step is printed when it is over."""
    tell(console, f"{what} …")


def print_step(console: Console, step: str, since: float) -> float:
    """One step of the start and its seconds; returns now."""
    now = time.monotonic()
    tell(console, f"{step}  [{now - since:.1f} s]")
    return now
