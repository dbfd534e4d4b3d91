"""The tour of docs/tour.md: every command that it shows is run in a fresh copy of the project, on a terminal
of 80 columns; what the terminal showed becomes docs/pictures/NAME.svg, and the seconds go into the page.

    python -m benchmarks.tour                 # all of it, about a quarter of an hour on two cores
    python -m benchmarks.tour --write         # and the pictures and seconds of the page made again
    python -m benchmarks.tour --trials 3      # a short one: the same commands, a smaller study

A command of the page is a line `    $ python ...`, its picture the next `![...](pictures/NAME.svg)`.
"""

from __future__ import annotations

import argparse
import io
import os
import pty
import re
import resource
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

import pyte
from pyte import modes
from pyte.screens import Char
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from search.common.paths import ROOT

PAGE = ROOT / "docs" / "tour.md"
PICTURES = ROOT / "docs" / "pictures"
COLUMNS = 80
WINDOW_LINES = 40
MOST_LINES = 400
LIVE = "live"  # the picture of a command while it runs, before its end
LIVE_AT = re.compile(r"\b(\d+) of (\d+) done, [2-9] running")  # it is taken once half of the trials are done
LIVE_EVERY_S = 2.0  # a look at the screen costs the trials some time
STEP = re.compile(r"^    \$ (python .*)\n|^!\[[^\]]*\]\(pictures/([\w-]+)\.svg\)", re.MULTILINE)
SECONDS = re.compile(r"<!-- seconds -->.*?<!-- end -->", re.DOTALL)
FONT = re.compile(r"@font-face\s*{.*?}\s*", re.DOTALL)  # of a web address: a picture needs no network


@dataclass(frozen=True)
class Step:
    """A command of the page and the names of its pictures."""

    words: tuple[str, ...]
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class Ran:
    """What came of a step."""

    step: Step
    status: int
    seconds: float
    processor_seconds: float  # of all of its processes that ended
    screen: pyte.Screen
    live: pyte.Screen | None


def steps_of(page: str) -> Iterator[Step]:
    """The page's commands in order."""
    words: tuple[str, ...] = ()
    names: list[str] = []
    for command, picture in STEP.findall(page):
        if command:
            if words:
                yield Step(words, tuple(names))
            words = tuple(shlex.split(command, comments=True))
            names = []
        else:
            names.append(picture)
    if words:
        yield Step(words, tuple(names))


def run(step: Step, words: list[str], folder: Path, environ: Mapping[str, str]) -> Ran:
    """Runs a command on a terminal of its own."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", WINDOW_LINES, COLUMNS, 0, 0))
    began = time.perf_counter()
    used = processor_seconds()
    screen = pyte.Screen(COLUMNS, MOST_LINES)
    screen.set_mode(modes.LNM)
    stream = pyte.ByteStream(screen)
    live: pyte.Screen | None = None
    looked = began
    process = subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=dict(environ)
    )
    os.close(theirs)
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not read:
            break
        stream.feed(read)
        if LIVE in step.pictures and live is None and time.perf_counter() - looked > LIVE_EVERY_S:
            looked = time.perf_counter()
            live = now(screen)
    os.close(ours)
    status = process.wait()
    return Ran(step, status, time.perf_counter() - began, processor_seconds() - used, screen, live)


def processor_seconds() -> float:
    """Of the processes that were begun from here and ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def now(screen: pyte.Screen) -> pyte.Screen | None:
    """A copy of the screen once half of the trials are done."""
    found = LIVE_AT.search("\n".join(screen.display))
    if not found or int(found[1]) < int(found[2]) / 2:
        return None
    copy = pyte.Screen(COLUMNS, MOST_LINES)
    for y, row in screen.buffer.items():
        for x, char in row.items():
            copy.buffer[y][x] = char
    return copy


def style_of(char: Char) -> Style:
    """Of one character of the terminal."""
    known = (
        None
        if char.fg == "default"
        else "yellow"
        if char.fg == "brown"
        else char.fg.replace("bright", "bright_")
    )
    if known and re.fullmatch("[0-9a-f]{6}", known):
        known = f"#{known}"
    color = Color.parse(known) if known else None
    return Style(
        color=color, bold=char.bold, italic=char.italics, underline=char.underscore, reverse=char.reverse
    )


def text_of(screen: pyte.Screen) -> Text:
    """All lines but the empty ones at the end."""
    lines: list[Text] = []
    for y in range(MOST_LINES):
        line = Text()
        for x in range(COLUMNS):
            char = screen.buffer[y][x]
            line.append(char.data, style_of(char))
        line.rstrip()
        lines.append(line)
    while lines and not lines[-1].plain:
        lines.pop()
    return Text("\n").join(lines)


def picture_of(screen: pyte.Screen, title: str) -> str:
    """SVG, without a font from the network."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(text_of(screen), no_wrap=True, crop=True)
    console.print()  # other fonts reach lower than the one that the height was made for
    drawn = FONT.sub("", console.export_svg(title=title, unique_id="tour"))
    return drawn.replace("Fira Code", "Menlo, Consolas, DejaVu Sans Mono")


def draw(ran: Ran) -> None:
    """Writes the pictures of a step."""
    PICTURES.mkdir(exist_ok=True)
    for name in ran.step.pictures:
        screen = ran.live if name == LIVE else ran.screen
        if screen is not None:
            drawn = picture_of(screen, f"$ {shlex.join(ran.step.words)}")
            (PICTURES / f"{name}.svg").write_text(drawn, encoding="utf-8")


def words_of(step: Step, trials: int | None) -> list[str]:
    """As it is run here: this Python, perhaps fewer trials."""
    words = [sys.executable, *step.words[1:]]
    if trials is not None and "--trials" in words:
        words[words.index("--trials") + 1] = str(trials)
    return words


def copy_to(folder: Path) -> None:
    """The project as a clone of it is, without data and runs: what is shown is what a reader sees."""
    command = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def check_paths(text: str, *folders: Path) -> None:
    """ValueError where a picture shows a folder of the machine that drew it, also broken over two lines."""
    joined = "".join(text.split())
    found = [str(folder) for folder in folders if len(folder.parts) > 1 and str(folder) in joined]
    if found:
        raise ValueError(f"a picture shows {', '.join(found)}:\n{text}")


def seconds_table(ran: list[Ran]) -> str:
    rows = [(shlex.join(one.step.words), one.seconds, one.processor_seconds) for one in ran]
    rows.append(("all", sum(one.seconds for one in ran), sum(one.processor_seconds for one in ran)))
    cores = f"{os.cpu_count()} shared {os.uname().machine} cores"
    lines = [f"| on {cores} | seconds | of processor |", "| --- | ---: | ---: |"]
    lines += [f"| `{command}` | {wall:,.0f} | {used:,.0f} |" for command, wall, used in rows]
    return "\n".join(["<!-- seconds -->", *lines, "<!-- end -->"])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="the pictures and the seconds of the page")
    parser.add_argument("--show", action="store_true", help="what each command showed")
    parser.add_argument("--trials", type=int, help="of the study, in place of what the page says")
    options = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    environ = os.environ | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "PYTHONWARNINGS": "ignore"}
    environ.pop("NO_COLOR", None)
    ran: list[Ran] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "caddie")
        copy_to(folder)
        for step in steps_of(page):
            one = run(step, words_of(step, options.trials), folder, environ)
            ran.append(one)
            took = f"{one.seconds:7.1f} s, {one.processor_seconds:7.1f} of processor"
            print(f"{took}, status {one.status}  {shlex.join(step.words)}", flush=True)
            text = text_of(one.screen).plain
            check_paths(text, Path(place), ROOT, Path.home())
            if options.show or one.status:
                print(text, flush=True)
            if one.status:
                return 1
            if options.write:
                draw(one)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(SECONDS.sub(lambda _: seconds_table(ran), page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
