"""Prose in Python source: docstrings and comments, found by a lexer; nothing is imported or executed."""

import ast
import importlib.metadata
import importlib.util
import os
import re
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# One alternative for each token that may hide or hold prose. It does in seconds what takes ast two minutes
# (measured: torch alone 42 s with ast.walk); a test compares its docstrings with those of ast.
_LEXER = re.compile(
    r"""
    \"{3}(?P<double>[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*)\"{3}
    | '{3}(?P<single>[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*)'{3}
    | "[^"\\\n]*(?:\\.[^"\\\n]*)*" | '[^'\\\n]*(?:\\.[^'\\\n]*)*'
    | \#(?P<comment>[^\n]*)
    """,
    re.VERBOSE | re.DOTALL,
)
_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" + bytes(range(0x80, 0x100))
_LETTERS_AND_BLANKS = _LETTERS + b" \t\n\r"
_NO_LETTERS = bytes(byte for byte in range(0x100) if byte not in _LETTERS)
_SKIPPED_PARTS = frozenset(
    {
        "test",
        "tests",
        "testing",
        "site-packages",
        "dist-packages",
        "_vendor",
        "vendored",
        "idlelib",
        "turtledemo",
    }
)
_ODD_QUOTE = re.compile(r'\\.|"', re.DOTALL)
_MIN_WORDS = 6
_MIN_LETTER_SHARE = 0.7  # letters and blanks of a paragraph; tables, doctests and rules fall below


@dataclass(frozen=True)
class Package:
    """A tree of Python source to read."""

    name: str
    version: str
    root: Path


def standard_library() -> Package:
    """The running interpreter's library, without its tests."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Package("python", version, Path(sysconfig.get_paths()["stdlib"]))


def find_package(name: str) -> Package | None:
    """An installed top-level package, located without importing it; None if it is not installed."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return Package(name, version, Path(next(iter(spec.submodule_search_locations))))


def source_files(package: Package) -> list[Path]:
    """Its .py files in the order of their relative POSIX paths, without tests and vendored copies."""
    files: list[Path] = []
    for folder, folders, names in os.walk(package.root):
        folders[:] = [name for name in folders if name not in _SKIPPED_PARTS]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(files, key=lambda path: path.relative_to(package.root).as_posix())


def prose(source: str) -> Iterator[str]:
    """The texts of a file in order: strings that begin a line (docstrings are) and runs of comment lines."""
    comments: list[str] = []
    next_line = -1
    for match in _LEXER.finditer(source):
        line_start = source.rfind("\n", 0, match.start()) + 1
        before = source[line_start : match.start()].strip()
        comment, body = match["comment"], match["double"] or match["single"]
        if comment is not None and not before:  # a comment after code on its line is mostly a pragma
            if comments and line_start != next_line:
                yield "\n".join(comments)
                comments = []
            comments.append(comment.removeprefix(" "))
            next_line = match.end() + 1
        elif body is not None and (not before or before.lower() in ("r", "u")):
            if comments:
                yield "\n".join(comments)
                comments = []
            text = string_value(body, raw=before.lower() == "r")
            if text is not None:
                yield text
    if comments:
        yield "\n".join(comments)


def string_value(body: str, *, raw: bool) -> str | None:
    """The text between triple quotes, unescaped unless `raw`, dedented; None for refused escapes."""
    if "\\" in body and not raw:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes are the package's business
                body = ast.literal_eval(f'"""{_ODD_QUOTE.sub(_escape_quote, body)}"""')
        except (SyntaxError, ValueError):
            return None
    first, _, rest = body.expandtabs().partition("\n")
    return f"{first.strip()}\n{textwrap.dedent(rest)}".strip()


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is mostly words: tables, doctests, code and rules are not."""
    if paragraph.lstrip().startswith((">>>", "...", "!", "-*-")) or len(paragraph.split()) < _MIN_WORDS:
        return False
    raw = paragraph.encode()
    return len(raw.translate(None, _LETTERS_AND_BLANKS)) <= (1 - _MIN_LETTER_SHARE) * len(raw)


def paragraph_key(paragraph: str) -> bytes:
    """What two paragraphs share that differ only in case, digits, punctuation and white space."""
    return paragraph.encode().translate(None, _NO_LETTERS).lower()


def read_source(path: Path) -> str | None:
    """The file's text, or None if it is not UTF-8 or cannot be read: a package may ship what it likes."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _escape_quote(match: re.Match[str]) -> str:
    """A double quote gets its backslash, an escape stays: the body may come from between single quotes."""
    return '\\"' if match[0] == '"' else match[0]
