"""A study at a glance while it runs: a live view on a terminal, else a line for each trial that ended.

The trials that are not finished are read every INTERVAL_S (the others are cached); what is drawn between,
every TICK_S, comes from the files of this machine's trials. Counts are taken anew only when a trial ended.
"""

from __future__ import annotations

import textwrap
import time
from collections import Counter
from collections.abc import Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType
from rich.text import Text

from search.common.attributes import OUTCOME, REASON, REPLICATE, UNUSED
from search.common.console import counted
from search.common.paths import Folders
from search.report.rows import Snapshot, listed, snapshot
from search.report.running import Running, Watch
from search.study.limits import broken_limits, figures_summary, has_failed

INTERVAL_S = 2.0
TICK_S = 1.0
LATEST = 5  # ended trials that are shown
HEAD = f"{'trial':>6}  {'stage':<8}  {'step':>13}  {'early BPB':>9}  {'elapsed':>8}  {'ends in':>8}"
ENDED = f"{'ended':>6}  {'BPB':<6}  what came of it"
NO_BREAK = "\0"  # within one count
ROOM = 100  # columns from which a running trial's techniques are shown


def duration(seconds: float) -> str:
    """1 h 05 min, 12 min, 40 s."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def clock(seconds: float) -> str:
    """0:07, 12:40, 1:05:00."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def fit(text: str, width: int) -> str:
    """On one line of so many columns."""
    line = " ".join(text.splitlines())
    return line if len(line) <= width else f"{line[: max(0, width - 1)]}…"


def verdict_of(trial: FrozenTrial, best: int | None) -> str:
    """What became of a trial that ended."""
    attrs = trial.user_attrs
    reason = str(attrs.get(REASON) or "")
    if trial.state == TrialState.FAIL:
        return "interrupted, tried again"
    if trial.state == TrialState.PRUNED:
        return f"failed: {reason}" if has_failed(trial) else f"pruned: {reason}"
    over = [(limit, attrs.get(limit.figure)) for limit in broken_limits(trial)]
    told = [
        limit.over(figure, figure / (1.0 + trial.constraints[limit.constraint])) if figure else limit.label
        for limit, figure in over
    ]
    again = f", trial #{attrs[REPLICATE]['of']} again" if REPLICATE in attrs else ""
    if told:
        return f"over a limit: {'; '.join(told)}{again}"
    return f"within all limits{again}{', the best observed so far' if trial.number == best else ''}"


def reasons_of(trials: Sequence[FrozenTrial], seen: Snapshot) -> list[str]:
    """What became of all trials, by reason."""
    limits = Counter(n.label for t in trials if t.state == TrialState.COMPLETE for n in broken_limits(t))
    failed = Counter(
        str(t.user_attrs.get(REASON, "not told")).partition(":")[0]
        for t in trials
        if t.state == TrialState.PRUNED and has_failed(t)
    )
    parts = (
        (seen.complete - seen.infeasible, "within all limits"),
        (seen.infeasible, f"over a limit{listed(limits)}"),
        (seen.pruned, "pruned"),
        (seen.rejected, f"failed{listed(failed)}"),
        (seen.resampled, f"resampled before running{listed(seen.drawn)}"),
        (seen.failed, "interrupted and tried again"),
        (seen.waiting, "waiting"),
    )
    return [f"{count} {what}" for k, (count, what) in enumerate(parts) if count or k < 2]


class Progress:
    """Shows a study; use as a context manager, call `look` as often as you like."""

    def __init__(self, study: optuna.Study, target: int, console: Console, folders: Folders | None = None):
        self.study, self.target, self.console = study, target, console
        live = Live(console=console, auto_refresh=False, transient=True)
        self.live = live if console.is_interactive else None
        self.after = ""  # what comes when all trials are done
        self.width = console.width
        self.shown = list[str]()  # lines on the screen
        self.began = time.monotonic()
        self.looked = self.drawn = 0.0
        self.at_start = -1  # trials that were finished at the first look; -1: there was none
        self.watch = Watch(folders) if self.live is not None else None
        self.ended: set[int] = set()
        self.latest: list[FrozenTrial] = []  # the newest first
        self.running: list[FrozenTrial] = []
        self.seen: Snapshot | None = None
        self.reasons = list[str]()
        self.note = ""

    def __enter__(self) -> Progress:
        self._read()  # what ended before is no news
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def look(self, *, now: bool = False) -> None:
        """Reads and shows, at most every INTERVAL_S; `now`: at once, also what was too quick to be seen."""
        at = time.monotonic()
        if now or at - self.looked >= INTERVAL_S:
            self.looked = at
            self._read()
        elif at - self.drawn < TICK_S:
            return
        if self.live is not None:
            self.drawn = at
            self._draw(self.live)

    def leave(self, note: str) -> None:
        """The last view, with what happens now."""
        self.note = note
        if self.live is not None and self.seen is not None:
            self._draw(self.live)

    def _read(self) -> None:
        trials = self.study.get_trials(deepcopy=False)
        self.running = [t for t in trials if t.state == TrialState.RUNNING]
        new = [t for t in trials if t.state.is_finished() and t.number not in self.ended]
        if self.seen is None or new:
            self.seen = snapshot(trials, self.target)
            self.reasons = reasons_of(trials, self.seen) if self.live is not None else []
        self.ended.update(t.number for t in new)
        new = [t for t in new if t.user_attrs.get(OUTCOME) != UNUSED]
        new.sort(key=lambda t: (t.datetime_complete is not None, t.datetime_complete, t.number))
        if self.watch is not None:
            for trial in new:
                self.watch.ended(trial)
        if self.live is None and self.at_start >= 0:
            self._print(new, self.seen)
        self.latest = [*reversed(new[-LATEST:]), *self.latest][:LATEST]
        if self.at_start < 0:
            self.at_start = self.seen.finished

    def _print(self, new: Sequence[FrozenTrial], seen: Snapshot) -> None:
        best = seen.best.number if seen.best else None
        for trial in new:
            bpb = "" if trial.value is None else f" {trial.value:.4f} bits/byte"
            line = f"#{trial.number}{bpb}, {verdict_of(trial, best)}"
            if trial is new[-1]:
                counts = f"{seen.finished} of {seen.target} trials done, {len(self.running)} running"
                line = " · ".join([line, counts, *self._pace(seen)])
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _pace(self, seen: Snapshot) -> list[str]:
        done = seen.finished - max(0, self.at_start)
        elapsed_s = time.monotonic() - self.began
        if done <= 0 or elapsed_s <= 0.0:
            return []
        left_s = max(0, seen.target - seen.finished) * elapsed_s / done
        return [f"{3600 * done / elapsed_s:.0f} trials/h", *([f"{duration(left_s)} to go"] if left_s else [])]

    def _draw(self, live: Live) -> None:
        width = self.console.width
        wrapped = sum((len(line) - 1) // width for line in self.shown if line)
        if width < self.width and wrapped:  # terminals wrap what stands there, and rich counts its own lines
            live.update(Text(), refresh=True)
            up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
            self.console.control(Control(*up * wrapped))
        lines = self.lines()
        self.width = width
        self.shown = [line.plain for line in lines]
        live.update(Text("\n").join(lines), refresh=True)

    def lines(self) -> list[Text]:
        """The view, in the console's width and height."""
        width, height = self.console.size
        seen = self.seen
        assert seen is not None
        elapsed = clock(time.monotonic() - self.began)
        counts = f"{seen.finished} of {seen.target} done, {len(self.running)} running"
        rest = " · ".join(["", counts, elapsed, *self._pace(seen)])
        name = fit(self.study.study_name, max(8, width - len(rest)))
        head = Text(fit(f"{name}{rest}", width), "bold")
        whole = ", ".join(part.replace(" ", NO_BREAK) for part in self.reasons)
        foot = [Text(line.replace(NO_BREAK, " ")) for line in textwrap.wrap(whole, width)[:4]]
        foot += [Text(fit(self.after, width), "dim")] if self.after else []
        foot += [Text(fit(self.note, width), "bold")] if self.note else []
        best = self._best(width)
        room = height - 1 - len(foot) - len(best) - 7  # heads and lines between
        shown = max(1, min(len(self.latest), max(room // 3, room - len(self.running))))
        seen_now = [self.watch.row(t) for t in self.running] if self.watch else []
        over = bool(self.note) or seen.finished >= seen.target
        rows = rows_of(seen_now, max(1, room - shown), width, "stop" if over else "start")
        ended = [self._ended(trial, width) for trial in self.latest[:shown]]
        middle = [Text(), Text(fit(HEAD, width), "dim"), *rows, Text()]
        if ended:
            middle += [Text(fit(ENDED, width), "dim"), *ended, Text()]
        return [Text(), head, *best, *middle, *foot][: height - 1]

    def _best(self, width: int) -> list[Text]:
        best = self.seen.best if self.seen else None
        if best is None:
            return [Text(fit("no trial within all limits yet", width))]
        mean = f" (mean of seeds {best.confirmed})" if best.confirmed else ""
        told = f"best observed #{best.number}: {best.bpb:.4f} bits/byte{mean}"
        told += f", {figures_summary(best.figures)}"
        return [Text(fit(line, width), "green") for line in textwrap.wrap(told, width)[:2]]

    def _ended(self, trial: FrozenTrial, width: int) -> Text:
        best = self.seen.best.number if self.seen and self.seen.best else None
        bpb = "" if trial.value is None else f"{trial.value:.4f}"
        verdict = verdict_of(trial, best)
        style = "" if verdict.startswith("within") else "red" if verdict.startswith("failed") else "yellow"
        number = f"#{trial.number}"
        return Text(fit(f"{number:>6}  {bpb:<6}  {verdict}", width), style)


def rows_of(running: Sequence[Running], room: int, width: int, workers: str) -> list[Text]:
    """A line for each running trial, the rest by stage where there is no room; else what `workers` do."""
    shown = running if len(running) <= room else running[: room - 1]
    lines = list[Text]()
    for one in shown:
        bpb = "" if one.bpb is None else f"{one.bpb:.4f}"
        left = "" if one.left_s is None else clock(one.left_s) if one.left_s >= 1.0 else "soon"
        number = f"#{one.number}"
        line = f"{number:>6}  {one.stage:<8}  {one.steps:>13}  {bpb:>9}  {clock(one.elapsed_s):>8}  {left:>8}"
        lines.append(Text(fit(f"{line}  {one.told}" if width >= ROOM else line, width)))
    if rest := running[len(shown) :]:
        stages = Counter(one.stage for one in rest)
        told = ", ".join(f"{count} in {stage}" for stage, count in stages.items())
        lines.append(Text(fit(f"        and {counted(len(rest), 'trial')} more: {told}", width)))
    return lines or [Text(f"        none: workers {workers}")]
