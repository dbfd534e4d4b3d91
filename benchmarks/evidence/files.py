"""Files of the evidence: JSON lines that a stopped command continues, packed JSON, sections of a page."""

from __future__ import annotations

import json
import lzma
import os
import re
import textwrap
from pathlib import Path
from typing import Any, TextIO

from search.common.paths import ROOT

FOLDER = Path(__file__).resolve().parent
DOCUMENT = ROOT / "docs" / "evidence.md"
README = ROOT / "README.md"
# of the claim in it
BEGINNING = "[On a table of real trainings](docs/evidence.md)"
END = "(`python -m benchmarks.evidence.replay`)."


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What was written so far; a last line that was cut off does not count."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def open_lines(path: Path) -> TextIO:
    """To append to; a last line that was cut off is dropped, for the next one would continue it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        whole, newline, _ = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(whole) + len(newline))
    return path.open("a", encoding="utf-8")


def pack(path: Path, content: Any) -> None:
    """JSON, compressed."""
    path.write_bytes(lzma.compress(json.dumps(content, separators=(",", ":")).encode(), preset=9))


def unpack(path: Path) -> Any:
    return json.loads(lzma.decompress(path.read_bytes()))


def write_claim(claim: str, page: Path = README) -> None:
    """Puts `claim` between BEGINNING and END of the page, on lines of its own."""
    words = [r"\s+".join(map(re.escape, text.split())) for text in (BEGINNING, END)]
    sentence = re.compile(".*?".join(words), re.DOTALL)
    beginning, end = (text.strip().replace(" ", "\0") for text in (BEGINNING, END))  # no line breaks in them
    new = textwrap.fill(f"{beginning} {claim} {end}", 120, break_on_hyphens=False).replace("\0", " ")
    text, count = sentence.subn(lambda _: new, page.read_text(encoding="utf-8"))
    assert count == 1, f"{page} has {count} sentences from {BEGINNING!r} to {END!r}"
    page.write_text(text, encoding="utf-8")
