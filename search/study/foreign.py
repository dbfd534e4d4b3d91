"""parse_foreign(tables, path) -> Foreign: the [trainer], [fixed] and [space] tables of a study that drives
somebody else's script; docs/any_trainer.md has every entry.

    [fixed]    NAME = value                                environment variables of every run
    [space]    NAME = { low, high, log, step, type }       a number
               NAME = { gate = true, unset = true }        a switch that is off when it is not set
               NAME = { choices }                          one of these
               NAME = { gate = true, on, off }             a switch: on = "1", off = "0"
               …, when = "GATE" or { PARENT = [values] }   asked for only then; else the script's default
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from techniques.base import Choice, Float, Int, nearest

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
PLACES = ("python", "script", "gpus", "work")  # what a command may name in braces
PLACE = re.compile(r"\{(\w*)\}")
KEYS = ("low", "high", "log", "step", "type", "choices", "gate", "on", "off", "unset", "when")
UNSET = "\0"  # the text of what is not set at all; no variable can have it
TYPES = ("int", "float")
OCCURRENCES = ("only", "first", "last")
Value = str | int | float | bool


@dataclass(frozen=True)
class Variable:
    """One environment variable that the search varies."""

    name: str
    domain: Float | Int | Choice
    gate: bool = False
    on: str = "1"
    off: str = "0"
    when: tuple[str, tuple[Any, ...]] | None = None  # parent, values of it with which this one is asked for

    def text(self, value: Any) -> str:
        return (self.on if value else self.off) if self.gate else as_text(value)


@dataclass(frozen=True)
class Foreign:
    """How a foreign trainer is run and read; `variables` has parents before what depends on them."""

    script: str = ""  # path; --trainer gives another
    command: tuple[str, ...] = ("{python}", "{script}")
    folder: str = ""  # what a working folder is made from; empty: the script's own
    private: tuple[str, ...] = ()  # folders that every run gets empty
    passed: tuple[str, ...] = ()  # variables of the shell that the script may see
    files: tuple[str, ...] = ()  # globs of what counts as artifact, in the working folder
    keep: tuple[str, ...] = ()  # globs of what stays after a run
    score: tuple[str, ...] = ()
    occurrence: str = "only"
    size: str | None = None
    eval_lines: tuple[str, ...] = ()
    wallclock: str = ""  # variable with the training budget, s
    warmdown: str = ""  # variable with the warm-down, steps
    warmdown_frac: str = ""  # or with its share of the budget
    seed: str = ""  # variable with the seed, for replicates
    silent_seconds: float = 0.0  # without output before a run is given up; 0: only the time limit counts
    max_output_bytes: int = 256_000_000
    fixed: dict[str, Value] = field(default_factory=dict[str, Value])
    variables: dict[str, Variable] = field(default_factory=dict[str, Variable])

    def identity(self) -> dict[str, Any]:
        """What a study of it samples and measures: not where the script lies, not what is kept."""
        kept = dataclasses.asdict(self)
        for name in ("script", "folder", "keep", "seed", "silent_seconds", "max_output_bytes"):
            kept.pop(name)
        for name, variable in self.variables.items():
            kept["variables"][name]["domain"]["kind"] = type(variable.domain).__name__
        return kept

    def found(self, script: Path | None) -> Foreign:
        """The same with its paths: `script` (`--trainer`) or its own, and the folder that it runs in."""
        own = str(script.resolve()) if script is not None else self.script
        folder = self.folder or (str(Path(own).parent) if own else "")
        return dataclasses.replace(self, script=own, folder=folder)


def as_text(value: Any) -> str:
    """A value as an environment variable: booleans are 1 and 0."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def refuse_native(tables: Mapping[str, Mapping[str, Any]]) -> None:
    """ValueError for what only a study of our trainer can say."""
    if tables["techniques"]:
        raise ValueError(
            "[techniques] switches techniques of this trainer, but [trainer] drives a script of its own. "
            "Write its switches in [space]: NAME = { gate = true }."
        )
    if tables["study"].get("preset") or "track" in tables["study"]:
        raise ValueError(
            "`study.preset` and `study.track` say something about this trainer's techniques, but [trainer] "
            "drives another script. Drop them; what is fixed stands in [fixed]."
        )


def parse_foreign(tables: Mapping[str, Mapping[str, Any]], path: Path) -> Foreign:
    """The tables of a study file at `path`, checked. Raises ValueError."""
    table = dict(tables["trainer"])
    fields = {f.name: f for f in dataclasses.fields(Foreign) if f.name not in ("fixed", "variables")}
    names = {"pass" if name == "passed" else name: name for name in fields}
    given: dict[str, Any] = {}
    for key, value in table.items():
        if key not in names:
            raise ValueError(f"[trainer] has no key {key!r}. {nearest(key, names)}")
        given[names[key]] = _trainer_value(key, value, fields[names[key]].default)
    for key in ("script", "folder"):
        if given.get(key):
            given[key] = str((path.parent / given[key]).resolve())
    if given.get("occurrence", "only") not in OCCURRENCES:
        raise ValueError(
            f"`trainer.occurrence` must be one of {', '.join(OCCURRENCES)}, but got {given['occurrence']!r}."
        )
    space = tables["space"]
    variables = {n: _variable(n, cast("Any", s)) for n, s in space.items() if isinstance(s, Mapping)}
    plain = {n: v for n, v in space.items() if not isinstance(v, Mapping)}
    fixed = {name: _fixed_value(name, value) for name, value in {**tables["fixed"], **plain}.items()}
    foreign = Foreign(**given, fixed=fixed, variables=_parents_first(variables, fixed))
    for key in ("wallclock", "warmdown", "warmdown_frac"):
        name = getattr(foreign, key)
        if name and name not in fixed and name not in variables:
            raise ValueError(
                f"`trainer.{key}` names a variable whose value the study knows, but {name} is neither in "
                "[fixed] nor in [space]. Add it to [fixed] with the script's default."
            )
    return foreign


def _trainer_value(key: str, value: Any, default: Any) -> Any:
    if key == "command":
        return _command(value)
    if isinstance(default, tuple):
        many = cast("list[Any]", value if isinstance(value, list) else [value])
        if not all(isinstance(one, str) and one for one in many):
            raise ValueError(f"`trainer.{key}` takes a list of texts, but got {value!r}.")
        return tuple(many)
    if isinstance(default, float | int):
        fine = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        if not fine or not math.isfinite(value):
            raise ValueError(f"`trainer.{key}` takes a number that is not negative, but got {value!r}.")
        return type(default)(value)
    if not isinstance(value, str):
        raise ValueError(f"`trainer.{key}` takes a text, but got {value!r}.")
    return value


def _command(value: Any) -> tuple[str, ...]:
    try:
        words = shlex.split(value) if isinstance(value, str) else []
    except ValueError as error:
        raise ValueError(f"`trainer.command` must be a command line, but {error}: {value!r}.") from None
    if not words:
        raise ValueError(
            f"`trainer.command` takes a command line such as '{{python}} {{script}}', but got {value!r}."
        )
    for place in [m for word in words for m in PLACE.findall(word)]:
        if place not in PLACES:
            raise ValueError(
                f"`trainer.command` knows {', '.join('{' + p + '}' for p in PLACES)}, but got "
                f"{{{place}}}. {nearest(place, PLACES)}"
            )
    if not any("{script}" in word for word in words):
        raise ValueError(f"`trainer.command` must run the script, but {value!r} has no {{script}}. Add it.")
    return tuple(words)


def _fixed_value(name: str, value: Any) -> Value:
    _check_name(name)
    if not isinstance(value, str | int | float | bool):
        raise ValueError(f"`{name}` is an environment variable: a text or a number, but got {value!r}.")
    return value


def _check_name(name: str) -> None:
    if not VARIABLE.fullmatch(name):
        raise ValueError(f"An environment variable has letters, digits and _, but got {name!r}. Rename it.")


def _variable(name: str, spec: Mapping[str, Any]) -> Variable:
    _check_name(name)
    for key in spec:
        if key not in KEYS:
            raise ValueError(f"`{name}` has no key {key!r} in [space]. {nearest(key, KEYS)}")
    when = _when(name, spec.get("when"))
    if "gate" in spec:
        off = UNSET if spec.get("unset") is True else as_text(spec.get("off", "0"))
        texts = (as_text(spec.get("on", "1")), off)
        known = {"gate", "on", "off", "unset", "when"}
        if spec["gate"] is not True or not {*spec} <= known or texts[0] == off or {"off", "unset"} <= {*spec}:
            raise ValueError(
                f"`{name}` is a gate: gate = true, and on and off, two different texts (or unset = true for "
                f"one that is off when it is not set), but got {dict(spec)}."
            )
        return Variable(name, Choice((False, True)), True, *texts, when)
    return Variable(name, _domain(name, {k: v for k, v in spec.items() if k != "when"}), when=when)


def _domain(name: str, spec: Mapping[str, Any]) -> Float | Int | Choice:
    if "choices" in spec:
        options = spec["choices"]
        if set(spec) != {"choices"} or not isinstance(options, list) or not options:
            raise ValueError(f"`{name}` takes either choices = [...] or low and high, but got {dict(spec)}.")
        values = [_fixed_value(name, option) for option in cast("list[Any]", options)]
        return Choice(tuple({as_text(v): v for v in values}.values()))
    low, high, log = spec.get("low"), spec.get("high"), spec.get("log", False)
    both = [n for n in (low, high) if isinstance(n, int | float) and not isinstance(n, bool)]
    if len(both) < 2 or not all(map(math.isfinite, both)) or not both[0] < both[1]:
        raise ValueError(
            f"`{name}` takes choices = [...], gate = true, or low < high, but got {dict(spec)}. A plain "
            "value fixes it."
        )
    if not isinstance(log, bool) or (log and both[0] <= 0):
        raise ValueError(f"`{name}`: log is a boolean and needs low > 0, but got {dict(spec)}.")
    kind = spec.get("type", "int" if all(isinstance(n, int) for n in both) else "float")
    if kind not in TYPES:
        raise ValueError(f"`{name}`: type must be one of {', '.join(TYPES)}, but got {kind!r}.")
    if kind == "float":
        if "step" in spec:
            raise ValueError(f"`{name}` is a real number and takes no step. Use choices = [...] for a grid.")
        return Float(float(both[0]), float(both[1]), log)
    step = spec.get("step", 1)
    if any(n != int(n) for n in both) or not isinstance(step, int) or step < 1 or (log and step != 1):
        raise ValueError(
            f"`{name}`: a whole number has whole bounds and a positive step (1 when log), but got "
            f"{dict(spec)}."
        )
    return Int(int(both[0]), int(both[1]), log, step)


def _when(name: str, value: Any) -> tuple[str, tuple[Any, ...]] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return value, (True,)
    if isinstance(value, Mapping) and len(cast("Mapping[str, Any]", value)) == 1:
        parent, accepted = next(iter(cast("Mapping[str, Any]", value).items()))
        return parent, tuple(cast("list[Any]", accepted if isinstance(accepted, list) else [accepted]))
    raise ValueError(f'`{name}`: when = "GATE", or when = {{ PARENT = [values] }}, but got {value!r}.')


def _parents_first(variables: Mapping[str, Variable], fixed: Mapping[str, Value]) -> dict[str, Variable]:
    """The same variables, each behind what it depends on. ValueError for a parent that is not there."""
    out: dict[str, Variable] = {}

    def place(name: str, path: tuple[str, ...]) -> None:
        if name in out:
            return
        if name in path:
            circle = " -> ".join((*path, name))
            raise ValueError(f"A condition must end somewhere, but {circle} is a circle. Drop one `when`.")
        variable = variables[name]
        if variable.when is not None:
            parent, accepted = variable.when
            if parent not in variables:
                told = "fixed: drop the `when`" if parent in fixed else nearest(parent, variables)
                raise ValueError(f"`{name}` depends on {parent}, which is not in [space]. {told}")
            options = variables[parent].domain
            if not isinstance(options, Choice) or not set(accepted) <= set(options.options):
                raise ValueError(
                    f"`{name}` depends on a gate or on choices of {parent}, but {list(accepted)} are not "
                    "among them."
                )
            place(parent, (*path, name))
        out[name] = variable

    for name in variables:
        place(name, ())
    return out
