"""inline(entry, what stands in) -> one module's source: ours merged in import order, each name owned once.

Imports of ours disappear, `module.name` becomes `name`, foreign imports are merged at the top; what nothing
reaches from the entry's `if __name__ == "__main__"` is left out. Nothing is renamed: ValueError where two
modules own one name, or where a function's own name would capture a module's.
"""

from __future__ import annotations

import ast
import builtins
import symtable
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

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
    foreign: dict[str, Foreign] = field(default_factory=dict[str, Foreign])
    ours: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (module, name) imported
    modules: dict[str, str] = field(default_factory=dict[str, str])  # name here -> our module
    dotted: set[str] = field(default_factory=set[str])  # `import a.b`: binds a


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
        unit = Unit(module, [], [], ast.get_docstring(tree, clean=False) or "")
        for node in list(ast.walk(tree)):
            if isinstance(node, ast.ImportFrom) and self.is_ours(node.module or ""):
                self.note_ours(unit, node)
            elif isinstance(node, ast.Import) and any(self.is_ours(a.name) for a in node.names):
                raise ValueError(f"{path}:{node.lineno}: write `from package import module` for our modules.")
        tree = WithoutOurs(self).visit(tree)
        for node in tree.body[bool(unit.doc) :]:
            self.sort_in(unit, node)
        for needed in [*(m for m, _ in unit.ours), *unit.modules.values()]:
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
            inner = f"{node.module}.{alias.name}"
            if self.path(inner):
                unit.modules[alias.asname or alias.name] = inner
            elif alias.asname and alias.asname != alias.name:
                raise ValueError(
                    f"{unit.name} imports {alias.name} as {alias.asname}: a bundle keeps names as they are. "
                    "Rename the definition, or import its module."
                )
            else:
                unit.ours.append((node.module or "", alias.name))

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


def tables_of(text: str) -> Iterator[symtable.SymbolTable]:
    """The scopes of some statements, the outermost first."""
    waiting = [symtable.symtable(text, "<bundle>", "exec")]
    while waiting:
        yield waiting[0]
        waiting += waiting.pop(0).get_children()


def names_bound(text: str) -> frozenset[str]:
    """What some top-level statements bind there."""
    top = next(tables_of(text))
    return frozenset(s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported())


def names_used(text: str) -> frozenset[str]:
    """The module's names, and built-ins, of which any scope of some top-level statements speaks."""
    top, *inner = tables_of(text)
    read = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    return frozenset(read | {s.get_name() for t in inner for s in t.get_symbols() if s.is_global()})


def own_names(text: str, modules: Set[str]) -> tuple[set[str], set[str]]:
    """(names that functions inside bind for themselves, `modules` of which some scope speaks as such). A
    class's names are seen in its body alone: they count where that body speaks of a module."""
    bound, spoken = set[str](), set[str]()
    for table in tables_of(text):
        symbols = {s.get_name(): s for s in table.get_symbols()}
        is_top = table.get_type() == "module"
        here = {n for n in symbols.keys() & modules if symbols[n].is_global() or is_top}
        spoken |= here
        if not is_top and (here or table.get_type() != "class"):
            bound |= {n for n, s in symbols.items() if s.is_local()}
    return bound, spoken


@dataclass
class PlainNames(ast.NodeTransformer):
    """`module.name` of a module of ours -> `name`; the names are noted."""

    modules: Mapping[str, frozenset[str]]  # name of the module here -> its top-level names
    plain: set[str] = field(default_factory=set[str])

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self.modules:
            raise ValueError(f"line {node.lineno}: the module {node.id} is used as a value; name its parts.")
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if not (isinstance(node.value, ast.Name) and node.value.id in self.modules):
            return self.generic_visit(node)
        if node.attr not in self.modules[node.value.id]:
            raise ValueError(f"line {node.lineno}: {node.value.id} has no top-level name {node.attr!r}.")
        self.plain.add(node.attr)
        return ast.copy_location(ast.Name(node.attr, node.ctx), node)


@dataclass(frozen=True)
class Piece:
    """One top-level statement of the bundle."""

    text: str
    defines: frozenset[str]
    uses: frozenset[str]


def piece_of(node: ast.stmt, modules: Mapping[str, frozenset[str]]) -> Piece:
    """The statement with plain names. ValueError where a name of its own would capture one of them."""
    text = ast.unparse(node)
    bound, spoken = own_names(text, modules.keys())
    plain = PlainNames({name: modules[name] for name in spoken - bound})
    if spoken:
        text = ast.unparse(ast.fix_missing_locations(plain.visit(node)))
    captured = sorted(bound & (spoken | plain.plain))
    if captured:
        raise ValueError(f"line {node.lineno}: a function's own name hides {', '.join(captured)}. Rename it.")
    defines = names_bound(text)
    return Piece(text, defines, names_used(text) - defines)


def pieces_of(unit: Unit, units: Mapping[str, Unit]) -> Iterator[Piece]:
    """The unit's statements with plain names."""
    modules = {bound: top_level_names(units[inner]) for bound, inner in unit.modules.items()}
    for node in [*unit.body, *unit.main]:
        try:
            yield piece_of(node, modules)
        except ValueError as error:
            raise ValueError(f"{unit.name} cannot be bundled: {error}") from None


def top_level_names(unit: Unit) -> frozenset[str]:
    """Its own and those that it imports."""
    own = names_bound(ast.unparse(ast.Module(unit.body, [])))
    return own | unit.foreign.keys() | {name for _, name in unit.ours}


def check_owners(units: Sequence[Unit]) -> None:
    """ValueError unless each top-level name means one thing in all modules, and no built-in."""
    owners: dict[str, Foreign | str] = {}
    for unit in units:
        own = names_bound(ast.unparse(ast.Module(unit.body, [])))
        meant: dict[str, Foreign | str] = {**unit.foreign, **dict.fromkeys(own, unit.name)}
        for name, owner in meant.items():
            other = owners.setdefault(name, owner)
            if other != owner or (name in own and name in dir(builtins)):
                raise ValueError(
                    f"{unit.name} cannot be bundled: {name!r} is {owner} here and "
                    f"{'a built-in' if other == owner else other} elsewhere. Rename it."
                )


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


def spelt(name: str, bound: str) -> str:
    return name if name == bound else f"{name} as {bound}"


@dataclass(frozen=True)
class Program:
    """What one file may hold: the entry's docstring, the imports that are not ours, our statements."""

    doc: str
    imports: Mapping[str, Foreign]  # name -> what it is
    dotted: frozenset[str]  # of `import a.b`
    pieces: Sequence[Piece]


def program(root: Path, entry: str, *, replaced: Mapping[str, str]) -> Program:
    """All of ours that `entry` imports, each module behind those that it needs. `replaced`: module ->
    definitions that stand in for its own; they may import of ours what the module itself does not."""
    sources = Sources(root, replaced)
    sources.load(entry)
    units = list(sources.units.values())
    check_owners(units)
    pieces: list[Piece] = []
    for unit in units:
        if unit.name != entry:
            unit.main = []
        pieces += pieces_of(unit, sources.units)
    imports = {name: what for unit in units for name, what in unit.foreign.items()}
    dotted = frozenset(name for unit in units for name in unit.dotted)
    return Program(sources.units[entry].doc, imports, dotted, pieces)


def import_lines(whole: Program, used: Set[str]) -> list[str]:
    """The foreign imports that are used, one line a module."""
    plain = set[str]()
    froms = dict[str, set[str]]()
    for name, what in whole.imports.items():
        if name not in used:
            continue
        if what.name:
            froms.setdefault(what.module, set()).add(spelt(what.name, name))
        else:
            plain.add(spelt(what.module, name))
            plain |= {dotted for dotted in whole.dotted if dotted.split(".")[0] == name}
    lines = [f"import {name}" for name in sorted(plain)]
    return lines + [
        f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(froms.items())
    ]


def inline(root: Path, entry: str, *, replaced: Mapping[str, str]) -> str:
    """The source of `entry` with all of ours inside it that it reaches: see `program`."""
    whole = program(root, entry, replaced=replaced)
    kept = reached(whole.pieces)
    doc = ast.unparse(ast.Module([ast.Expr(ast.Constant(whole.doc))], []))
    imports = import_lines(whole, {name for p in kept for name in p.uses})
    head = [doc, "from __future__ import annotations", *imports]
    return "\n".join([*head, *(f"\n{p.text}" for p in kept)]) + "\n"
