"""Prose in installed Python source: docstrings and comments, found by a lexer; nothing is imported or executed."""

import ast
import importlib.metadata
import importlib.util
import re
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# One alternative a token that may hide or hold prose. ast or tokenize would need two minutes for what this does in
# seconds (measured: torch alone 42 s with ast); a test compares its docstrings with those of ast.
_LEXER = re.compile(
    r"""
    (?P<prefix>\b[rRbBuUfFtT]{1,2})?(?P<quote>\"{3}|'{3})(?P<body>(?:[^\\]|\\.)*?)(?P=quote)
    | "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*'
    | \#(?P<comment>[^\n]*)
    """,
    re.VERBOSE | re.DOTALL,
)
_WORD = re.compile(r"[A-Za-z]{2,}")
_KEY = re.compile(r"[\W\d_]+")
_SKIPPED_PARTS = frozenset(
    {"test", "tests", "testing", "site-packages", "dist-packages", "_vendor", "vendored", "idlelib", "turtledemo"}
)
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
    files = [
        path
        for path in package.root.rglob("*.py")
        if not _SKIPPED_PARTS.intersection(path.relative_to(package.root).parts[:-1])
    ]
    return sorted(files, key=lambda path: path.relative_to(package.root).as_posix())


def prose(source: str) -> Iterator[str]:
    """The texts of a source file in order: string statements (docstrings among them) and runs of comment lines."""
    comments: list[str] = []
    last_line_end = -1
    for match in _LEXER.finditer(source):
        if match["comment"] is not None:
            line_start = source.rfind("\n", 0, match.start()) + 1
            if not source[line_start : match.start()].isspace() and line_start != match.start():
                continue  # after code on the same line: mostly pragmas
            if comments and line_start != last_line_end + 1:
                yield "\n".join(comments)
                comments = []
            comments.append(match["comment"].removeprefix(" "))
            last_line_end = match.end()
        elif match["body"] is not None and _begins_line(source, match.start()):
            if comments:
                yield "\n".join(comments)
                comments = []
            text = string_value(match["prefix"] or "", match["body"])
            if text is not None:
                yield text
    if comments:
        yield "\n".join(comments)


def string_value(prefix: str, body: str) -> str | None:
    """The text that a triple-quoted string literal stands for, dedented; None for bytes, f-strings and bad escapes."""
    if set(prefix.lower()) & set("bft"):
        return None
    if "\\" in body and "r" not in prefix.lower():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes are the package's business
                body = ast.literal_eval('"""' + body.replace('"', '\\"').replace('\\\\"', '\\"') + '"""')
        except (SyntaxError, ValueError):
            return None
    first, _, rest = body.expandtabs().partition("\n")
    return f"{first.strip()}\n{textwrap.dedent(rest)}".strip()


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is mostly words: tables, doctests, code and rules are not."""
    if paragraph.lstrip().startswith((">>>", "...", "!", "-*-")):
        return False
    if len(_WORD.findall(paragraph)) < _MIN_WORDS:
        return False
    letters = sum(map(str.isalpha, paragraph)) + sum(map(str.isspace, paragraph))
    return letters >= _MIN_LETTER_SHARE * len(paragraph)


def paragraph_key(paragraph: str) -> str:
    """What two paragraphs share when they differ only in case, digits, punctuation and white space."""
    return _KEY.sub(" ", paragraph).strip().lower()


def read_source(path: Path) -> str | None:
    """The file's text, or None if it is not UTF-8 or cannot be read: a package may ship what it likes."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _begins_line(source: str, start: int) -> bool:
    line_start = source.rfind("\n", 0, start) + 1
    return line_start == start or source[line_start:start].isspace()
