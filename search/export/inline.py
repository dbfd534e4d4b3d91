"""inline(entry, extra modules) -> one module's source: ours merged in import order, each name owned once.

Imports of ours disappear, foreign ones are merged at the top; what nothing reaches from the entry's
`if __name__ == "__main__"` is left out. Names that two modules define apart get a module's name before them.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from search.export.scopes import Renamer, bound_names, local_names

DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, order=True)
class Foreign:
    """A name that an import outside of ours binds: `from module import name`, or `import module`."""

    module: str
    name: str = ""


@dataclass
class Unit:
    """One of our modules, read and taken apart."""

    name: str
    body: list[ast.stmt]  # without imports, docstring and main guard
    main: list[ast.stmt]  # the main guard
    doc: str
    own: set[str]  # top-level names that it defines
    foreign: dict[str, Foreign] = field(default_factory=dict[str, Foreign])
    ours: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])  # -> (module, name)
    modules: dict[str, str] = field(default_factory=dict[str, str])  # -> our module
    dotted: set[str] = field(default_factory=set[str])  # `import a.b`: binds a
    locals: set[str] = field(default_factory=set[str])


class Sources:
    """Our modules under one root; a text may stand in for a module's top-level definitions."""

    def __init__(self, root: Path, replaced: Mapping[str, str]):
        self.root, self.replaced = root, replaced
        self.units: dict[str, Unit] = {}  # in import order: what a module needs stands before it

    def path(self, module: str) -> Path | None:
        path = self.root.joinpath(*module.split(".")).with_suffix(".py")
        return path if path.is_file() else None

    def is_package(self, module: str) -> bool:
        return (self.root.joinpath(*module.split(".")) / "__init__.py").is_file()

    def is_ours(self, module: str) -> bool:
        return self.path(module) is not None or self.is_package(module)

    def load(self, module: str) -> Unit:
        """The module, and before it everything of ours that it imports."""
        if module in self.units:
            return self.units[module]
        path = self.path(module)
        assert path is not None, module
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        self.replace(module, tree)
        unit = Unit(module, [], [], ast.get_docstring(tree, clean=False) or "", set())
        for node in list(ast.walk(tree)):
            if isinstance(node, ast.ImportFrom) and self.is_ours(node.module or ""):
                self.note_ours(unit, node)
            elif isinstance(node, ast.Import) and any(self.is_ours(a.name) for a in node.names):
                raise ValueError(f"{path}:{node.lineno}: write `from package import module` for our modules.")
        tree = WithoutOurs(self).visit(tree)
        for node in tree.body[bool(unit.doc) :]:
            self.sort_in(unit, node)
        unit.own = bound_names(unit.body)
        unit.locals = local_names(ast.Module([*unit.body, *unit.main], []))
        for needed in [*(m for m, _ in unit.ours.values()), *unit.modules.values()]:
            self.load(needed)
        self.units[module] = unit
        return unit

    def replace(self, module: str, tree: ast.Module) -> None:
        """Puts the definitions that stand in where those of the same names were."""
        new = {n.name: n for n in ast.parse(self.replaced.get(module, "")).body if isinstance(n, DEFINITIONS)}
        old = {n.name for n in tree.body if isinstance(n, DEFINITIONS)}
        assert new.keys() <= old, f"{module} no longer defines {sorted(new.keys() - old)}"
        tree.body = [new.get(n.name, n) if isinstance(n, DEFINITIONS) else n for n in tree.body]

    def note_ours(self, unit: Unit, node: ast.ImportFrom) -> None:
        for alias in node.names:
            bound, inner = alias.asname or alias.name, f"{node.module}.{alias.name}"
            if self.path(inner):
                unit.modules[bound] = inner
            else:
                unit.ours[bound] = (node.module or "", alias.name)

    def sort_in(self, unit: Unit, node: ast.stmt) -> None:
        """One top-level statement: an import, the main guard, or part of the body."""
        if isinstance(node, ast.ImportFrom):
            if node.module != "__future__":
                for a in node.names:
                    unit.foreign[a.asname or a.name] = Foreign(node.module or "", a.name)
        elif isinstance(node, ast.Import):
            for a in node.names:
                package, _, last = a.name.rpartition(".")
                if a.asname and package:
                    unit.foreign[a.asname] = Foreign(package, last)
                elif a.asname and a.asname != a.name:
                    unit.foreign[a.asname] = Foreign(a.name)
                else:
                    unit.foreign[a.name.split(".")[0]] = Foreign(a.name.split(".")[0])
                    unit.dotted |= {a.name} if package else set()
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            pass
        elif isinstance(node, ast.If) and ast.unparse(node.test).startswith("__name__ =="):
            unit.main.append(node)
        elif not isinstance(node, ast.Pass):
            unit.body.append(node)


class WithoutOurs(ast.NodeTransformer):
    """The tree without imports of our modules, at its head or inside a function."""

    def __init__(self, sources: Sources):
        self.sources = sources

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.body = [n for n in node.body if not isinstance(n, ast.Pass)] or [ast.Pass()]
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        return ast.copy_location(ast.Pass(), node) if self.sources.is_ours(node.module or "") else node


def name_everything(units: Sequence[Unit]) -> dict[tuple[str, str], str]:
    """(module, its top-level name) -> the bundle's name; the first of `units` keeps a name that two want."""
    spoken = {name for u in units for name in (*u.own, *u.locals, *u.foreign, *u.ours)} | set(dir(builtins))
    taken: dict[str, Foreign | tuple[str, str]] = {}
    final: dict[tuple[str, str], str] = {}

    def claim(name: str, owner: Foreign | tuple[str, str], prefix: str, free: bool) -> str:
        if free and taken.setdefault(name, owner) == owner:
            return name
        while (name := f"{prefix}_{name}") in spoken or name in taken:
            pass
        taken[name] = owner
        return name

    for unit in units:
        for bound, what in unit.foreign.items():
            name = claim(bound, what, unit.name.split(".")[-1].lstrip("_"), True)
            final[unit.name, bound] = name
    for unit in units:
        for own in sorted(unit.own):
            shadowed = own in dir(builtins) or any(own in u.locals for u in units if renames(u, unit, own))
            name = claim(own, (unit.name, own), unit.name.split(".")[-1].lstrip("_"), not shadowed)
            final[unit.name, own] = name
    return final


def renames(user: Unit, owner: Unit, name: str) -> bool:
    """Whether `user` speaks of the owner's global by another name than its own: `shards.MAGIC`, `as x`."""
    by_module = owner.name in user.modules.values()
    return by_module or any(w == (owner.name, name) and n != name for n, w in user.ours.items())


@dataclass(frozen=True)
class Piece:
    """One top-level statement of the bundle."""

    text: str
    defines: frozenset[str]
    uses: frozenset[str]


def pieces_of(unit: Unit, units: Mapping[str, Unit], final: Mapping[tuple[str, str], str]) -> Iterator[Piece]:
    """The unit's statements under the bundle's names."""

    def names_in(u: Unit) -> dict[str, str]:
        direct = {n: final[u.name, n] for n in (*u.foreign, *u.own)}
        return direct | {n: names_in(units[module])[name] for n, (module, name) in u.ours.items()}

    names = names_in(unit)
    modules = {bound: names_in(units[inner]) for bound, inner in unit.modules.items()}
    for node in [*unit.body, *unit.main]:
        renamer = Renamer(names, modules)
        defines = frozenset(names[n] for n in bound_names([node]))
        try:
            text = ast.unparse(ast.fix_missing_locations(renamer.visit(node)))
        except ValueError as error:
            raise ValueError(f"{unit.name} cannot be bundled: {error}") from None
        yield Piece(text, defines, frozenset(renamer.used) - defines)


def reached(pieces: Sequence[Piece]) -> list[Piece]:
    """What is needed by the statements that define nothing (they act: the main guard), in the order given."""
    owners: dict[str, list[int]] = {}
    for i, piece in enumerate(pieces):
        for name in piece.defines:
            owners.setdefault(name, []).append(i)
    waiting = [i for i, p in enumerate(pieces) if not p.defines]
    kept = set(waiting)
    while waiting:
        for name in pieces[waiting.pop()].uses:
            fresh = set(owners.get(name, ())) - kept
            kept |= fresh
            waiting += fresh
    return [p for i, p in enumerate(pieces) if i in kept]


def import_lines(units: Sequence[Unit], final: Mapping[tuple[str, str], str], used: set[str]) -> list[str]:
    """The foreign imports that are used, one line a module."""
    plain, froms = set[str](), dict[str, set[str]]()
    for unit in units:
        for bound, what in unit.foreign.items():
            name = final[unit.name, bound]
            if name not in used:
                continue
            if what.name:
                froms.setdefault(what.module, set()).add(spelt(what.name, name))
            else:
                plain.add(spelt(what.module, name))
                plain |= {dotted for dotted in unit.dotted if dotted.split(".")[0] == name}
    lines = [f"import {name}" for name in sorted(plain)]
    return lines + [
        f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(froms.items())
    ]


def spelt(name: str, bound: str) -> str:
    return name if name == bound else f"{name} as {bound}"


def inline(root: Path, entry: str, *, replaced: Mapping[str, str]) -> str:
    """The source of `entry` with all of ours inside it. `replaced`: module -> definitions that stand in for
    its own; they may import of ours what the module itself does not."""
    sources = Sources(root, replaced)
    sources.load(entry)
    units = list(sources.units.values())
    final = name_everything([sources.units[entry], *(u for u in units if u.name != entry)])
    pieces: list[Piece] = []
    for unit in units:
        if unit.name != entry:
            unit.main = []
        pieces += pieces_of(unit, sources.units, final)
    kept = reached(pieces)
    used = {name for p in kept for name in p.uses}
    doc = ast.unparse(ast.Module([ast.Expr(ast.Constant(sources.units[entry].doc))], []))
    head = [doc, "from __future__ import annotations", *import_lines(units, final, used)]
    return "\n".join([*head, *(f"\n{p.text}" for p in kept)]) + "\n"
