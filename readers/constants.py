"""replaced(source, values) -> bytes: a script with other values in its own assignments, `NAME = …` at its
head or `Class.name`; everything else stays byte by byte. The script is parsed, never run."""

import ast
import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any


def assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr, str]]:
    """(name, value, annotation) of the plain assignments of a module and of its classes, dotted there."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for name, value, kind in _of(node.body):
                yield f"{node.name}.{name}", value, kind
    yield from _of(tree.body)


def _of(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr, str]]:
    for node in body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value, ""
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            yield node.target.id, node.value, ast.unparse(node.annotation)


def replaced(source: bytes, values: Mapping[str, Any]) -> bytes:
    """The script with `values`. ValueError for a name that it does not assign exactly once, or no Python."""
    try:
        found = list(assigned(ast.parse(source)))
    except SyntaxError as error:
        raise ValueError(f"Constants are replaced in Python, but it is none: {error}.") from None
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    spans = list[tuple[int, int, bytes]]()
    for name, value in values.items():
        nodes = [node for known, node, _ in found if known == name]
        if len(nodes) != 1:
            times = f"{len(nodes)} times" if nodes else "never"
            near = difflib.get_close_matches(name, [known for known, _, _ in found], 1)
            hint = f" Did you mean {near[0]}?" if near and not nodes else ""
            raise ValueError(
                "A constant is assigned once, at the head of the script or of a class, but "
                f"{name} is assigned {times}.{hint}"
            )
        node = nodes[0]
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = starts[node.lineno - 1] + node.col_offset
        spans.append((start, starts[node.end_lineno - 1] + node.end_col_offset, literal(value).encode()))
    for start, end, text in sorted(spans, reverse=True):
        source = source[:start] + text + source[end:]
    return source


def literal(value: Any) -> str:
    """A value as Python's text."""
    return repr(value) if not isinstance(value, float) or math.isfinite(value) else f'float("{value}")'
