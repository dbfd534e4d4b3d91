"""One module spells the names of what is stored with a study and its trials."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from search.common import attributes

SEARCH = Path(attributes.__file__).parents[1]
STORES = ("user_attrs", "system_attrs")
WRITERS = ("set_user_attr", "set_system_attr", "set_trial_user_attr", "set_trial_system_attr")


def stored_names() -> set[str]:
    return {value for name, value in vars(attributes).items() if name.isupper() and isinstance(value, str)}


def is_store(node: ast.expr, aliases: set[str]) -> bool:
    """Whether it is what a study or a trial stores: an attribute, or a name that was given one."""
    if isinstance(node, ast.Attribute):
        return node.attr in STORES
    return isinstance(node, ast.Name) and node.id in aliases


def keys_of(node: ast.AST, aliases: set[str]) -> list[ast.expr]:
    """What a node reads or writes in such a store."""
    if isinstance(node, ast.Subscript) and is_store(node.value, aliases):
        return [node.slice]
    if isinstance(node, ast.Compare) and any(is_store(c, aliases) for c in node.comparators):
        return [node.left]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        reads = isinstance(node.func, ast.Attribute) and is_store(node.func.value, aliases)
        return list(node.args) if name in WRITERS or reads else []
    return []


def spelt_names(text: str) -> Iterator[str]:
    """`line: name` for each stored name that a file spells itself."""
    tree, names = ast.parse(text), stored_names()
    aliases = {"attrs", "attributes"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and is_store(node.value, set()):
            aliases |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        for key in keys_of(node, aliases):
            for part in key.values if isinstance(key, ast.JoinedStr) else [key]:
                if isinstance(part, ast.Constant) and part.value in names:
                    yield f"{part.lineno}: {part.value}"


def test_no_other_file_spells_a_stored_name() -> None:
    files = [path for path in SEARCH.rglob("*.py") if path != Path(attributes.__file__)]
    assert len(files) > 50
    bad = [f"{path.relative_to(SEARCH)}:{name}" for path in files for name in spelt_names(path.read_text())]
    assert not bad, f"write the names of search/common/attributes.py: {bad}"


def test_each_way_of_spelling_one_is_seen() -> None:
    for line in (
        'trial.set_user_attr("config", 1)',
        'set_user_attr(study, trial, "rejections", {})',
        'trial.user_attrs["worker"]',
        'trial.user_attrs.get("passport", {})',
        '"overhead" in trial.user_attrs',
        'found = t.system_attrs\nfound.get("retry_history", [])',
        'trial.set_user_attr(f"violation_{key}", 0.0)',
    ):
        assert list(spelt_names(line)), line
    assert not list(spelt_names('record["config"]; trial.user_attrs[CONFIG]'))


def test_no_two_names_are_one() -> None:
    names = [value for name, value in vars(attributes).items() if name.isupper() and isinstance(value, str)]
    assert len(names) == len(set(names))
