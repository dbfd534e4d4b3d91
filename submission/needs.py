"""requirements(source), caseops_module(): what a submission's script needs beside itself."""

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version

from bundle.reach import reachable
from search.common.paths import ROOT

ASKED = """
if __name__ == "__main__":
    import sys

    sys.stdout.write((decode if "--decode" in sys.argv else encode)(sys.stdin.read()))
"""


def modules(source: str) -> list[str]:
    """Top-level modules that a source imports, the standard library's apart."""
    found = {name.partition(".")[0] for node in ast.walk(ast.parse(source)) for name in _imported(node)}
    return sorted(found - sys.stdlib_module_names)


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module or ""


def requirements(source: str) -> str:
    """requirements.txt: each module's distribution at the version that ran here; what is not installed is
    named in a comment. ValueError for a module of this project."""
    owners = packages_distributions()
    lines = set[str]()
    for module in modules(source):
        if (ROOT / module).is_dir() or (ROOT / f"{module}.py").exists():
            raise ValueError(f"A script stands alone, but it imports {module} of this project.")
        name = owners.get(module, [""])[0]
        there = f"{name}=={version(name).partition('+')[0]}" if name else ""
        lines.add(there or f"# {module}: used where it is installed, which it was not")
    return "".join(f"{line}\n" for line in sorted(lines))


def caseops_module() -> str:
    """The transform of CaseOps data alone, to be read and run: `caseops.py [--decode] < text`."""
    tree = ast.parse((ROOT / "corpus" / "caseops.py").read_text(encoding="utf-8"))
    body = [n for n in tree.body if not (isinstance(n, ast.ImportFrom) and (n.module or "")[:7] == "corpus.")]
    constant = ast.parse(f"SPACE = {chr(0x2581)!r}").body
    whole = ast.Module([*body[:1], *constant, *body[1:], *ast.parse(ASKED).body], [])
    return ast.unparse(ast.fix_missing_locations(reachable(whole))) + "\n"
