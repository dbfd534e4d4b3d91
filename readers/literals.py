"""What a syntax tree says without being run: constants, types, printed lines, packed code."""

import ast
import base64
import bz2
import lzma
import operator
import re
import zlib
from collections.abc import Iterator
from typing import Any, cast

TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")
EXACT: dict[type, Any] = {ast.Mult: operator.mul, ast.Add: operator.add, ast.Sub: operator.sub}
MAX_TEXT = 8_000_000  # bytes of packed code that are read
MAX_REPAIRS = 200  # lines of packed code that are rewritten for this Python
HOLE = "\0"  # stands for a value in a printed line


def constants(body: list[ast.stmt]) -> Iterator[tuple[str, Any]]:
    """(name, value) of the assignments of texts and numbers."""
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = evaluate(node.value)
            if isinstance(value, str | int | float):
                yield node.targets[0].id, value


def evaluate(node: ast.expr) -> Any:
    """Constants, signs, + - * / // **, tuples, str(), int(), float() of them; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return tuple(evaluate(item) for item in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = evaluate(node.operand)
        return -inner if isinstance(inner, int | float) else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1:
        inner = evaluate(node.args[0])
        return cast_to(inner, node.func.id)[0] if node.func.id in ("int", "float", "str", "bool") else None
    if isinstance(node, ast.BinOp):
        return _arithmetic(evaluate(node.left), node.op, evaluate(node.right))
    return None


def _arithmetic(a: Any, op: ast.operator, b: Any) -> Any:
    if not all(isinstance(n, int | float) and abs(n) < 1e12 for n in (a, b)):
        return None
    if isinstance(op, ast.Pow):
        return _power(a, b) if abs(b) <= 64 and a > 0 else None
    if isinstance(op, ast.Div | ast.FloorDiv):
        return None if b == 0 else a / b if isinstance(op, ast.Div) else a // b
    exact = EXACT.get(type(op))
    return exact(a, b) if exact else None


def _power(a: float, b: float) -> float | None:
    try:
        return a**b
    except OverflowError:
        return None


def kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    return type(value).__name__ if isinstance(value, int | float) else "str"


def cast_to(value: Any, kind: str) -> tuple[Any, str]:
    """(value as its kind, "" or what is odd)."""
    if value is None:
        return None, ""
    try:
        if kind == "bool":
            return str(value).strip().lower() in TRUE, ""
        if kind in ("int", "float"):
            number = float(value)
            return (int(number) if kind == "int" else number), ""
        return str(value), ""
    except (TypeError, ValueError, OverflowError):
        return None, f"default {value!r} is no {kind}"


def all_of(value: Any) -> list[str]:
    many = cast("list[Any]", list(value) if isinstance(value, tuple | list) else [value])  # pyright: ignore[reportUnknownArgumentType]
    return [str(one) for one in many]


def printed_lines(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(line, its number in the script) of every f-string and format string; a value in it is HOLE."""
    inside = {v for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
    inside |= {n.value for n in ast.walk(tree) if isinstance(n, ast.Expr)}  # a docstring prints nothing
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(v.value) if isinstance(v, ast.Constant) else HOLE for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            text = re.sub(r"%[-+.\d]*[a-z]|\{[^{}]*\}", HOLE, node.value)
        else:
            continue
        for line in text.split("\n"):
            yield line.strip(), node.lineno


def unpacked(node: ast.expr) -> bytes | None:
    """The text that a chain of base64, lzma, zlib and bz2 calls around a constant stands for, at most
    MAX_TEXT bytes; None for anything else. Nothing of it is run."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        return node.value.encode() if isinstance(node.value, str) else node.value
    if not isinstance(node, ast.Call):
        return None
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    inner = (
        node.func.value if called in ("decode", "encode") and isinstance(node.func, ast.Attribute) else None
    )
    data = unpacked(inner or node.args[0]) if inner or node.args else None
    if data is None or inner or called == "compile":
        return data
    try:
        if called in ("b85decode", "b64decode", "a85decode", "b32decode"):
            return getattr(base64, called)(data)
        if called == "decompress":
            raw = any(k.arg == "format" and "RAW" in ast.unparse(k.value) for k in node.keywords)
            return _inflated(data, raw)
    except (ValueError, lzma.LZMAError, zlib.error, OSError, EOFError):
        pass
    return None


def _inflated(data: bytes, raw: bool) -> bytes:
    """By the magic number of its head; raw lzma has none."""
    if raw:
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, None, [{"id": lzma.FILTER_LZMA2}]).decompress(
            data, MAX_TEXT
        )
    if data[:3] == b"BZh":
        return bz2.BZ2Decompressor().decompress(data, MAX_TEXT)
    if data[:1] == b"\x78" or data[:2] == b"\x1f\x8b":
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data, MAX_TEXT)
    return lzma.LZMADecompressor().decompress(data, MAX_TEXT)


def parsed(text: str) -> ast.Module:
    """The tree of `text`, also where f-strings use their own quotes inside, as newer Pythons allow."""
    lines = text.split("\n")
    for _ in range(MAX_REPAIRS):
        try:
            return ast.parse("\n".join(lines))
        except SyntaxError as error:
            at = (error.lineno or 1) - 1
            if at >= len(lines) or (repaired := _other_quotes(lines[at])) == lines[at]:
                raise
            lines[at] = repaired
    raise SyntaxError("too many f-strings of a newer Python")


def _other_quotes(line: str) -> str:
    """A line whose f-strings have the other quote within their braces."""
    out = list[str]()
    quote = ""
    depth = 0
    for i, c in enumerate(line):
        if not quote:
            quote = c if c in "'\"" and re.search(r"(?<!\w)[fF]$", line[:i]) else ""
        elif c == quote and depth:
            c = "'" if quote == '"' else '"'
        elif c == quote:
            quote = ""
        else:
            depth = max(0, depth + (c == "{") - (c == "}"))
        out.append(c)
    return "".join(out)
