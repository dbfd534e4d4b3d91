"""Measures bundle/sizes.json anew: `python -m bundle.measure` (a minute of CPU)."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from bundle.lean import lean
from bundle.sizes import TABLE, TRAINER
from techniques import catalog
from techniques.config import resolve


def with_needs(name: str, seen: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The technique behind all that it requires."""
    for other in catalog.metadata()[name].requires:
        seen = with_needs(other, seen) if other not in seen else seen
    return (*seen, name)


def script_bytes(techniques: Collection[str]) -> int:
    """Of the script with these techniques under their default settings."""
    layer: dict[str, Any] = dict.fromkeys(techniques, True)
    return len(lean(resolve({"file": layer}, catalog.metadata())))


def added_bytes(name: str) -> int:
    """What a technique adds to a script that has what it requires."""
    *others, _ = chain = with_needs(name)
    return script_bytes(chain) - script_bytes(others)


def main() -> None:
    found = {TRAINER: script_bytes(())} | {name: added_bytes(name) for name in catalog.metadata()}
    TABLE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{TABLE.name}: {len(found) - 1} techniques, trainer {found[TRAINER]:,} bytes")


if __name__ == "__main__":
    main()
