"""declared(tree, num_reads) -> Declared: the settings of a script that are no environment variables, as text.

Arguments of argparse and click; fields of a dataclass that a parser of dataclasses is given; assignments at
the head of a script that a configurator overrides by `--key=value`, or that nothing overrides (constants,
also of a class of settings). What is built at run time is listed, never guessed.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

from readers.constants import assigned
from readers.literals import cast_to, evaluate, kind_of

KINDS = ("int", "float", "bool", "str")
FLAGS = {"store_true": True, "store_false": False}
SETTINGS = re.compile(r"(?i)hyper|param|config|args|settings|options")  # what a class of settings is called
DASHED = ("tyro", "simple_parsing")  # parsers of dataclasses, by how they spell a field
PARSERS = {"HfArgumentParser": "_", "cli": "-", "parse": "_", "ArgumentParser": "_", "add_arguments": "_"}
FEW = 5  # environment variables of its own: a script with more is set by them, not by its constants


@dataclass(frozen=True)
class Setting:
    """One setting, and the words or the name that it has."""

    name: str
    kind: str
    default: Any  # None: there is none, or it is computed
    line: int
    table: str  # arguments or constants
    where: str  # docs/any_trainer.md: `--lr={value}`, a flag's word, a constant's name
    off: str = ""  # a flag's other word
    choices: tuple[Any, ...] = ()
    on_text: str = "1"  # of a boolean that takes a value
    off_text: str = "0"
    note: str = ""


@dataclass
class Declared:
    """What was found."""

    settings: list[Setting] = field(default_factory=list[Setting])
    configurator: int = 0  # its line
    odd: list[str] = field(default_factory=list[str])


def declared(tree: ast.Module, num_reads: int) -> Declared:
    """Of a script that reads `num_reads` variables of the environment."""
    found = Declared()
    constants = {name: value for name, node, _ in assigned(tree) if (value := evaluate(node)) is not None}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) in ("add_argument", "option"):
            _argument(node, constants, found)
    found.settings += [s for s in _parsed_dataclasses(tree) if s.name not in {o.name for o in found.settings}]
    at = found.configurator = configurator_line(tree)
    if at:
        found.settings += [s for s in _constants(tree, at) if s.table == "arguments"]
    elif not found.settings:
        found.settings += _constants(tree, 0) if num_reads <= FEW else ()
        found.odd += [
            f"line {line}: takes a word of the command line by its place: write it into `command`"
            for line in sorted(_words_taken(tree))
        ]
    return found


def _words_taken(tree: ast.Module) -> Iterator[int]:
    """Lines that read sys.argv, but for the script's own name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "sys.argv":
            first = node.slice.lower if isinstance(node.slice, ast.Slice) else node.slice
            if first is None or evaluate(first) != 0:
                yield node.lineno


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _argument(node: ast.Call, constants: dict[str, Any], found: Declared) -> None:
    texts = [evaluate(arg) for arg in node.args]
    words = [text for text in texts if isinstance(text, str)]
    given = {k.arg: k.value for k in node.keywords if k.arg}
    long = next((w for w in words if w.startswith("--")), next((w for w in words if w.startswith("-")), ""))
    if not long:
        if words and _called(node) == "add_argument":
            found.odd.append(
                f"line {node.lineno}: {words[0]!r} is given by its place: write it into `command`"
            )
        elif node.args and not words and _called(node) == "add_argument":
            found.odd.append(
                f"line {node.lineno}: an argument built at run time, {ast.unparse(node.args[0])[:60]}"
            )
        return
    long, _, off = long.partition("/")  # click: --fused/--no-fused
    name = evaluate(given["dest"]) if "dest" in given else None
    name = name if isinstance(name, str) else long.lstrip("-").replace("-", "_")
    if (
        not name.isidentifier()
        or evaluate(given.get("nargs", ast.Constant(None))) is not None
        or "nargs" in given
    ):
        found.odd.append(f"line {node.lineno}: {long} takes several values: write it into `command`")
        return
    node_default = given.get("default")
    default = _value(node_default, constants)
    note = (
        ""
        if default is not None or node_default is None
        else f"computed default {ast.unparse(node_default)[:60]}"
    )
    note = "" if isinstance(node_default, ast.Constant) and node_default.value is None else note
    action = given.get("action")
    action = ast.unparse(action).strip("'\"").rpartition(".")[2] if action is not None else ""
    both = action == "BooleanOptionalAction" or bool(off)
    if action in FLAGS or both or evaluate(given.get("is_flag", ast.Constant(False))) is True:
        on_by_default = bool(default) if default is not None else action == "store_false"
        if action == "store_false" or (on_by_default and not both):
            setting = Setting(
                name, "bool", True, node.lineno, "arguments", "", note=f"{long} switches it off"
            )
            found.settings.append(setting)
            return
        off = off or (f"--no-{long.removeprefix('--')}" if both else "")
        found.settings.append(Setting(name, "bool", on_by_default, node.lineno, "arguments", long, off))
    elif action in ("", "store"):
        found.settings.append(_valued(node, name, long, default, note, constants))


def _valued(
    node: ast.Call, name: str, long: str, default: Any, note: str, constants: dict[str, Any]
) -> Setting:
    """An argument that takes a value."""
    given = {k.arg: k.value for k in node.keywords}
    kind = ast.unparse(given["type"]) if "type" in given else ""
    where = f"{long}={{value}}" if long.startswith("--") else f"{long} {{value}}"
    told = _value(given.get("choices"), constants)
    choices = cast("tuple[Any, ...]", told) if isinstance(told, tuple) else ()
    choices = choices if all(isinstance(c, str | int | float) for c in choices) else ()
    if isinstance(default, bool) or (kind == "bool" and default is not None):
        off_text = "" if kind == "bool" else "false"  # bool("0") is true
        on_text = "1" if kind == "bool" else "true"
        return Setting(
            name,
            "bool",
            bool(default),
            node.lineno,
            "arguments",
            where,
            on_text=on_text,
            off_text=off_text,
            note=note,
        )
    if kind not in KINDS:
        kind = kind_of(default) if default is not None else "str"
    value, problem = cast_to(default, kind)
    return Setting(name, kind, value, node.lineno, "arguments", where, choices=choices, note=note or problem)


def _value(node: ast.expr | None, constants: dict[str, Any]) -> Any:
    """A literal, or a constant of the script by its name."""
    if node is None:
        return None
    text = ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""
    value: Any = constants.get(text) if text else evaluate(node)
    if isinstance(value, tuple) and None in cast("tuple[Any, ...]", value):
        return None
    return cast("Any", value)


def _parsed_dataclasses(tree: ast.Module) -> Iterator[Setting]:
    """Fields of the dataclasses that HfArgumentParser, tyro, simple_parsing or the like are called with."""
    modules = {a.name.partition(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {str(n.module).partition(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    if not modules & {*DASHED, "transformers", "jsonargparse", "trl", "draccus"}:
        return
    dash = bool(modules & {"tyro"})
    named = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) in PARSERS:
            named |= {n.id for a in node.args for n in ast.walk(a) if isinstance(n, ast.Name)}
    for name, value, annotation in assigned(tree):
        owner, _, own = name.rpartition(".")
        setting = _constant(name, own, value, annotation)
        if owner in named and setting is not None:
            word = "--" + (own.replace("_", "-") if dash else own)
            yield _as_argument(setting, own, word + "={value}")


def _as_argument(constant: Setting, name: str, where: str) -> Setting:
    """An assignment that an argument overrides; Python's own words switch it."""
    bound = replace(constant, name=name, table="arguments", where=where)
    return replace(bound, on_text="True", off_text="False") if constant.kind == "bool" else bound


def configurator_line(tree: ast.Module) -> int:
    """Where a configurator overrides the assignments above it by `--key=value`; 0 without one: `exec` of a
    file of that name, or `globals()[key] = …`, beside sys.argv."""
    text = ast.unparse(tree) if len(tree.body) < 5_000 else ""
    for node in tree.body:
        for call in ast.walk(node):
            if isinstance(call, ast.Call) and _called(call) == "exec" and "configurator" in ast.unparse(call):
                return node.lineno
            stored = isinstance(call, ast.Subscript) and isinstance(call.ctx, ast.Store)
            if stored and "sys.argv" in text and ast.unparse(call).startswith("globals()["):
                return node.lineno
    return 0


def _constants(tree: ast.Module, until: int) -> Iterator[Setting]:
    """Assignments of numbers, texts and switches: above line `until` as arguments, else as constants of the
    script and of its classes of settings, each that is assigned once."""
    all_of_them = list(assigned(tree))
    names = [name for name, _, _ in all_of_them]
    stored = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    for name, value, annotation in all_of_them:
        owner, _, own = name.rpartition(".")
        setting = _constant(name, own, value, annotation)
        if setting is None or own.startswith("_"):
            continue
        if until:
            if not owner and setting.line < until:
                yield _as_argument(setting, own, f"--{own}={{value}}")
        elif names.count(name) == 1 and (SETTINGS.search(owner) if owner else stored.count(name) == 1):
            yield setting


def _constant(name: str, own: str, value: ast.expr, annotation: str) -> Setting | None:
    """A plain assignment; None for what is no number, text or switch."""
    if isinstance(value, ast.Call) and _called(value) == "field":
        inner = next((k.value for k in value.keywords if k.arg == "default"), None)
        if inner is None:
            return None
        value = inner
    found = evaluate(value)
    if not isinstance(found, str | int | float):
        return None
    kind = annotation if annotation in KINDS else kind_of(found)
    return Setting(own, kind, cast_to(found, kind)[0], value.lineno, "constants", name)
