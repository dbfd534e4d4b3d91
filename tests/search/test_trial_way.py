"""How much of the search a reader meets who follows `--trials 1` from the command to the stored trial."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.search.fake_studies import ROOT, caddie, clear, read_trials, search, states, write_study

pytestmark = pytest.mark.slow

MOST_FILES = 45  # 54 of 77 before search/ had rooms
# Python runs a `sitecustomize` at its start: this one notes every file of search/, and of the rooms beside
# it, in which a function is called, in the launcher, the worker and the server's keeper. What runs while a
# module loads does not count.
HOOK = """
import os, sys, threading
FOLDER, NOTES = {folder!r}, {notes!r}
ROOMS = tuple(FOLDER + room for room in ("search/", "bundle/", "claims/", "pages/", "readers/"))
seen = set()
def loading(frame):
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
def note(frame, event, _):
    name = frame.f_code.co_filename
    if event == "call" and name not in seen and name.startswith(ROOMS):
        if frame.f_code.co_name != "<module>" and not loading(frame):
            seen.add(name)
            with open(NOTES, "a") as file:
                file.write(name.removeprefix(FOLDER) + "\\n")
threading.setprofile(note)
sys.setprofile(note)
"""


def test_one_trial_enters_few_files(tmp_path: Path) -> None:
    home, notes = tmp_path / "home", tmp_path / "entered"
    home.mkdir()
    hook = HOOK.format(folder=f"{ROOT}/", notes=str(notes))
    (tmp_path / "sitecustomize.py").write_text(hook)
    study = write_study(home, "way")
    study.write_text(study.read_text().replace('kind = "tpe"', 'kind = "structured"'))
    try:
        ran = caddie(*search(study, home, 1, 1), PYTHONPATH=str(tmp_path))
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert states(read_trials(study, home)) == {"COMPLETE": 1}
    finally:
        clear(home)
    entered = sorted(set(notes.read_text().split()))
    assert {"search/cli.py", "search/run.py", "search/workers/worker.py", "search/storage/bulk.py"} <= {
        *entered
    }, entered
    assert len(entered) <= MOST_FILES, f"{len(entered)} files of search/: {' '.join(entered)}"
    print(len(entered), *entered)
