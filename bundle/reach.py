"""reachable(tree): a one-file program less all that nothing in it reaches. Knows nothing of the project."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

from bundle.passes import assigned, pairs_of, tidied, walk

# Methods that a library calls by name
HOOKS = {"forward", "backward", "setup_context", "step", "state_dict", "load_state_dict", "train", "eval"}
# Calls without an effect of their own: whole texts, and methods of whatever object. None that draws from an
# iterator (`list`, `sum`, `any`): what is drawn is gone.
PURE_CALLS = set(
    "len isinstance getattr hasattr float int bool str range round abs time.perf_counter torch.equal "
    "torch.zeros torch.ones math.log math.sqrt".split()
)
ACTS = (ast.NamedExpr, ast.Yield, ast.YieldFrom, ast.Await)
DRAWS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.Starred)
PURE_METHODS = set(
    "items values keys numel detach clone hexdigest sum get size ne eq any all encode decode abs "
    "max min".split()
)


def is_pure(node: ast.expr) -> bool:
    """Whether leaving the expression out changes nothing."""
    for n in ast.walk(node):
        if isinstance(n, (*ACTS, *DRAWS)):
            return False
        if isinstance(n, ast.Call) and ast.unparse(n.func) not in PURE_CALLS:
            if not (isinstance(n.func, ast.Attribute) and n.func.attr in PURE_METHODS):
                return False
    return True


def spoken_of(*nodes: ast.AST) -> set[str]:
    """Names that the nodes read: `name`, `.attribute`, and `"word` of strings."""
    found: set[str] = set()
    for n in walk(*nodes):
        if isinstance(n, ast.Name):
            if not isinstance(n.ctx, ast.Store):
                found.add(n.id)
        elif isinstance(n, ast.Attribute):
            if not isinstance(n.ctx, ast.Store):
                found.add(f".{n.attr}")
        elif isinstance(n, ast.Constant):
            if isinstance(n.value, str):
                found |= {f'"{word}' for word in re.findall(r"\w+", n.value)}
        elif isinstance(n, ast.Global):
            found |= {*n.names}
    return found


def member_name(node: ast.stmt) -> str:
    """The name of a part of a class that may go when nobody speaks of it; "": it stays."""
    if isinstance(node, ast.FunctionDef):
        return "" if node.name.startswith("__") or node.name in HOOKS else node.name
    if isinstance(node, ast.ClassDef):
        return node.name
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return ""


@dataclass(frozen=True)
class Part:
    """A statement that goes when nobody speaks of it: of the module, or a member of a class."""

    node: ast.stmt
    owner: str  # the class, or ""
    names: frozenset[str]  # none: it acts, and stays
    speaks: Set[str]  # without its members, where it is a class

    def is_reached(self, seen: Set[str], classes: Set[str]) -> bool:
        """A member is reached by its name in any attribute."""
        if self.owner and self.owner not in classes:
            return False
        marks = ("", '"', ".") if self.owner else ("", '"')
        return not self.names or any(m + n in seen for n in self.names for m in marks)


def parts_of(node: ast.stmt) -> Iterator[Part]:
    """A statement of the module, and the members of a class."""
    if isinstance(node, ast.ClassDef):
        members = [n for n in node.body if member_name(n)]
        rest = [*node.bases, *node.decorator_list, *(n for n in node.body if n not in members)]
        yield Part(node, "", frozenset({node.name}), spoken_of(*rest))
        for member in members:
            yield Part(member, node.name, frozenset({member_name(member)}), spoken_of(member))
    elif isinstance(node, ast.FunctionDef):
        yield Part(node, "", frozenset({node.name}), spoken_of(node))
    elif isinstance(node, ast.Assign):
        names = frozenset(n.id for t in node.targets for n in walk(t) if isinstance(n, ast.Name))
        yield Part(node, "", names, spoken_of(node))
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield Part(node, "", frozenset(a.asname or a.name.split(".")[0] for a in node.names), set())
    else:
        yield Part(node, "", frozenset(), spoken_of(node))


def alive(units: Sequence[Part]) -> list[Part]:
    """Those that the acting statements reach."""
    waiting = list(units)
    seen = set[str]()
    classes = set[str]()
    found = list[Part]()
    while reached := [unit for unit in waiting if unit.is_reached(seen, classes)]:
        for unit in reached:
            seen |= unit.speaks
            classes |= unit.names if isinstance(unit.node, ast.ClassDef) else set()
        found += reached
        gone = {id(unit) for unit in reached}
        waiting = [unit for unit in waiting if id(unit) not in gone]
    return found


def held(tree: ast.AST) -> set[str]:
    """Names and attributes that `x += y` stores in, and that are bound to more than new values somewhere: of
    a tensor it changes what others hold as well, so it reads x."""
    nodes = [*walk(tree)]
    plain = set[ast.AST]()
    bound = set[str]()
    added = set[str]()
    for n in nodes:
        if isinstance(n, ast.AugAssign):
            plain.add(n.target)
            added |= stored(n.target)
        elif isinstance(n, ast.Assign):
            pairs = pairs_of(n) or [(t, n.value) for t in n.targets]
            plain |= {
                target for target, value in pairs if isinstance(value, ast.Constant | ast.Dict | ast.List)
            }
        elif isinstance(n, ast.arg):
            bound.add(n.arg)
    return added & (bound | {name for n in nodes if n not in plain for name in stored(n)})


class Unread(ast.NodeTransformer):
    """Locals and attributes of self that nothing reads, and statements that do nothing, are gone."""

    def __init__(self, spoken: Set[str], held: Set[str]):
        self.spoken = spoken  # by the whole program
        self.held = held
        self.here: Set[str] | None = None  # names that the outermost function reads
        self.of_class = set[ast.stmt]()
        self.changed = False

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.of_class |= {*node.body}
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        outer = self.here
        if outer is None:
            declared = {x for n in walk(node) if isinstance(n, ast.Global | ast.Nonlocal) for x in n.names}
            self.here = spoken_of(node) | declared
        self.generic_visit(node)
        self.here = outer
        return node

    def is_unread(self, node: ast.expr) -> bool:
        if stored(node) & self.held:
            return False
        match node:
            case ast.Name(id=name):
                return self.here is not None and name not in self.here and f'"{name}' not in self.spoken
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                return f".{name}" not in self.spoken and f'"{name}' not in self.spoken
            case _:
                return False

    def instead(self, node: ast.stmt | None = None) -> ast.stmt:
        """What stands for a statement from now on."""
        self.changed = True
        return node or ast.Pass()

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        if node in self.of_class:
            return node
        pairs = pairs_of(node)
        if pairs is not None:
            kept = [(t, v) for t, v in pairs if not (self.is_unread(t) and is_pure(v))]
            return node if len(kept) == len(pairs) else self.instead(assigned(node, kept))
        read = [t for t in node.targets if not self.is_unread(t)]
        if not read:
            return self.instead(None if is_pure(node.value) else ast.Expr(node.value))
        if len(read) < len(node.targets):
            node.targets = read
            return self.instead(node)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        idle = self.is_unread(node.target) and is_pure(node.value)
        return self.instead() if idle else self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return self.instead() if is_pure(node.value) else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        if any(not isinstance(n, ast.Pass) for n in (*node.body, *node.orelse)):
            return node
        return self.instead(None if is_pure(node.test) else ast.Expr(node.test))

    def visit_For(self, node: ast.For) -> ast.AST:
        self.generic_visit(node)
        drains = isinstance(node.iter, ast.Name)  # of a generator, which then runs
        idle = all(isinstance(n, ast.Pass) for n in node.body) and is_pure(node.iter) and not drains
        return self.instead() if idle else node


def stored(node: ast.AST) -> set[str]:
    """The name or the attribute that the node itself stores."""
    if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
        return {node.id if isinstance(node, ast.Name) else node.attr}
    return set()


def sets(node: ast.AST) -> set[str]:
    """Names and attributes that it stores."""
    named = (n for n in walk(node) if isinstance(n, (ast.Name, ast.Attribute)))
    return {name for n in named for name in stored(n)}


def without_the_dead(tree: ast.Module, units: Sequence[Part]) -> set[str]:
    """Takes out what is not reached, and imports that nobody reads. Returns what the rest speaks of."""
    kept = alive(units)
    nodes = {unit.node for unit in kept}
    spoken = {name for unit in kept for name in unit.speaks}
    tree.body = [n for n in tree.body if n in nodes]
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            node.body = [n for n in node.body if n in nodes or not member_name(n)] or [ast.Pass()]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [a for a in node.names if (a.asname or a.name.split(".")[0]) in spoken]
    return spoken


def reachable(tree: ast.Module) -> ast.Module:
    """The tree less all that nothing reaches, again and again until nothing more goes. A statement is looked
    at again where it changed, or where something that it sets is no longer spoken of."""
    units = dict[ast.stmt, list[Part]]()
    stores = dict[ast.stmt, set[str]]()
    spoken = set[str]()
    fresh = {*tree.body}
    added_to = held(tree)
    while True:
        for node in fresh:
            units[node] = [*parts_of(node)]
            stores[node] = sets(node)
        before = spoken
        spoken = without_the_dead(tree, [u for n in tree.body for u in units[n]])
        lost = {name[1:] for name in before - spoken}
        again = fresh
        fresh = set[ast.stmt]()
        for i, node in enumerate(tree.body):
            if node in again or stores[node] & lost:
                unread = Unread(spoken, added_to)
                tree.body[i] = unread.visit(node)
                tidied(tree.body[i])
                fresh |= {tree.body[i]} if unread.changed else set()
        if not fresh and not lost:
            tidied(tree)
            return tree
