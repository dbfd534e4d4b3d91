"""Which names of a module are its own globals, scope by scope, and the same tree with them renamed.

Python's rule: a name is local to the innermost function that binds it; a class body's names are seen in that
body only. Everything else is the module's or a built-in's.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def bound_names(body: Iterable[ast.AST]) -> set[str]:
    """What these statements (or expressions) bind in their own scope, less what they declare `global`."""
    bound, not_ours = set[str](), set[str]()
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                bound.add(node.name)
                continue
            case ast.Lambda():
                continue
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                walked = [n for n in ast.walk(node) if isinstance(n, ast.NamedExpr)]
                bound |= {n.target.id for n in walked}
                continue
            case ast.Name(ctx=ast.Store() | ast.Del()):
                bound.add(node.id)
            case ast.Import() | ast.ImportFrom():
                bound |= {a.asname or a.name.split(".")[0] for a in node.names}
            case ast.Global() | ast.Nonlocal():
                not_ours |= set(node.names)
            case ast.ExceptHandler() | ast.MatchAs() | ast.MatchStar():
                bound |= {node.name} if node.name else set()
            case _:
                pass
        waiting += ast.iter_child_nodes(node)
    return bound - not_ours


def argument_names(arguments: ast.arguments) -> set[str]:
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [a for a in (arguments.vararg, arguments.kwarg) if a]
    return {a.arg for a in every}


def local_names(tree: ast.AST) -> set[str]:
    """Every name that some function or comprehension inside `tree` binds for itself."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            body = [node.body] if isinstance(node, ast.Lambda) else node.body
            found |= argument_names(node.args) | bound_names(body)
        elif isinstance(node, COMPREHENSIONS):
            found |= bound_names([g.target for g in node.generators])
    return found


@dataclass(frozen=True)
class Scope:
    """One open scope while a tree is walked."""

    names: set[str]
    is_class: bool = False


@dataclass
class Renamer(ast.NodeTransformer):
    """Gives each global of one module its name in the bundle and notes which of those are used.

    `names`: global here -> name there; `modules`: global here -> {attribute -> name there} for a module of
    ours. ValueError for a module of ours that is used as a value."""

    names: Mapping[str, str]
    modules: Mapping[str, Mapping[str, str]]
    used: set[str] = field(default_factory=set[str])
    scopes: list[Scope] = field(default_factory=list[Scope])

    def is_global(self, name: str) -> bool:
        """Whether `name`, read here, is the module's."""
        inner = self.scopes[-1:]
        return not any(
            name in scope.names for scope in self.scopes if not scope.is_class or scope is inner[0]
        )

    def renamed(self, name: str) -> str:
        if not self.is_global(name) or name not in self.names:
            return name
        self.used.add(self.names[name])
        return self.names[name]

    def inside(self, scope: Scope, nodes: Sequence[ast.AST]) -> list[ast.AST]:
        """The nodes, visited with `scope` open."""
        self.scopes.append(scope)
        visited = [cast("ast.AST", self.visit(node)) for node in nodes]
        self.scopes.pop()
        return visited

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self.modules and self.is_global(node.id):
            raise ValueError(f"line {node.lineno}: the module {node.id} is used as a value; name its parts.")
        node.id = self.renamed(node.id)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        owner = node.value
        if isinstance(owner, ast.Name) and owner.id in self.modules and self.is_global(owner.id):
            name = self.modules[owner.id].get(node.attr)
            if name is None:
                raise ValueError(f"line {node.lineno}: {owner.id} has no top-level name {node.attr!r}.")
            self.used.add(name)
            return ast.copy_location(ast.Name(name, node.ctx), node)
        return self.generic_visit(node)

    def imported(self, node: ast.Import | ast.ImportFrom) -> ast.AST:
        """An import inside a statement of the module's own level, `try:` say."""
        for alias in node.names if not self.scopes else ():
            bound = alias.asname or alias.name.split(".")[0]
            if self.renamed(bound) != bound:
                alias.asname = self.renamed(bound)
        return node

    visit_Import = imported
    visit_ImportFrom = imported

    def visit_Global(self, node: ast.Global) -> ast.AST:
        node.names = [self.names.get(name, name) for name in node.names]
        self.used |= set(node.names)
        return node

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        node.name = self.renamed(node.name)
        node.decorator_list = [self.visit(d) for d in node.decorator_list]
        node.args = self.visit(node.args)
        node.returns = self.visit(node.returns) if node.returns else None
        names = argument_names(node.args) | bound_names(node.body)
        node.body = cast("list[ast.stmt]", self.inside(Scope(names), node.body))
        return node

    visit_FunctionDef = function
    visit_AsyncFunctionDef = function

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        node.args = self.visit(node.args)
        names = argument_names(node.args) | bound_names([node.body])
        node.body = cast("ast.expr", self.inside(Scope(names), [node.body])[0])
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.name = self.renamed(node.name)
        node.decorator_list = [self.visit(d) for d in node.decorator_list]
        node.bases = [self.visit(b) for b in node.bases]
        node.keywords = [self.visit(k) for k in node.keywords]
        scope = Scope(bound_names(node.body), is_class=True)
        node.body = cast("list[ast.stmt]", self.inside(scope, node.body))
        return node

    def comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> ast.AST:
        first = node.generators[0]
        source = self.visit(first.iter)  # evaluated where the comprehension stands
        first.iter = ast.Constant(None)
        self.scopes.append(Scope(bound_names([g.target for g in node.generators])))
        self.generic_visit(node)
        self.scopes.pop()
        first.iter = source
        return node

    visit_ListComp = comprehension
    visit_SetComp = comprehension
    visit_DictComp = comprehension
    visit_GeneratorExp = comprehension
