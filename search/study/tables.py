"""A settings table of a study file as its dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from techniques.base import check_value, nearest, parse_value

Table = TypeVar("Table")


def table_of(kind: type[Table], table: Mapping[str, Any], title: str, *, rename: Mapping[str, str]) -> Table:
    """A settings table as its dataclass; `rename` maps keys of the file to fields."""
    fields = {f.name: f for f in dataclasses.fields(cast("Any", kind))}
    names = {
        key: field for field in fields for key in [next((k for k, f in rename.items() if f == field), field)]
    }
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in names:
            raise ValueError(f"[{title}] has no key {key!r}. {nearest(key, names)}")
        field = fields[names[key]]
        parsed = parse_value(f"{title}.{key}", value, field)
        check_value(f"{title}.{key}", parsed, field)
        values[field.name] = parsed
    return kind(**values)
