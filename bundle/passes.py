"""Passes over the tree of a one-file program that make it smaller and change no result.

None knows the project. bare, without, decided, short: tree -> the same tree, changed. Behind them comes
reachable, in reach.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, cast

FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


class Undecided(Exception):
    """A value that the settings alone do not give."""


def walk(*nodes: ast.AST) -> Iterator[ast.AST]:
    """The nodes and all below them, in no order that matters: `ast.walk` at a third of its time."""
    waiting = [*nodes]
    while waiting:
        node = waiting.pop()
        yield node
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, ast.AST):
                waiting.append(value)
            elif isinstance(value, list):
                waiting += [n for n in cast("list[Any]", value) if isinstance(n, ast.AST)]


def words_in(tree: ast.AST) -> set[str]:
    """Every word of every string: a name that is spoken of there may be looked up."""
    texts = [n.value for n in walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return {word for text in texts for word in re.findall(r"\w+", text)}


def tidied(node: ast.AST) -> ast.AST:
    """`pass` only where a block is empty, and nothing behind a statement that leaves its block."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        block = getattr(node, name, None)
        if not isinstance(block, list):
            continue
        block = cast("list[ast.stmt]", block)
        block[:] = [n for n in block if not isinstance(n, ast.Pass)]
        for i, n in enumerate(block):
            tidied(n)
            if isinstance(n, ast.Return | ast.Raise | ast.Continue | ast.Break):
                del block[i + 1 :]
                break
        if name == "body" and not block and not isinstance(node, ast.Module):
            block.append(ast.Pass())
    return node


def pairs_of(node: ast.Assign) -> list[tuple[ast.expr, ast.expr]] | None:
    """(target, value) of `a, b = x, y`; None for any other assignment."""
    target = node.targets[0]
    value = node.value
    if len(node.targets) == 1 and isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        if len(target.elts) == len(value.elts):
            return list(zip(target.elts, value.elts, strict=True))
    return None


def assigned(node: ast.Assign, pairs: Sequence[tuple[ast.expr, ast.expr]]) -> ast.stmt:
    """The assignment with these of its pairs."""
    if not pairs:
        return ast.Pass()
    if len(pairs) == 1:
        node.targets = [pairs[0][0]]
        node.value = pairs[0][1]
    else:
        node.targets = [ast.Tuple([t for t, _ in pairs], ast.Store())]
        node.value = ast.Tuple([v for _, v in pairs], ast.Load())
    return node


# ---- what only a reader of the source needs --------------------------------------------------------------


def holds_fields(node: ast.ClassDef) -> bool:
    marks = [ast.unparse(n) for n in (*node.decorator_list, *node.bases)]
    return any("dataclass" in mark or "NamedTuple" in mark for mark in marks)


class Bare(ast.NodeTransformer):
    """Docstrings, annotations (a dataclass keeps `name: 0`), asserts and casts go."""

    def __init__(self) -> None:
        self.fields: set[ast.AnnAssign] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        if holds_fields(node):
            self.fields |= {n for n in node.body if isinstance(n, ast.AnnAssign)}
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return ast.Pass() if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return ast.Pass()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        if node in self.fields:
            node.annotation = ast.Constant(0)
            return node
        return ast.Assign([node.target], node.value) if node.value is not None else ast.Pass()

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        called = ast.unparse(node.func)
        if called == "zip":
            node.keywords = [k for k in node.keywords if k.arg != "strict"]
        return node.args[1] if called == "cast" else node


def bare(tree: ast.Module) -> ast.Module:
    Bare().visit(tree)
    tidied(tree)
    return tree


class Short(ast.NodeTransformer):
    """An error says its first values and no sentence."""

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        call = node.exc
        if isinstance(call, ast.Call) and any(isinstance(a, ast.JoinedStr | ast.Constant) for a in call.args):
            parts = [n.value for a in call.args for n in ast.walk(a) if isinstance(n, ast.FormattedValue)]
            call.args = list[ast.expr]([p for p in parts if isinstance(p, ast.Name | ast.Attribute)][:2])
        return node


def short(tree: ast.Module) -> ast.Module:
    Short().visit(tree)
    return tree


# ---- what only the lab needs -----------------------------------------------------------------------------


class Without(ast.NodeTransformer):
    """No parameter, argument, attribute or statement of these receivers, no statement that calls these."""

    def __init__(self, receivers: Set[str], calls: Set[str]):
        self.receivers = receivers
        self.calls = calls

    def is_theirs(self, node: ast.AST) -> bool:
        match node:
            case ast.Name(id=name):
                return name in self.receivers
            case ast.Attribute(value=value, attr=name):
                return name in self.receivers or self.is_theirs(value)
            case ast.Subscript(value=value):
                return self.is_theirs(value)
            case ast.Call(func=ast.Name(id=name)):
                return name in self.calls
            case ast.Call(func=ast.Attribute(attr=name) as func):
                return name in self.calls or self.is_theirs(func)
            case _:
                return False

    def is_object(self, node: ast.expr) -> bool:
        """Whether the expression is one of theirs, and no value that one holds."""
        return not isinstance(node, ast.Subscript) and self.is_theirs(node)

    def others(self, nodes: Sequence[ast.expr]) -> list[ast.expr]:
        return [n for n in nodes if not (isinstance(n, ast.Name | ast.Attribute) and self.is_theirs(n))]

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return ast.Pass() if self.is_theirs(node.value) else self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if all(isinstance(t, ast.Attribute) and self.is_theirs(t) for t in node.targets):
            return ast.Pass()
        pairs = pairs_of(node)
        if pairs is not None:
            theirs = [
                isinstance(v, ast.Name | ast.Attribute | ast.Call) and self.is_theirs(v) for _, v in pairs
            ]
            kept = [p for p, gone in zip(pairs, theirs, strict=True) if not (gone or self.is_theirs(p[0]))]
            if len(kept) < len(pairs):
                left = assigned(node, kept)
                return self.generic_visit(left) if kept else left
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        arguments = node.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
        defaults = dict(zip(reversed(names), reversed(arguments.defaults), strict=False))
        arguments.args = [a for a in arguments.args if a.arg not in self.receivers]
        arguments.defaults = [defaults[n] for n in names if n in defaults and n not in self.receivers]
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        node.args = self.others(node.args)
        node.keywords = [k for k in node.keywords if k.arg not in self.receivers]
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """What a value of theirs held is an empty dict."""
        return ast.Dict([], []) if self.is_theirs(node) else self.generic_visit(node)

    def visit_Tuple(self, node: ast.Tuple) -> ast.AST:
        self.generic_visit(node)
        node.elts = self.others(node.elts)
        return node

    def visit_With(self, node: ast.With) -> ast.AST | list[ast.stmt]:
        node.items = [i for i in node.items if not self.is_theirs(i.context_expr)]
        self.generic_visit(node)
        return node if node.items else node.body


def without(tree: ast.Module, receivers: Set[str], calls: Set[str]) -> ast.Module:
    Without(receivers, calls).visit(tree)
    tidied(tree)
    return tree


# ---- what settings decide --------------------------------------------------------------------------------

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Is: lambda a, b: a is b,
    ast.IsNot: lambda a, b: a is not b,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Gt: lambda a, b: a > b,
    ast.Lt: lambda a, b: a < b,
    ast.GtE: lambda a, b: a >= b,
    ast.LtE: lambda a, b: a <= b,
}


class Decided(ast.NodeTransformer):
    """Tests that the settings decide are gone, with the branch that never runs.

    `own`: class -> what its `self.config` holds; `common`: what every object called c or config holds alike;
    `texts`: an expression's text -> its value."""

    def __init__(
        self, own: Mapping[str, Mapping[str, Any]], common: Mapping[str, Any], texts: Mapping[str, Any]
    ):
        self.own = own
        self.common = common
        self.texts = texts
        self.owner = ""
        self.outcomes: dict[tuple[str, str], bool | None] = {}  # (class, test) -> what it gives, None: open

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        outer = self.owner
        self.owner = node.name if node.name in self.own else outer
        self.generic_visit(node)
        self.owner = outer
        return node

    def setting(self, node: ast.Attribute) -> Any:
        receiver = ast.unparse(node.value)
        own = self.own.get(self.owner, {})
        if receiver == "self.config" and node.attr in own:
            return own[node.attr]
        if (receiver in ("c", "config") or receiver.endswith(".config")) and node.attr in self.common:
            return self.common[node.attr]
        raise Undecided

    def value(self, node: ast.expr) -> Any:
        """What the expression gives. Undecided where more than settings decide."""
        if ast.unparse(node) in self.texts:
            return self.texts[ast.unparse(node)]
        match node:
            case ast.Constant():
                return node.value
            case ast.Attribute():
                return self.setting(node)
            case ast.UnaryOp(op=ast.Not()):
                return not self.value(node.operand)
            case ast.Tuple() | ast.List() | ast.Set():
                return tuple(self.value(n) for n in node.elts)
            case ast.Compare(ops=[op]):
                return COMPARISONS[type(op)](self.value(node.left), self.value(node.comparators[0]))
            case ast.BoolOp():
                found: Any = None
                for part in node.values:
                    found = self.value(part)
                    if bool(found) == isinstance(node.op, ast.Or):
                        break
                return found
            case _:
                raise Undecided

    def test(self, node: ast.expr) -> bool | None:
        """What the settings say of it, None: nothing. It is noted."""
        try:
            outcome = bool(self.value(node))
        except Undecided:
            outcome = None
        self.outcomes[self.owner, ast.unparse(node)] = outcome
        return outcome

    def again(self, owner: str, test: str) -> bool | None:
        """What a test that was noted in some class gives under these settings."""
        self.owner = owner
        return self.test(ast.parse(test, mode="eval").body)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        decided = self.test(node.test)
        if decided is None:
            return node
        return (node.body if decided else node.orelse) or ast.Pass()

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        decided = self.test(node.test)
        return node if decided is None else node.body if decided else node.orelse

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        kept: list[ast.expr] = []
        for part in node.values:
            decided = self.test(part)
            if decided is None or part is node.values[-1] or decided == isinstance(node.op, ast.Or):
                kept.append(part)
            if decided is not None and decided == isinstance(node.op, ast.Or):
                break
        node.values = kept
        return node if len(kept) > 1 else kept[0]

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        self.generic_visit(node)
        node.ifs = [test for test in node.ifs if self.test(test) is not True]
        return node


def decided(tree: ast.Module, pass_over: Decided) -> ast.Module:
    pass_over.visit(tree)
    tidied(tree)
    return tree
