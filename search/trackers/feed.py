"""Feed: hands each finished trial to a process that tells one tracker.

A process of its own (search/trackers/__main__.py), so that no tracker can fail, slow or stop a trial or
another tracker, and no worker loads its library. What a trial says lies beside its files as tracked.json; a
process that died is started again with the next trial and given what it left untold, DEATHS times. The first
trouble is told.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from search.common.options import ENVIRONMENT
from search.common.paths import ROOT, Folders, shown
from search.trackers.facts import facts_of
from search.trackers.files import FACTS, is_told, mark_of

DEATHS = 3  # of its process, after which a worker starts no other
CLOSE_S = 60.0  # for what is still to be told when a worker ends


def check_trackers(names: Sequence[str]) -> None:
    """ValueError where a tracker's library is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"The study's trackers need their libraries, but {name} is not installed. Install it: pip "
                f"install 'caddie[{name}]', or leave it out of `trackers` in [study]."
            )


class Feed:
    """One worker's. `complain` is called once, with what went wrong."""

    def __init__(self, name: str, folders: Folders, complain: Callable[[str], None]):
        self.name = name
        self.folders = folders
        self.log = folders.runs / "workers" / f"{name}-{os.uname().nodename}-{os.getpid()}.log"
        self.complain = complain
        self.process: subprocess.Popen[bytes] | None = None
        self.given: list[Path] = []  # folders of trials that were handed over and are not known to be told
        self.deaths = 0
        self.complained = False

    def tell(self, trial: FrozenTrial) -> None:
        """Hands over a finished trial; one that was interrupted is none."""
        folder = self.folders.trial(trial.number)
        if trial.state == TrialState.FAIL or not folder.is_dir():
            return
        try:
            text = json.dumps(facts_of(self.folders.study, trial, folder), indent=1, sort_keys=True)
            mark_of(self.name, folder).unlink(missing_ok=True)
            (folder / FACTS).write_text(f"{text}\n", encoding="utf-8")
            self._send(folder)
        except OSError as error:
            self._fail(f"{error.filename or self.log}: {error.strerror}")

    def close(self, *, wait: bool) -> None:
        """No more trials come: its process ends by itself when all are told. `wait`: for that, CLOSE_S."""
        process = self.process
        self.process = None
        if process is None or process.stdin is None:
            return
        with contextlib.suppress(OSError):
            process.stdin.close()
        if not wait:
            return
        try:
            if process.wait(CLOSE_S):
                self._fail(self._last_words())
        except subprocess.TimeoutExpired:
            self._fail(f"still at work after {CLOSE_S:.0f} s; it goes on")

    def _send(self, folder: Path) -> None:
        """Gives the process the newest trial; a new process all that are not told."""
        self.given = [*(f for f in self.given if not is_told(self.name, f)), folder]
        if self.process is not None and self.process.poll() is not None:
            self.process = None
            self.deaths += 1
            self._fail(self._last_words())
        if self.deaths > DEATHS:
            return
        new = self.given if self.process is None else [folder]
        self.process = self.process or self._started()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died just now: the next trial finds out
            self.process.stdin.write("".join(f"{f}\n" for f in new).encode())
            self.process.stdin.flush()

    def _started(self) -> subprocess.Popen[bytes]:
        """In a session of its own: what stops the worker lets it finish."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if name != ENVIRONMENT}
        with self.log.open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "search.trackers", str(self.folders.runs), self.name],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it ended without a word"

    def _fail(self, why: str) -> None:
        if not self.complained:
            self.complained = True
            self.complain(f"{self.name}: {why} (log: {shown(self.log)}); no trial is the worse for it")
