"""edit(work, trainer): what a run's settings change in its own files: keys of a configuration, constants of a
script. The trainer's folder is never written to: what lies behind a link becomes a copy first."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from readers.constants import literal, replaced


def edit(work: Path, trainer: Mapping[str, Any]) -> None:
    """Keys are written over those that a file has; a file that is not there is made. ValueError."""
    for file, keys in trainer.get("keys", {}).items():
        path = own(work, file)
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        try:
            path.write_text(with_keys(before, keys, path.suffix), encoding="utf-8")
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    for file, constants in trainer.get("constants", {}).items():
        path = own(work, file)
        path.write_bytes(replaced(path.read_bytes(), constants))


def own(work: Path, file: str) -> Path:
    """The path in the working folder, with no link on the way: folders of links, and a copy of the file."""
    path = work
    for part in Path(file).parts[:-1]:
        path /= part
        if path.is_symlink():
            source = path.resolve()
            path.unlink()
            path.mkdir()
            for entry in source.iterdir():
                (path / entry.name).symlink_to(entry)
        path.mkdir(exist_ok=True)
    path /= Path(file).name
    if path.is_symlink():
        source = path.resolve()
        path.unlink()
        shutil.copy2(source, path)
    return path


def with_keys(text: str, keys: Mapping[str, Any], suffix: str) -> str:
    """A configuration file's text with these dotted keys set. ValueError where it cannot be read."""
    if suffix == ".py":
        return _python(text, keys)
    try:
        if suffix == ".json":
            tree = json.loads(text or "{}")
        else:
            tree = tomllib.loads(text) if suffix == ".toml" else yaml.safe_load(text) or {}
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"not a {suffix[1:]} file: {error}") from None
    for key, value in keys.items():
        _put(tree, key, value)
    if suffix == ".json":
        return json.dumps(tree, indent=2) + "\n"
    if suffix == ".toml":
        return "".join(f"{_toml_key(key)} = {_toml(value)}\n" for key, value in tree.items())
    return yaml.safe_dump(tree, sort_keys=False)


def _put(tree: Any, key: str, value: Any) -> None:
    *way, last = key.split(".")
    for part in way:
        if isinstance(tree, list):
            tree = cast("list[Any]", tree)[int(part)]
        elif isinstance(tree, dict):
            tree = cast("dict[str, Any]", tree).setdefault(part, {})
    if isinstance(tree, list):
        tree[int(last)] = value
    elif isinstance(tree, dict):
        tree[last] = value
    else:
        raise ValueError(f"the key {key!r} goes through {tree!r}, which holds no keys")


def _python(text: str, keys: Mapping[str, Any]) -> str:
    for key, value in keys.items():
        try:
            text = replaced(text.encode(), {key: value}).decode()
        except ValueError:
            if "." in key:
                raise
            text += ("" if text.endswith("\n") or not text else "\n") + f"{key} = {literal(value)}\n"
    return text


def _toml_key(key: str) -> str:
    return key if key.replace("-", "_").isidentifier() else json.dumps(key)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return "{ " + ", ".join(f"{_toml_key(k)} = {_toml(v)}" for k, v in pairs) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, cast("list[Any]", value))) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)  # numbers, times
