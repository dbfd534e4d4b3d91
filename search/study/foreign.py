"""parse_foreign(tables, path) -> Foreign: the [trainer], [fixed], [space] and binding tables of a study that
drives somebody else's script; docs/any_trainer.md has every entry.

    [fixed]    NAME = value                                what every run gets
    [space]    NAME = { low, high, log, step, type }       a number
               NAME = { gate = true, unset = true }        a switch that is off when it is not set
               NAME = { choices }                          one of these
               NAME = { gate = true, on, off }             a switch: on = "1", off = "0"
               …, when = "GATE" or { PARENT = [values] }   asked for only then; else the script's default
               …, default = value                          for a script that has none: the baseline's value

A name is an environment variable, unless `{NAME}` stands in the command or a table binds it elsewhere:

    [arguments]  NAME = "--matrix-lr={value}"              words of the command line
                 NAME = "--fp8" or ["--fp8", "--no-fp8"]   a flag: when on; and when off
    [keys]       NAME = "config.yaml:optim.lr"             a key of a file (json, toml, yaml, py)
    [constants]  NAME = "Hyperparameters.lr"               an assignment in the run's own copy of the script
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

from readers.patterns import compiled
from techniques.base import Choice, Float, Int, nearest

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
PLACES = ("python", "script", "module", "gpus", "work", "arguments")  # what a command may name in braces
PLACE = re.compile(r"\{(\w*)\}")
VALUE = "{value}"
BINDINGS = ("arguments", "keys", "constants")  # the tables that say where a value goes
KEY_FILES = (".json", ".toml", ".yaml", ".yml", ".py")
PATTERNS = ("score_pattern", "progress_pattern", "seconds_pattern")
KEYS = ("low", "high", "log", "step", "type", "choices", "gate", "on", "off", "unset", "when", "default")
UNSET = "\0"  # the text of what is not set at all; no variable can have it
TYPES = ("int", "float")
OCCURRENCES = ("only", "first", "last")
Value = str | int | float | bool


@dataclass(frozen=True)
class Variable:
    """One setting of the script that the search varies."""

    name: str
    domain: Float | Int | Choice
    gate: bool = False
    on: str = "1"
    off: str = "0"
    when: tuple[str, tuple[Any, ...]] | None = None  # parent, values of it with which this one is asked for
    default: Value | None = None  # where it is not asked for, also in the baseline; None: not set then

    def text(self, value: Any) -> str:
        return (self.on if value else self.off) if self.gate else as_text(value)

    def setting(self, value: Any) -> Value:
        """Its value where types count: a switch without texts of its own is true or false."""
        return (
            bool(value)
            if self.gate and (self.on, self.off) == ("1", "0")
            else value
            if not self.gate
            else self.text(value)
        )


@dataclass(frozen=True)
class Binding:
    """Where a value goes that is no environment variable."""

    table: str  # one of BINDINGS; "command": it stands there by name
    where: str = ""  # words, FILE:KEY or the constant's name
    off: str = ""  # words of a flag that is off

    @property
    def flag(self) -> bool:
        return self.table == "arguments" and VALUE not in self.where

    def words(self, value: Value) -> list[str]:
        """An argument's words with this value; none for a flag that is off."""
        text = (self.where if value else self.off) if self.flag else self.where
        return [word.replace(VALUE, as_text(value)) for word in shlex.split(text)]


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
    score_pattern: tuple[str, ...] = ()  # regular expressions of lines that are not the challenge's
    progress_pattern: tuple[str, ...] = ()
    seconds_pattern: tuple[str, ...] = ()
    steps: str = ""  # variable with the number of steps, where the log does not say it
    wallclock: str = ""  # variable with the training budget, s
    warmdown: str = ""  # variable with the warm-down, steps
    warmdown_frac: str = ""  # or with its share of the budget
    seed: str = ""  # variable with the seed, for replicates
    silent_seconds: float = 0.0  # without output before a run is given up; 0: only the time limit counts
    max_output_bytes: int = 256_000_000
    fixed: dict[str, Value] = field(default_factory=dict[str, Value])
    variables: dict[str, Variable] = field(default_factory=dict[str, Variable])
    bindings: dict[str, Binding] = field(default_factory=dict[str, Binding])

    @property
    def in_nats(self) -> bool:
        """Whether its score is a loss in nats per token, because its log counts no bytes."""
        return bool(self.score_pattern) and not any("(?P<bpb>" in one for one in self.score_pattern)

    def identity(self) -> dict[str, Any]:
        """What a study of it samples and measures: not where the script lies, not what is kept."""
        kept = dataclasses.asdict(self)
        for name in ("script", "folder", "keep", "seed", "silent_seconds", "max_output_bytes"):
            kept.pop(name)
        for name in (*PATTERNS, "steps", "bindings"):
            kept = kept if kept[name] else {k: v for k, v in kept.items() if k != name}
        for name, variable in self.variables.items():
            kept["variables"][name]["domain"]["kind"] = type(variable.domain).__name__
            if variable.default is None:
                del kept["variables"][name]["default"]
        return kept

    def found(self, script: Path | None) -> Foreign:
        """The same with its paths: `script` (`--trainer`) or its own, and the folder that it runs in."""
        own = str(script.resolve()) if script is not None else self.script
        folder = self.folder or (str(Path(own).parent) if own else "")
        return dataclasses.replace(self, script=own, folder=folder)


def as_text(value: Any) -> str:
    """A value as an environment variable: booleans are 1 and 0."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def texts_of(config: Mapping[str, Any]) -> dict[str, str]:
    """What a stored configuration sets, as texts, wherever each value goes."""
    settings = cast("Mapping[str, Any]", config.get("settings", {}))
    return {**config["environment"], **{name: as_text(value) for name, value in settings.items()}}


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


def refuse_bindings(tables: Mapping[str, Mapping[str, Any]]) -> None:
    """ValueError for what only a study of another script can say."""
    for table in BINDINGS:
        if tables[table]:
            raise ValueError(
                f"[{table}] says where settings of another script go, but there is no [trainer]. Add it, or "
                f"drop [{table}]."
            )


def parse_foreign(tables: Mapping[str, Mapping[str, Any]], path: Path) -> Foreign:
    """The tables of a study file at `path`, checked. Raises ValueError."""
    table = dict(tables["trainer"])
    fields = {
        f.name: f for f in dataclasses.fields(Foreign) if f.name not in ("fixed", "variables", "bindings")
    }
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
    foreign = dataclasses.replace(foreign, bindings=_bindings(tables, foreign))
    for key in ("wallclock", "warmdown", "warmdown_frac", "steps"):
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
        if key in PATTERNS:
            compiled(key, many)
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
    return tuple(words)


def _bindings(tables: Mapping[str, Mapping[str, Any]], foreign: Foreign) -> dict[str, Binding]:
    """Where each value goes that is no environment variable. ValueError."""
    known, found = {**foreign.fixed, **foreign.variables}, dict[str, Binding]()
    places = [(k, place) for k, word in enumerate(foreign.command) for place in PLACE.findall(word)]
    for at, place in places:
        word = foreign.command[at]
        if place not in known and place not in PLACES:
            names = (*PLACES, *known)
            raise ValueError(
                f"`trainer.command` knows {', '.join('{' + p + '}' for p in PLACES)} and what [fixed] and "
                f"[space] name, but got {{{place}}}. {nearest(place, names)}"
            )
        if place in known and place not in PLACES:
            found[place] = Binding("command")
            option = foreign.command[max(0, at - 1)].startswith("-")
            free = foreign.variables.get(place)
            if word == f"{{{place}}}" and free and free.default is None and (option or free.when):
                raise ValueError(
                    f"`{place}` is not always set (not in the baseline), and then its word in "
                    f"`trainer.command` falls away, but the option before it would stay. Write both as one "
                    f'word, --option={{{place}}}, or as [arguments] {place} = "--option {VALUE}", or '
                    f"give {place} a `default` in [space]."
                )
    if not {"script", "module"} & {place for _, place in places}:
        raise ValueError(
            f"`trainer.command` must run the script, but {shlex.join(foreign.command)!r} has no {{script}} "
            "and no {module}. Add it."
        )
    for table in BINDINGS:
        for name, value in tables.get(table, {}).items():
            if name not in known:
                raise ValueError(
                    f"`{name}` in [{table}] has no value. Free it in [space], or fix it in [fixed]. "
                    f"{nearest(name, known)}"
                )
            if name in found:
                raise ValueError(f"`{name}` goes to one place, but [{table}] is its second. Keep one.")
            found[name] = _binding(table, name, value)
            _check_flag(name, found[name], foreign)
    return found


def _binding(table: str, name: str, value: Any) -> Binding:
    texts = cast("list[Any]", value if isinstance(value, list) else [value])
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"`{name}` in [{table}] says in a text where its value goes, but got {value!r}.")
    binding = Binding(table, *texts[:2])
    if len(texts) > (2 if binding.flag else 1):
        raise ValueError(
            f'`{name}`: a flag takes two texts, ["--on", "--off"], all else takes one, but got {value!r}.'
        )
    file, _, key = binding.where.partition(":")
    if table == "keys" and (not key or Path(file).suffix not in KEY_FILES or Path(file).is_absolute()):
        raise ValueError(
            f'`{name}` in [keys] is "FILE:KEY", a file ({", ".join(KEY_FILES)}) of the working folder and a '
            f"key in it, dotted where it is nested, but got {value!r}."
        )
    if table == "constants" and not all(map(str.isidentifier, binding.where.rpartition(":")[2].split("."))):
        raise ValueError(
            f'`{name}` in [constants] is a name, "LR", "Settings.lr" or "model.py:LR", but got {value!r}.'
        )
    try:
        shlex.split(binding.where + " " + binding.off)
    except ValueError as error:
        raise ValueError(
            f"`{name}` in [{table}] must be words of a command line, but {error}: {value!r}."
        ) from None
    return binding


def _check_flag(name: str, binding: Binding, foreign: Foreign) -> None:
    """A flag is there or not: nothing but a switch can be bound to it. ValueError."""
    variable, value = foreign.variables.get(name), foreign.fixed.get(name)
    plain = variable is not None and variable.gate and (variable.on, variable.off) == ("1", "0")
    if binding.flag and not plain and not isinstance(value, bool):
        raise ValueError(
            f"`{name}` in [arguments] is a flag (it has no {VALUE}), which takes gate = true in [space], or "
            f'true or false in [fixed]. Write "{binding.where}={VALUE}" for a value.'
        )


def _fixed_value(name: str, value: Any) -> Value:
    _check_name(name)
    if not isinstance(value, str | int | float | bool):
        raise ValueError(
            f"`{name}` is an environment variable, an argument, a key or a constant: a text or a number, "
            f"but got {value!r}."
        )
    return value


def _check_name(name: str) -> None:
    if not VARIABLE.fullmatch(name):
        raise ValueError(f"A variable has letters, digits and _, but got {name!r}. Rename it.")


def _variable(name: str, spec: Mapping[str, Any]) -> Variable:
    _check_name(name)
    for key in spec:
        if key not in KEYS:
            raise ValueError(f"`{name}` has no key {key!r} in [space]. {nearest(key, KEYS)}")
    when = _when(name, spec.get("when"))
    if "gate" in spec:
        off = UNSET if spec.get("unset") is True else as_text(spec.get("off", "0"))
        texts = (as_text(spec.get("on", "1")), off)
        known = {"gate", "on", "off", "unset", "when", "default"}
        if spec["gate"] is not True or not {*spec} <= known or texts[0] == off or {"off", "unset"} <= {*spec}:
            raise ValueError(
                f"`{name}` is a gate: gate = true, and on and off, two different texts (or unset = true for "
                f"one that is off when it is not set), but got {dict(spec)}."
            )
        return Variable(name, Choice((False, True)), True, *texts, when, spec.get("default"))
    default = _fixed_value(name, spec["default"]) if "default" in spec else None
    domain = _domain(name, {k: v for k, v in spec.items() if k not in ("when", "default")})
    return Variable(name, domain, when=when, default=default)


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
