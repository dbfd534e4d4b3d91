"""One configuration as one self-contained train_gpt.py: the trainer with only the techniques that are on.

The file needs torch, numpy, sentencepiece and its codec, nothing of this project. Its settings are a literal;
`--name value`, a configuration file and the standard variables still change whatever exists in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle.inline import inline
from techniques import catalog
from techniques.config import OF_A_PLACE, TRAINER_FIELDS, Resolved, known_field, read_preset, resolve

ROOT = Path(__file__).resolve().parent.parent
FILE = "train_gpt.py"

# What a single file answers otherwise than the project: which techniques there are, where settings come from,
# which files are the code, what is submitted.
CATALOG = '''
def metadata() -> dict[str, type[Technique]]:
    """name -> Technique class: those that this file was made with."""
    {imports}
    return {{{table}}}

def runtime() -> dict[str, type[Technique]]:
    return metadata()
'''
SETTINGS = '''
def settings_from(
    argv: Sequence[str], environ: Mapping[str, str], known: Mapping[str, type[Technique]], *, has_gpu: bool
) -> Resolved:
    """Command line > environment > file > the configuration that this file was made with > default."""
    made_with = {literal}
    elsewhere = {elsewhere}
    file, preset, command_line = parse_command_line(argv, known)
    file_layer = read_layer(Path(file)) if file else {{}}
    if preset or environ.get("PRESET") or "preset" in file_layer:
        raise ValueError("This file holds one configuration and no presets. Change single settings instead.")
    for name in elsewhere.split():
        if environ.get(name, "0").strip().lower() not in ("", "0", "false"):
            raise ValueError(
                f"{{name}} sets a technique that this file was made without. Export again with that one on."
            )
    layers = {{
        "preset": made_with, "file": file_layer, "environment": from_environment(environ, known, list(known)),
        "command line": command_line,
    }}
    return resolve(layers, known)
'''
SOURCES = '''
def source_files(resolved: Resolved) -> list[Path]:
    """This file: all the code that there is."""
    return [Path(__file__).resolve()]
'''
SCRIPT = '''
def submitted_script(resolved: Resolved) -> bytes:
    """This file."""
    return Path(__file__).read_bytes()
'''


def literal_of(resolved: Resolved) -> dict[str, Any]:
    """The settings as one flat layer: every trainer setting, gates that are on, what they set."""
    out = {n: resolved.values[n] for n in TRAINER_FIELDS if n not in OF_A_PLACE}
    for name, technique in resolved.techniques.items():
        out[name] = True
        for f in dataclasses.fields(technique.config):
            value = getattr(technique.config, f.name)
            if value != f.default:
                out[f"{name}.{f.name}"] = value
    return out


def dictionary(values: Mapping[str, Any]) -> str:
    """The source of a literal."""
    return "{" + ", ".join(f"{k!r}: {v!r}" for k, v in values.items()) + "}"


def bundle(resolved: Resolved) -> str:
    """The source text of the one file."""
    known, files = catalog.metadata(), catalog.technique_files()
    classes = {name: known[name].__name__ for name in resolved.techniques}
    imports = [f"from techniques.{files[n].parent.name}.{n} import {c}" for n, c in classes.items()]
    table = ", ".join(f"{n!r}: {c}" for n, c in sorted(classes.items()))
    own = {v for n in classes for v in known[n].env}
    elsewhere = {v for t in known.values() for v in t.env} - own
    replaced = {
        "techniques.catalog": CATALOG.format(imports="; ".join(imports) or "pass", table=table),
        "techniques.settings": SETTINGS.format(
            literal=dictionary(literal_of(resolved)), elsewhere=repr(" ".join(sorted(elsewhere)))
        ),
        "techniques.config": SOURCES,
        "train_gpt": SCRIPT,
    }
    return inline(ROOT, "train_gpt", replaced=replaced)


def resolve_layer(layer: Mapping[str, Any]) -> Resolved:
    """The configuration of a flat layer that may name a preset. ValueError for an unknown setting."""
    known = catalog.metadata()
    own = {n: v for n, v in layer.items() if n.partition(".")[0] not in ("about", "preset", *OF_A_PLACE)}
    for name in own:
        known_field(name, known)
    preset = str(layer.get("preset") or "")
    return resolve({"preset": read_preset(preset) if preset else {}, "file": own}, known)


def export(resolved: Resolved, folder: Path) -> Path:
    """Writes folder/train_gpt.py. ValueError when there is one already."""
    check_free(folder)
    return write(folder, bundle(resolved).encode())


def check_free(folder: Path) -> None:
    """ValueError when the folder has a script already."""
    if (folder / FILE).exists():
        raise ValueError(f"{folder / FILE} exists. Give an empty folder with --to, or move that file away.")


def write(folder: Path, script: bytes) -> Path:
    """folder/train_gpt.py, made."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    path.write_bytes(script)
    return path
