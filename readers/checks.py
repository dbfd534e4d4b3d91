"""checks_of(tree, settings) -> [Check]: what a script's own asserts and `if …: raise` say of its settings.

A check speaks of attributes and parameters, a study of settings: `names` follows how values are handed on
(`x = os.environ.get("X")`, `self.x = h.x`, `Block(dim, gate=h.gate_enabled)`), as text. `forbids` evaluates
the condition by its arithmetic; what cannot be known forbids nothing.
"""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

COMPARED: dict[type, Callable[[Any, Any], Any]] = {
    **{ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le},
    **{ast.Gt: operator.gt, ast.GtE: operator.ge},
    **{ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b},
}
RECKONED: dict[type, Callable[[Any, Any], Any]] = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Mod: operator.mod},
    **{ast.FloorDiv: lambda a, b: a // b, ast.Div: lambda a, b: a / b},
}
CALLED: dict[str, Callable[..., Any]] = {
    **{"int": int, "float": float, "bool": bool, "str": str, "abs": abs},
    **{"min": min, "max": max, "sum": lambda *a: sum(*a), "len": len},
}
FAR = 6  # hands that a value goes through
Origins = Mapping[str, str]  # name in the script -> the setting that it is


class UnknownError(Exception):
    """The value of an expression cannot be told."""


@dataclass(frozen=True)
class Check:
    """One condition under which the script ends with an error."""

    line: int
    fails: ast.expr
    names: Origins  # of those in it
    whole: bool  # every name in it is a setting

    @property
    def settings(self) -> set[str]:
        return {*self.names.values()}

    def forbids(self, values: Mapping[str, Any]) -> bool:
        """Whether the script ends at it with these values of all its settings."""
        try:
            return bool(_evaluated(self.fails, self.names, values))
        except (UnknownError, TypeError, ValueError, ZeroDivisionError, OverflowError):
            return False


def checks_of(tree: ast.Module, settings: Mapping[str, str]) -> list[Check]:
    """`settings`: name, by the small letters that the script calls it -> setting."""
    origins = _origins(tree, settings)
    found = list[Check]()
    for node, guards in _guarded(tree.body, ()):
        if isinstance(node, ast.Assert):
            fails: ast.expr = ast.UnaryOp(ast.Not(), node.test)
        elif isinstance(node, ast.If) and any(isinstance(inner, ast.Raise) for inner in node.body):
            fails = node.test
        else:
            continue
        names = {n: origins[n] for part in (fails, *guards) for n in _named(part) if n in origins}
        if {*_named(fails)} & names.keys():
            whole = {*_named(fails)} - CALLED.keys() <= names.keys()
            fails = ast.BoolOp(ast.And(), [*map(_if_known, guards), fails])
            found.append(Check(node.lineno, fails, names, whole))
    return found


def _if_known(guard: ast.expr) -> ast.expr:
    """A guard that cannot be told is taken to hold."""
    return ast.Call(ast.Name("if_known", ast.Load()), [guard], [])


def _guarded(
    body: list[ast.stmt], guards: tuple[ast.expr, ...]
) -> Iterator[tuple[ast.stmt, tuple[ast.expr, ...]]]:
    """Every statement, with the conditions that it stands under within its function."""
    for node in body:
        yield node, guards
        if isinstance(node, ast.If):
            yield from _guarded(node.body, (*guards, node.test))
            yield from _guarded(node.orelse, (*guards, ast.UnaryOp(ast.Not(), node.test)))
            continue
        inside = () if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else guards
        for name in ("body", "orelse", "finalbody"):
            yield from _guarded(getattr(node, name, []), inside)


def _named(node: ast.AST) -> Iterator[str]:
    """The names in an expression; of `h.width` the last one."""
    if isinstance(node, ast.Name | ast.Attribute):
        yield _last(node)
    else:
        for inner in ast.iter_child_nodes(node):
            yield from _named(inner)


def _last(node: ast.Name | ast.Attribute) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id


def _origins(tree: ast.Module, settings: Mapping[str, str]) -> dict[str, str]:
    """Each name that stands for one setting alone, wherever it was handed on."""
    hands = dict[str, set[str]]()  # name -> names that it is given
    signatures = dict(_signatures(tree))
    for node in ast.walk(tree):
        pairs = list[tuple[str, ast.expr]]()
        if isinstance(node, ast.Call):
            called = _last(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""
            pairs = [(k.arg, k.value) for k in node.keywords if k.arg]
            pairs += zip(signatures.get(called, []), node.args, strict=False)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name | ast.Attribute):
            pairs = [(_last(node.targets[0]), node.value)]
        for name, value in pairs:
            given = _plain(value)
            if given != name:
                hands.setdefault(name, set()).add(given)
    found = {name.lower(): setting for name, setting in settings.items()}
    known = dict(found)
    for _ in range(FAR):
        for name, given in hands.items():
            told = {known.get(one.lower(), "") for one in given if one}
            if name.lower() not in settings and len(told) == 1 and (setting := told.pop()):
                known[name.lower()] = setting
    return {n: known[n.lower()] for node in ast.walk(tree) for n in _names_of(node) if n.lower() in known}


def _names_of(node: ast.AST) -> tuple[str, ...]:
    return (_last(node),) if isinstance(node, ast.Name | ast.Attribute) else ()


def _plain(value: ast.expr) -> str:
    """The name that an expression hands on unchanged, a conversion apart; "" for anything else."""
    if isinstance(value, ast.Name | ast.Attribute):
        return _last(value)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and len(value.args) == 1:
        return _plain(value.args[0]) if value.func.id in ("int", "float", "bool") else ""
    return ""


def _signatures(tree: ast.Module) -> Iterator[tuple[str, list[str]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node.name, [a.arg for a in node.args.args if a.arg != "self"]
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
                    yield node.name, [a.arg for a in inner.args.args[1:]]


def _evaluated(node: ast.expr, names: Origins, values: Mapping[str, Any]) -> Any:
    """Of an expression. UnknownError where it cannot be told."""

    def of(inner: ast.expr) -> Any:
        return _evaluated(inner, names, values)

    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name | ast.Attribute):
        value = values.get(names.get(_last(node), ""))
        if value is None:
            raise UnknownError
        return value
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return tuple(map(of, node.elts))
    if isinstance(node, ast.BoolOp):
        return _any_or_all(node, of)
    if isinstance(node, ast.UnaryOp):
        return not of(node.operand) if isinstance(node.op, ast.Not) else -of(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in RECKONED:
        return RECKONED[type(node.op)](of(node.left), of(node.right))
    if isinstance(node, ast.Compare) and all(type(op) in COMPARED for op in node.ops):
        sides = [of(side) for side in (node.left, *node.comparators)]
        return all(COMPARED[type(op)](a, b) for op, a, b in zip(node.ops, sides, sides[1:], strict=False))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        if node.func.id == "if_known":
            try:
                return of(node.args[0])
            except UnknownError:
                return True
        if node.func.id in CALLED:
            return CALLED[node.func.id](*map(of, node.args))
    raise UnknownError


def _any_or_all(node: ast.BoolOp, of: Callable[[ast.expr], Any]) -> bool:
    """`and` is false with one false part, `or` true with one true part, whatever else is not known."""
    decides = isinstance(node.op, ast.Or)
    unknown = False
    for part in node.values:
        try:
            if bool(of(part)) == decides:
                return decides
        except UnknownError:
            unknown = True
    if unknown:
        raise UnknownError
    return not decides
