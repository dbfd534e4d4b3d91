"""The tour's page, its pictures, and how a terminal becomes one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyte
import pytest

from benchmarks import tour
from benchmarks.tour import __main__ as made
from tests.conftest import ROOT

PAGE = made.PAGE.read_text(encoding="utf-8")


def screen_of(text: str) -> pyte.Screen:
    """What a terminal shows after it."""
    screen = pyte.Screen(made.COLUMNS, made.MOST_LINES)
    pyte.Stream(screen).feed(text)
    return screen


def test_the_page_is_read_whole() -> None:
    steps = list(made.steps_of(PAGE))
    commands = re.findall(r"^    \$ (.*)$", PAGE, re.MULTILINE)
    assert [" ".join(step.words).split()[:3] for step in steps] == [one.split()[:3] for one in commands]
    pictures = [name for step in steps for name in step.pictures]
    assert pictures == re.findall(r"pictures/([\w-]+)\.svg", PAGE) and len(set(pictures)) == len(pictures)
    assert made.LIVE in steps[0].pictures


@pytest.mark.parametrize("name", [name for step in made.steps_of(PAGE) for name in step.pictures])
def test_every_picture_is_there_and_offline(name: str) -> None:
    drawn = (made.PICTURES / f"{name}.svg").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]*>", "", drawn)
    assert "<text" in drawn and "@font-face" not in drawn and "url(http" not in drawn
    assert not re.search(r"/(?:tmp|root|home|work)/", text), "a folder of the machine that drew it"
    assert not re.search(r"Traceback|\?{6}", text)


def test_a_picture_keeps_text_and_colours() -> None:
    screen = screen_of("plain \x1b[1;32mgreen\x1b[0m & <odd>\r\nsecond\r\n\r\n")
    assert made.text_of(screen).plain == "plain green & <odd>\nsecond"
    drawn = made.picture_of(screen, "$ python search.py best")
    shown = re.sub(r"<[^>]*>", "", drawn).replace("&#160;", " ")
    assert (
        "plain" in shown and "green" in shown and "&lt;odd&gt;" in shown and "python search.py best" in shown
    )
    assert "@font-face" not in drawn and "url(http" not in drawn and "Fira" not in drawn


def test_the_live_picture_is_of_half_the_trials() -> None:
    for done, running, taken in ((9, 2, False), (10, 2, True), (12, 1, False)):
        told = f"laptop · {done} of 20 done, {running} running · 5:12"
        assert (made.now(screen_of(told)) is not None) == taken, told


def test_the_study_may_be_smaller() -> None:
    search = made.Step(("python", "search.py", "--trials", "20", "--workers", "2"), ())
    words = made.words_of(search, 3)
    assert words[0] == sys.executable and words[words.index("--trials") + 1] == "3"
    assert made.words_of(search, None)[1:] == list(search.words[1:])


def test_it_runs_in_a_copy_without_data(tmp_path: Path) -> None:
    made.copy_to(tmp_path)
    assert (tmp_path / "search.py").read_bytes() == (ROOT / "search.py").read_bytes()
    assert not any((tmp_path / name).exists() for name in ("data", "runs", ".caddie", ".venv", ".git"))


@pytest.mark.parametrize("text", ["in /a/place/runs", "in /a/pla\nce/runs"])
def test_a_folder_of_this_machine_is_no_picture(text: str) -> None:
    made.check_paths("runs/laptop", Path("/a/place"), Path("/"))
    with pytest.raises(ValueError, match="/a/place"):
        made.check_paths(text, Path("/a/place"), Path("/"))


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_command_of_the_tour_runs() -> None:
    words = [sys.executable, "-m", tour.__name__, "--trials", "3"]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("status 0") == len(list(made.steps_of(PAGE)))
