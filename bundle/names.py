"""Short names for a one-file program, one for one, and its source without needless blanks."""

from __future__ import annotations

import ast
import builtins
import collections
import itertools
import keyword
import re
import string
import sys
from collections.abc import Collection
from dataclasses import dataclass

from bundle.passes import FUNCTIONS, walk, words_in

DEFINED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)
NAMED: dict[type[ast.AST], str] = {  # kind of node -> where its name is
    **{ast.Name: "id", ast.Attribute: "attr", ast.arg: "arg", ast.keyword: "arg"},
    **dict.fromkeys(DEFINED, "name"),
}


@dataclass
class Names:
    """Where identifiers stand in a tree."""

    count: collections.Counter[str]  # of every use
    bound: set[str]  # by this file
    attributes: set[str]  # as attributes, members or keywords
    fixed: set[str]  # that others gave: imports, keywords of others' calls


def names_of(tree: ast.Module, foreign: Collection[str] = ()) -> Names:
    found = Names(collections.Counter(), set(), set(), set(keyword.kwlist) | set(dir(builtins)))
    ours = {n.name for n in walk(tree) if isinstance(n, FUNCTIONS | ast.ClassDef)} | {
        "replace",
        "_replace",
    }
    for n in walk(tree):
        for name in identifiers(n):
            found.count[name] += 1
            if not isinstance(n, ast.Attribute | ast.Name) or isinstance(n.ctx, ast.Store):
                found.bound.add(name)
        if isinstance(n, ast.Attribute):
            found.attributes.add(n.attr)
        elif isinstance(n, ast.ClassDef):
            found.attributes |= {name for m in n.body for name in members(m)}
            if any(ast.unparse(base).endswith("Module") for base in n.bases):
                found.fixed |= set_on_self(n)  # parts of a model: the artifact says their names
        elif isinstance(n, ast.Import | ast.ImportFrom):
            found.fixed |= {part for a in n.names for part in (a.asname or a.name, *a.name.split("."))}
        elif isinstance(n, ast.Call):
            keywords = {k.arg for k in n.keywords if k.arg}
            found.attributes |= keywords
            called = n.func.attr if isinstance(n.func, ast.Attribute) else getattr(n.func, "id", "")
            found.fixed |= set() if called in ours and called not in foreign else keywords
    return found


def members(node: ast.stmt) -> set[str]:
    """Names that a statement binds in a class's body."""
    if isinstance(node, FUNCTIONS | ast.ClassDef):
        return {node.name}
    return {n.id for n in walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def set_on_self(tree: ast.AST) -> set[str]:
    """Attributes that methods give to self."""
    stores = (n for n in walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
    return {n.attr for n in stores if isinstance(n.value, ast.Name) and n.value.id == "self"}


def identifiers(node: ast.AST) -> list[str]:
    """The names that stand in the node itself."""
    if isinstance(node, (ast.Global, ast.Nonlocal)):
        return node.names
    name = getattr(node, NAMED.get(type(node), ""), None)
    return [name] if name else []


def renamed(tree: ast.Module, foreign: Collection[str]) -> ast.Module:
    """Every name of ours under a short one, everywhere the same: what was one name stays one, what were two
    stay two, so no scope needs looking at. Kept are `foreign` attributes and whatever a string speaks of."""
    names = names_of(tree, foreign)
    told = words_in(tree)
    ours = {
        n
        for n in names.bound - names.fixed
        if not n.startswith("__") and not (n in names.attributes and (n in foreign or n in told))
    }
    taken = (set(names.count) | names.fixed) - ours
    short_names = ("".join(t) for n in (1, 2, 3) for t in itertools.product(string.ascii_letters, repeat=n))
    free = (n for n in short_names if n not in taken)
    new = {n: next(free) for n in sorted(ours, key=lambda n: (-names.count[n], n))}
    for node in walk(tree):
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            node.names = [new.get(n, n) for n in node.names]
        elif found := identifiers(node):
            setattr(node, NAMED[type(node)], new.get(found[0], found[0]))
    return tree


def tight(tree: ast.Module) -> str:
    """The tree's source with tabs and no blank that Python does not need."""
    lines: list[str] = []
    for line in ast.unparse(tree).splitlines():
        body = line.lstrip(" ")
        if body:
            lines.append("\t" * ((len(line) - len(body)) // 4) + without_blanks(body))
    return "\n".join(lines) + "\n"


def without_blanks(line: str) -> str:
    """One line as `ast.unparse` prints it, less the blanks outside of strings that part no two words."""
    parts = re.split(r"""((?:\b[bfru]{1,2})?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"))""", line)
    if sys.version_info >= (3, 12) and any(p[:1] == "f" for p in parts[1::2]):
        return line  # quotes may nest in it
    for i in range(0, len(parts), 2):  # a blank stays between two words; a string's prefix is a word
        behind = "x" if i + 1 < len(parts) and parts[i + 1][0].isalpha() else "'"
        parts[i] = re.sub(r"(?<!\w) | (?!\w)", "", f"'{parts[i]}{behind}")[1:-1]
    return "".join(parts)
