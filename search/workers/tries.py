"""try_draft(out, found, count): runs random draws of a draft for one step each, and takes out what crashes.

A draw that crashed is run again with fewer of its settings (what is left out keeps the script's default),
until one setting alone crashes or none can be spared. Of that setting the value is dropped, a range ends half
way to the default, a switch stays as the script has it; the draft says why. A run that is still going at the
time limit, or ended well but without a score, has run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from readers.scan import Read, Scan
from search.common.errors import InfrastructureError
from search.space.foreign import config_of
from search.study.foreign import Binding, Foreign, Variable
from search.study.load import load_draft
from search.study.model import Study
from search.trainers.foreign.draft import STEPS
from search.trainers.foreign.draws import draws
from search.trainers.process import Job, run_trainer, trainer_environment
from search.trainers.trainer import trainer_of
from techniques.base import Choice, Float

CRASHES = ("crash:", "out of memory:", "diverged:", "refused:")  # of a failed run's reasons
NEAR = 0.05  # of the default: where that crashes too, no range is left
SPARE = 16  # runs at most that look for the setting which crashes
Params = Mapping[str, Any]


def try_draft(
    out: Path, found: Scan, count: int, *, timeout_s: float = 60.0, say: Callable[[str], None] = print
) -> None:
    """Edits the draft `out` of the scan; tells what came of `count` draws. ValueError where none can run."""
    limit = steps_of(found)
    told = f"with {limit.name} = 1" if limit else f"each for at most {timeout_s:g} s"
    say(f"  trying {count} draws, {told} …")
    with tempfile.TemporaryDirectory(prefix="tries-") as made:
        runs = _Runs(out, limit, Path(made), timeout_s)
        if problem := runs.crash({}):
            say(f"  the script as it is does not run here, so no draw was tried: {problem}")
            return
        crashed = 0
        tried = 0
        for k in range(count):
            _, foreign = runs.study()
            if not foreign.variables:
                say(
                    "  nothing is left to draw" if k else "  nothing to draw: the draft searches over nothing"
                )
                break
            tried += 1
            draw = next(draws(foreign, 1, seed=k))
            if problem := runs.crash(draw):
                crashed += 1
                alone = dict(runs.least(draw))
                problem = runs.crash(alone) or problem
                name = [*alone][-1]
                with_it = ", ".join(f"{n} = {_short(v)}" for n, v in alone.items())
                change = drop(out, foreign.variables[name], alone[name], found.reads.get(name), problem)
                say(f"  {with_it}: {problem[:200]}\n    {change}")
        say(f"  {tried - crashed} of {tried} draws ran" + (f"; {crashed} crashed" if crashed else ""))


def steps_of(found: Scan) -> Read | None:
    """The setting that limits a run to one step, by its name."""
    named = [
        r for r in found.reads.values() if STEPS.match(r.upper) and r.kind == "int" and (r.default or 0) > 1
    ]
    return named[0] if named else None


class _Runs:
    """Runs of a draft, one step each."""

    def __init__(self, out: Path, limit: Read | None, home: Path, timeout_s: float):
        self.out = out
        self.limit = limit
        self.home = home
        self.timeout_s = timeout_s
        self.ran = 0

    def study(self) -> tuple[Study, Foreign]:
        """(the draft as it is now, its runs one step long; its script)."""
        study, foreign = load_draft(self.out)
        limit = self.limit
        if limit is not None:
            fixed = foreign.fixed | {limit.name: 1}
            bound = {limit.name: Binding(limit.table, limit.where)} if limit.table else {}
            variables = {n: v for n, v in foreign.variables.items() if n != limit.name}
            changes = {"fixed": fixed, "variables": variables, "bindings": bound | foreign.bindings}
            foreign = dataclasses.replace(foreign, **changes)
        return dataclasses.replace(study, foreign=foreign), foreign

    def crash(self, params: Params) -> str:
        """Why a run with these settings crashed; "" when it ran."""
        study, foreign = self.study()
        trainer = trainer_of(study)
        trainer.check()
        self.ran += 1
        job = Job(
            self.home / str(self.ran),
            trainer.complete(config_of(foreign, params)),
            trainer_environment(os.environ, strip=trainer.hidden(), num_threads=0),
            timeout_s=self.timeout_s,
            command=trainer.command(),
        )
        try:
            outcome = run_trainer(job, on_report=lambda record, reports: None)
        except InfrastructureError as error:
            return re.sub(
                r"^.*?exit status \d+: (?:the script ended with exit status \d+: )?", "", str(error)
            )
        failed = outcome.kind == "failed" and outcome.reason.startswith(CRASHES)
        return outcome.reason.removeprefix("crash: ") if failed else ""

    def least(self, draw: Params) -> Params:
        """As few of a draw's settings as still crash: halves while one half does, then one less at a time."""
        until = self.ran + SPARE
        left = list(draw.items())
        while len(left) > 1 and self.ran < until:
            half = len(left) // 2
            crashing = next((h for h in (left[:half], left[half:]) if self.crash(dict(h))), None)
            if crashing is None:
                break
            left = crashing
        for item in list(left):
            fewer = [other for other in left if other != item]
            if fewer and self.ran < until and self.crash(dict(fewer)):
                left = fewer
        return dict(left)


def drop(out: Path, variable: Variable, value: Any, read: Read | None, reason: str) -> str:
    """Takes a value that crashed out of the draft; returns what was done, in words."""
    name, default = variable.name, None if read is None else read.default
    spec = _narrower(variable, value, default)
    why = f"# {name} = {_short(value)} crashed when it was tried: {' '.join(reason.split())[:160]}"
    kept = list[str]()
    for line in out.read_text(encoding="utf-8").splitlines():
        depends = re.search(rf', when = (?:"{name}"|\{{ {name} = [^}}]*\}})', line)
        if line.startswith(f"{name} = {{"):
            kept.append(why)
            line = (
                re.sub(r"low = [^,]+, high = [^,} ]+|choices = \[[^]]*\]", spec, line)
                if spec
                else f"# {line}"
            )
        elif depends and not spec:  # its parent is what the script has
            line = line.replace(depends[0], "") if default else f"# {line}"
        elif line.startswith(f"{name} = ") and not spec:  # where it went
            line = f"# {line}"
        kept.append(line)
    out.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return f"{name} {'is now ' + spec if spec else 'stays as the script has it'}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _narrower(variable: Variable, value: Any, default: Any) -> str:
    """The domain without a value that crashed, as TOML: a choice less, or half the way to the default; ""
    where nothing is left to choose."""
    domain = variable.domain
    if isinstance(domain, Choice):
        left = [option for option in domain.options if option != value]
        return f"choices = {json.dumps(left)}" if len(left) > 1 and not variable.gate else ""
    if isinstance(default, bool) or not isinstance(default, int | float):
        return ""
    if math.isclose(value, default, rel_tol=NEAR):
        return ""
    half = math.sqrt(value * default) if domain.log and value * default > 0 else (value + default) / 2
    half = half if isinstance(domain, Float) else math.floor(half) if value > default else math.ceil(half)
    low = float(domain.low) if value > default else float(half)
    high = float(half) if value > default else float(domain.high)
    if isinstance(domain, Float):
        return f"low = {float(f'{low:.6g}')!r}, high = {float(f'{high:.6g}')!r}" if low < high else ""
    least = int(domain.low) + math.ceil((int(low) - int(domain.low)) / domain.step) * domain.step
    return f"low = {least}, high = {int(high)}" if least < high else ""
