"""A process' settings: command line > environment > file > preset > default. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from techniques.base import Technique
from techniques.config import (
    Config,
    Resolved,
    flatten,
    inert_variables,
    known_field,
    read_layer,
    read_preset,
    resolve,
)
from techniques.published import from_environment, is_off
from techniques.unanswered import refuse_unanswered


def parse_command_line(
    argv: Sequence[str], known: Mapping[str, type[Technique]]
) -> tuple[str, str, dict[str, Any]]:
    """(file, preset, layer) from `[FILE] [--preset NAME] [--name VALUE | --name=VALUE | --gate]…`."""
    file, preset, rest = "", "", list(argv)
    layer: dict[str, Any] = {}
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if file:
                raise ValueError(f"One configuration file at most, but got {file!r} and {word!r}.")
            file = word
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        like = None if name == "preset" else known_field(name, known)
        is_switch = name != "preset" and (
            like is None or (like.default in (True, False) and type(like.default) is bool)
        )
        if not equals:
            if rest and not (is_switch and rest[0].lower() not in ("0", "1", "true", "false")):
                value = rest.pop(0)
            elif is_switch:
                value = "1"
            else:
                raise ValueError(f"--{name} takes a value, but the command line ends there.")
        if name == "preset":
            preset = value
        else:
            layer[name] = value
    return file, preset, layer


def settings_from(
    argv: Sequence[str], environ: Mapping[str, str], known: Mapping[str, type[Technique]], *, has_gpu: bool
) -> Resolved:
    """A process' settings: command line > environment > file > preset > default. With nothing given on a
    machine without a GPU, the preset is `laptop`: the challenge's baseline would need hours there."""
    file, preset, command_line = parse_command_line(argv, known)
    file_layer = read_layer(Path(file)) if file else {}
    preset = preset or environ.get("PRESET", "") or str(file_layer.get("preset", ""))
    file_layer.pop("preset", None)
    preset_layer = read_preset(preset) if preset else {}
    inert = inert_variables(preset) if preset else set[str]()
    heard = {n: value for n, value in environ.items() if n not in inert}
    refuse_unanswered(heard, known)
    width = (file_layer.get("model_dim") or preset_layer.get("model_dim") or Config.model_dim,)
    environment = from_environment(heard, known, _turned_on(preset_layer, file_layer, known), *width)
    if not (preset or file or command_line or environment or has_gpu):
        preset_layer = read_preset("laptop")
    layers = {
        "preset": preset_layer,
        "file": file_layer,
        "environment": environment,
        "command line": command_line,
    }
    return resolve(layers, known)


def _turned_on(
    low: Mapping[str, Any], high: Mapping[str, Any], known: Mapping[str, type[Technique]]
) -> set[str]:
    """The techniques that two layers, the second above the first, leave on."""
    given = {**flatten(low), **flatten(high)}
    return {n for n, v in given.items() if n in known and not is_off(str(v))}


def help_text(intro: str, known: Mapping[str, type[Technique]]) -> str:
    """Every setting and technique with its default and its sentence."""
    lines = [intro, "Settings (default):"]
    for f in fields(Config):
        lines.append(f"  --{f.name} ({f.default!r}): {f.metadata['doc']}")
    for name, technique in known.items():
        lines.append(f"\n  --{name}: {(technique.__doc__ or '').strip().splitlines()[0]}")
        for f in fields(technique.Config):
            lines.append(f"    --{name}.{f.name} ({f.default!r}): {f.metadata['doc']}")
    return "\n".join(lines)
