"""A study at a glance while it runs: live on a terminal, else a line whenever something finished.

One look costs one read of the trials that are not finished (the others are cached), every INTERVAL_S.
"""

from __future__ import annotations

import time

import optuna
from rich.console import Console
from rich.live import Live
from rich.text import Text

from search.common.console import counted
from search.report.rows import Snapshot, snapshot
from search.study.limits import figures_summary

INTERVAL_S = 2.0
QUIET_S = 30.0  # without a terminal: a line at least this often


def duration(seconds: float) -> str:
    """1 h 05 min, 12 min, 40 s."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


class Progress:
    """Shows snapshots; use as a context manager, call `look` as often as you like."""

    def __init__(self, study: optuna.Study, target: int, console: Console):
        self.study, self.target, self.console = study, target, console
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self.began = self.looked = self.printed = time.monotonic()
        self.at_start: int | None = None
        self.last: tuple[int, int] = (-1, -1)

    def __enter__(self) -> Progress:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def look(self, *, now: bool = False) -> None:
        """Reads and shows, at most every INTERVAL_S; `now`: at once, also what was too quick to be seen."""
        if not now and time.monotonic() - self.looked < INTERVAL_S:
            return
        seen = snapshot(self.study.get_trials(deepcopy=False), self.target)
        self.looked = time.monotonic()
        if self.at_start is None:
            self.at_start = seen.finished
        if self.live is not None:
            self.live.update(Text("\n".join(self.lines(seen))), refresh=True)
            return
        changed = self.last != (seen.finished, seen.failed)
        first_runs = seen.running > 0 and self.last == (-1, -1)
        if first_runs or (changed and (now or self.last != (-1, -1))) or self.looked - self.printed > QUIET_S:
            self.printed = self.looked
            self.last = (seen.finished, seen.failed)
            self.console.print(" · ".join(self.lines(seen)), highlight=False, soft_wrap=True)

    def lines(self, seen: Snapshot) -> list[str]:
        """What is shown: counts, the best, the pace."""
        elapsed_s = self.looked - self.began
        counts = f"{seen.finished} of {seen.target} trials done, {seen.running} running, {seen.pruned} pruned"
        counts += f", {seen.infeasible_text}, {counted(seen.rejected, 'failed configuration')}"
        if seen.failed:
            counts += f", {seen.failed} lost to the machine and tried again"
        counts += f"; {seen.resampled} resampled before running"
        out = [counts, "no feasible trial yet"]
        best = seen.best
        if best is not None:
            out[1] = f"best #{best.number}: {best.bpb:.4f} bits/byte, {figures_summary(best.figures)}"
        done = seen.finished - (self.at_start or 0)
        if done > 0 and elapsed_s > 0:
            rate = done / elapsed_s
            left = max(0, seen.target - seen.finished) / rate
            out.append(f"{3600 * rate:.0f} trials/h, {duration(left)} to go")
        return out
