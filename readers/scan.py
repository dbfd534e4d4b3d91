"""scan(path) -> Scan: which settings a training script takes and which score lines it prints.

By `ast` alone; the script is neither run nor imported. Found are the ways of `os`, their aliases, functions
and lambdas that wrap them, and dataclass fields whose names are built with .upper(); what stands around a
read tells its type. Arguments, configurators and constants: readers/declared.py. What cannot be told is
listed with its line, never guessed in silence.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from readers import literals
from readers.checks import Check, checks_of
from readers.declared import declared
from readers.literals import HOLE, all_of, cast_to, evaluate
from readers.log_reader import STEP, label_of
from readers.printed import Patterns, log_patterns

MAX_BYTES = 8_000_000  # of a script; more is no script
RANKS = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
WORLD = RANKS | {"CUDA_VISIBLE_DEVICES", "PATH", "HOME", "USER", "TMPDIR", "OMP_NUM_THREADS"}
KINDS = ("int", "float", "bool", "str")
Helper = tuple[int, int, str]  # index of the name among its arguments, of the default (-1: none), its type


@dataclass(frozen=True)
class Read:
    """One setting of the script: an environment variable, unless `table` says where it goes."""

    name: str
    kind: str  # int, float, bool, str
    default: Any  # None: there is none, or it is computed
    line: int
    note: str = ""  # what could not be understood
    on: str = "1"  # text of a boolean
    off: str | None = "0"  # of one that is read by its truth: ""; by its presence: None, it must not be set
    table: str = ""  # arguments or constants of the study file
    where: str = ""  # what it says there
    no_flag: str = ""  # word of a flag that is off
    choices: tuple[Any, ...] = ()

    @property
    def upper(self) -> str:
        """Its name as an environment variable would have it, by which ranges are guessed."""
        return self.name.upper()


@dataclass
class Scan:
    """What a script told."""

    path: Path
    reads: dict[str, Read] = field(default_factory=dict[str, Read])
    labels: dict[str, int] = field(default_factory=dict[str, int])  # score label -> line
    sizes: dict[str, int] = field(default_factory=dict[str, int])  # codec of the size line -> line
    odd: list[str] = field(default_factory=list[str])  # what could not be understood, with its line
    distributed: bool = False
    ends: set[str] = field(default_factory=set[str])  # names, in small letters, that a run may end early by
    divided: set[str] = field(default_factory=set[str])  # that a check divides, or divides by
    checks: list[Check] = field(default_factory=list[Check])  # its own, over its settings
    patterns: Patterns = field(default_factory=Patterns)  # of a log that is not the challenge's
    root: Path | None = None  # the folder that it must be run from, as a module, for its imports


def scan(path: Path) -> Scan:
    """Reads the script. ValueError when it is no Python that can be read."""
    try:
        return _scanned(path)
    except RecursionError:
        raise ValueError(f"A scan reads Python, but {path} nests an expression too deeply to read.") from None


def _scanned(path: Path) -> Scan:
    found = Scan(path)
    tree = _unpack(_parse(path), found)
    reader = _Reader(tree)
    for read in [*reader.reads(), *reader.fields()]:
        if read.name not in WORLD:
            old = found.reads.setdefault(read.name, read)
            if old.off != "0" == read.off:  # whether it is there was asked first: no switch, but a value
                old = found.reads[read.name] = read
            if old.default != read.default and read.default is not None:
                again = f"the default {read.default!r}; line {old.line} has {old.default!r}"
                found.odd.append(f"line {read.line}: {read.name} is read again, with {again}")
        else:
            found.distributed |= read.name in RANKS
    found.odd += reader.odd
    lines = list(literals.printed_lines(tree))
    for line, at in lines:
        _line(line, at, found)
    scored = [line for line, _ in lines if _tells_bpb(line)]
    if not found.labels and all(map(_has_step, scored)):  # its last validation is its score
        found.patterns = log_patterns(line for line, _ in lines)
    own = declared(tree, len(found.reads))
    told = tuple(name for name, read in found.reads.items() if not read.table)
    for s in [s for s in own.settings if not any(name.endswith(s.name.upper()) for name in told)]:
        more = (s.on_text, s.off_text, s.table, s.where, s.off, s.choices)
        found.reads.setdefault(s.name, Read(s.name, s.kind, s.default, s.line, s.note, *more))
    configured = f"line {own.configurator}: runs text"
    found.odd = [odd for odd in found.odd if not odd.startswith(configured)] + own.odd
    found.checks = _sound_checks(tree, found)
    _checks(tree, found)
    found.root = _root(path, tree)
    return found


def _sound_checks(tree: ast.Module, found: Scan) -> list[Check]:
    """Those that the script's own defaults pass; any other is misunderstood."""
    defaults = {name: read.default for name, read in found.reads.items() if read.default is not None}
    called = {name.lower(): name for name in found.reads}
    for node in ast.walk(tree):  # width = int(os.environ.get("MODEL_DIM", 512))
        target = node.target if isinstance(node, ast.AnnAssign) else None
        target = node.targets[0] if isinstance(node, ast.Assign) else target
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name | ast.Attribute) and isinstance(value, ast.expr):
            texts = {
                n.value for n in ast.walk(value) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            }
            if len(read := texts & found.reads.keys()) == 1:
                called.setdefault(
                    (target.id if isinstance(target, ast.Name) else target.attr).lower(), read.pop()
                )
    return [check for check in checks_of(tree, called) if not check.forbids(defaults)]


def _root(path: Path, tree: ast.Module) -> Path | None:
    """The folder above the script's own that holds a module which it imports; None where it needs none."""
    here = path.resolve().parent
    wanted = {a.name.partition(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    wanted |= {
        str(n.module).partition(".")[0]
        for n in ast.walk(tree)
        if isinstance(n, ast.ImportFrom)
        if not n.level
    }

    def holds(folder: Path) -> bool:
        return any(
            (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file() for name in wanted
        )

    above = [*here.parents][:3]
    return None if holds(here) else next((folder for folder in above if holds(folder)), None)


def names_read(path: Path) -> set[str]:
    """The variables that a script reads, as far as they can be told; empty when it cannot be parsed."""
    try:
        return {name for name, read in scan(path).reads.items() if not read.table}
    except (ValueError, OSError):
        return set()


def _parse(path: Path) -> ast.Module:
    try:
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise ValueError(f"a script is at most {MAX_BYTES:,} bytes, and it has {len(data):,}")
        return ast.parse(data, filename=str(path))
    except SyntaxError as error:
        said = f"{error.msg} (line {error.lineno})" if error.lineno else error.msg
        raise ValueError(f"A scan reads Python, but {path} is none: {said}. Correct it.") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"A scan reads Python, but {path} cannot be parsed: {error}.") from None


class _Reader:
    """The environment reads of a tree."""

    def __init__(self, tree: ast.Module):
        self.tree, self.odd = tree, list[str]()
        self.parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        self.constants = dict(literals.constants(tree.body))
        self.environ, self.getenv = {"environ"}, {"getenv"}
        for node in ast.walk(tree):  # env = os.environ; from os import environ as e; get = os.environ.get
            if isinstance(node, ast.ImportFrom) and node.module == "os":
                for alias in node.names:
                    target = {"environ": self.environ, "getenv": self.getenv}.get(alias.name, set[str]())
                    target.add(alias.asname or alias.name)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                if self._is_environ(node.value):
                    self.environ.add(node.targets[0].id)
                elif self._is_getter(node.value):
                    self.getenv.add(node.targets[0].id)
        self.helpers: dict[str, Helper] = {}
        self.inside: set[ast.AST] = set()  # reads that are a helper's body
        while self._find_helpers():
            continue

        for node in ast.walk(tree):
            whole = list[ast.expr]()
            if isinstance(node, ast.Dict):
                whole = [v for k, v in zip(node.keys, node.values, strict=True) if k is None]
            whole += (
                [node.value] if isinstance(node, ast.Attribute) and node.attr in ("items", "keys") else []
            )
            if any(map(self._is_environ, whole)):
                self.odd.append(
                    f"line {getattr(node, 'lineno', 0)}: takes the whole environment, whatever is in it"
                )

    def _is_environ(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute):
            return node.attr == "environ" and isinstance(node.value, ast.Name)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            return bool(node.args) and self._is_environ(node.args[0])
        return isinstance(node, ast.Name) and node.id in self.environ

    def _is_getter(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute):
            if node.attr in ("get", "setdefault", "pop"):
                return self._is_environ(node.value)
            return node.attr == "getenv"
        return isinstance(node, ast.Name) and node.id in self.getenv

    def _access(self, node: ast.AST) -> tuple[ast.expr, ast.expr | None, str] | None:
        """(name, default, type by a helper) of a node that reads the environment."""
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            return (node.slice, None, "") if self._is_environ(node.value) else None
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], ast.In):
            return (node.left, None, "bool") if self._is_environ(node.comparators[0]) else None
        if not isinstance(node, ast.Call):
            return None
        named = {k.arg: k.value for k in node.keywords}
        values = [*node.args, *(named[k] for k in ("key", "default") if k in named)]
        if self._is_getter(node.func) and values:
            return values[0], values[1] if len(values) > 1 else None, ""
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in self.helpers:
            name_at, default_at, kind = self.helpers[called]
            if name_at >= len(values):
                return None
            typed = [v.id for v in [*values, *(k.value for k in node.keywords)] if isinstance(v, ast.Name)]
            kind = next((t for t in typed if t in KINDS), kind)
            return values[name_at], values[default_at] if 0 <= default_at < len(values) else None, kind
        return None

    def _find_helpers(self) -> bool:
        """Functions and lambdas that read the variable which an argument names; True when one was new."""
        before = len(self.helpers)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef):
                name, body = node.name, node
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
                name, body = getattr(node.targets[0], "id", ""), node.value
            else:
                continue
            arguments = [a.arg for a in body.args.args if a.arg not in ("self", "cls")]
            for inner in ast.walk(body):
                access = self._access(inner)
                if access is None or not isinstance(access[0], ast.Name) or access[0].id not in arguments:
                    continue
                default = access[1].id if isinstance(access[1], ast.Name) else ""
                others = [a for a in arguments if a != access[0].id]
                at = arguments.index(default) if default in arguments else -1
                if at < 0 and others and others[0] in ("default", "d", "fallback", "value"):
                    at = arguments.index(others[0])
                self.inside.add(inner)
                kind = self._kind(inner) or access[2] or _annotation(body)
                self.helpers.setdefault(name, (arguments.index(access[0].id), at, kind))
        return len(self.helpers) > before

    def reads(self) -> Iterator[Read]:
        """Every read whose name can be told; others go to `odd`."""
        for node in ast.walk(self.tree):
            access = None if node in self.inside else self._access(node)
            if access is None:
                continue
            line, name = getattr(node, "lineno", 0), self.constant(access[0])
            if not isinstance(name, str):
                if not self._by_field(access[0]):
                    self.odd.append(f"line {line}: a name built at run time, {ast.unparse(access[0])}")
                continue
            yield self._read(node, name, access[1], access[2])

    def _read(self, node: ast.AST, name: str, default: ast.expr | None, kind: str) -> Read:
        line, value, note = getattr(node, "lineno", 0), None, ""
        if default is not None:
            value = self.constant(default)
            if value is None and not (isinstance(default, ast.Constant) and default.value is None):
                note = f"computed default {ast.unparse(default)[:60]}"
        else:
            value = self._or_default(node)
        kind = self._kind(node) or kind or literals.kind_of(value)
        value, problem = cast_to(value, kind)
        off = self._off(node)
        if off != "0" and kind in ("str", "bool") and isinstance(value, str | bool | None):
            kind = "bool"
            value = bool(value) if not isinstance(value, str) else value != ""
        return Read(name, kind, value, line, note or problem, self._on(node), off)

    def constant(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self.constants.get(node.id)
        return evaluate(node)

    def _climb(self, node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
        """(parent, child) upwards, through method calls and conversions of the value that was read."""
        while (parent := self.parents.get(node)) is not None:
            yield parent, node
            around = isinstance(parent, ast.Attribute) or (isinstance(parent, ast.BoolOp))
            call = isinstance(parent, ast.Call) and (node is parent.func or node in parent.args)
            if not (around or call):
                return
            node = parent

    def _kind(self, node: ast.AST) -> str:
        """int, float, bool or str by what stands around the read; "" when nothing does."""
        kind = ""
        for parent, child in self._climb(node):
            if isinstance(parent, ast.Call) and child in parent.args and isinstance(parent.func, ast.Name):
                if parent.func.id not in KINDS:
                    break
                kind = parent.func.id
            elif isinstance(parent, ast.Compare):
                texts = [text for c in parent.comparators for text in all_of(evaluate(c))]
                if texts and all(text.lower() in (*literals.TRUE, *literals.FALSE) for text in texts):
                    return "bool"
            elif isinstance(parent, ast.AnnAssign) and isinstance(parent.annotation, ast.Name):
                known = parent.annotation.id in KINDS
                return kind or (parent.annotation.id if known else "")
        return kind

    def _on(self, node: ast.AST) -> str:
        """The text that switches a compared boolean on."""
        for parent, _ in self._climb(node):
            if isinstance(parent, ast.Compare) and isinstance(parent.ops[0], ast.Eq | ast.In):
                texts = all_of(evaluate(parent.comparators[0]))
                return texts[0] if "1" not in texts and texts and texts[0].lower() in literals.TRUE else "1"
        return "1"

    def _off(self, node: ast.AST) -> str | None:
        """What switches it off: "0", or "" where its truth is asked for; None: it must not be set."""
        if isinstance(node, ast.Compare):
            return None
        parent = self.parents.get(node)
        called = isinstance(parent, ast.Call) and getattr(parent.func, "id", "") == "bool"
        asked = isinstance(parent, ast.UnaryOp) and isinstance(parent.op, ast.Not)
        tested = isinstance(parent, ast.If | ast.IfExp | ast.While) and parent.test is node
        return "" if called or asked or tested else "0"

    def _or_default(self, node: ast.AST) -> Any:
        """`os.environ.get("X") or 3`."""
        parent = self.parents.get(node)
        if isinstance(parent, ast.BoolOp) and isinstance(parent.op, ast.Or) and parent.values[0] is node:
            return self.constant(parent.values[-1])
        return None

    def _by_field(self, name: ast.expr) -> bool:
        """Whether a built name is a dataclass field's, in capitals."""
        return ".upper()" in ast.unparse(name) and any(True for _ in self.fields())

    def fields(self) -> Iterator[Read]:
        """The annotated fields of dataclasses, when some name is built with .upper()."""
        built = [a for n in ast.walk(self.tree) if (a := self._access(n)) and ".upper()" in ast.unparse(a[0])]
        classes = [node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)]
        made = [c for c in classes if any("dataclass" in ast.unparse(d) for d in c.decorator_list)]
        for item in [item for one in made for item in one.body] if built else []:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value:
                kind = ast.unparse(item.annotation)
                value = self.constant(item.value)
                kind = kind if kind in KINDS else literals.kind_of(value)
                name = _prefix(built[0][0]) + item.target.id.upper()
                yield Read(name, kind, cast_to(value, kind)[0], item.lineno)


def _prefix(name: ast.expr) -> str:
    """ "GPT_" of f"GPT_{field.name.upper()}" and of "GPT_" + field.name.upper()."""
    first = name.left if isinstance(name, ast.BinOp) else name
    first = name.values[0] if isinstance(name, ast.JoinedStr) else first
    return str(first.value) if isinstance(first, ast.Constant) else ""


def _annotation(body: ast.FunctionDef | ast.Lambda) -> str:
    text = ast.unparse(body.returns) if isinstance(body, ast.FunctionDef) and body.returns else ""
    return text if text in KINDS else ""


def _line(line: str, at: int, found: Scan) -> None:
    size = re.match(rf"Total submission size(?: (\S+?))?: ?{HOLE}", line)
    if size and HOLE not in (size[1] or ""):
        found.sizes.setdefault(size[1] or "", at)
    if not _tells_bpb(line) or _has_step(line):
        return
    label = label_of(line)
    if HOLE in label or not label:
        found.odd.append(f"line {at}: a score label built at run time, {line.replace(HOLE, '…')[:70]}")
    elif not label.lower().startswith("diagnostic"):
        found.labels.setdefault(label, at)


def _tells_bpb(line: str) -> bool:
    return re.search(rf"val_bpb: ?{HOLE}", line) is not None


def _has_step(line: str) -> bool:
    """Whether the log reader takes it for a step's."""
    return STEP.match(line.replace(HOLE, "1")) is not None


def _unpack(tree: ast.Module, found: Scan) -> ast.Module:
    """The tree, with the code that `exec` gets as packed text behind it; what cannot be read is told."""
    for node in [
        n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "exec"
    ]:
        text = literals.unpacked(node.args[0]) if node.args else None
        told = "runs text that is not known here"
        if text is not None:
            told = f"packed code, {len(text):,} bytes, read as text and never run; its own lines are told"
            try:
                tree.body += literals.parsed(text.decode("utf-8", "replace")).body
            except (SyntaxError, ValueError, RecursionError) as error:
                told = f"packed code that cannot be parsed, {error}"
        found.odd.append(f"line {node.lineno}: {told}")
    return tree


def _checks(tree: ast.Module, found: Scan) -> None:
    """What may end a run early, what checks divide, and hidden files that are read."""
    understood = {check.line for check in found.checks if check.whole}
    for node in ast.walk(tree):
        body = node.body if isinstance(node, ast.If) else []
        if isinstance(node, ast.If) and body and _ends(body[-1]):
            found.ends |= _names(node.test)
        if isinstance(node, ast.Assert) or (
            isinstance(node, ast.If) and any(isinstance(n, ast.Raise) for n in body)
        ):
            for part in ast.walk(node.test):
                whole = node.lineno in understood
                if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Mod) and not whole:
                    found.divided |= _names(part)
    for line, name in sorted(_dot_files(tree, found.path.parent)):
        found.odd.append(f"line {line}: reads {name}, which no run gets: set its values in [fixed]")


def _dot_files(tree: ast.Module, folder: Path) -> set[tuple[int, str]]:
    """(line, name) of the hidden files that a script opens, or that it names and that are there."""
    found = set[tuple[int, str]]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("load_dotenv", "dotenv_values") and not node.args:
                found.add((node.lineno, ".env"))
            opened = called in ("open", "Path", "load_dotenv", "dotenv_values", "read_csv", "load")
            found |= {(node.lineno, n) for a in node.args if opened and (n := _dot_file(a))}
        elif (name := _dot_file(node)) and (
            re.fullmatch(r"\.env(\.\w+)?", name) or (folder / name).is_file()
        ):
            found.add((getattr(node, "lineno", 0), name))
    return found


def _dot_file(node: ast.AST) -> str:
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
    return text if re.fullmatch(r"(?:[\w./~-]*/)?\.[A-Za-z_][\w.-]*", text) and len(text) < 80 else ""


def _ends(last: ast.stmt) -> bool:
    call = last.value if isinstance(last, ast.Expr) else None
    left = isinstance(call, ast.Call) and ast.unparse(call.func) in ("exit", "quit", "sys.exit", "os._exit")
    return left or (isinstance(last, ast.Return) and last.value is None)


def _names(test: ast.AST) -> set[str]:
    """Names, attributes and texts in an expression, in small letters."""
    nodes = [n for n in ast.walk(test) if isinstance(n, ast.Name | ast.Attribute)]
    return {(n.attr if isinstance(n, ast.Attribute) else n.id).lower() for n in nodes}
