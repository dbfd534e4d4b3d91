"""One configuration as one self-contained train_gpt.py: the trainer with only the techniques that are on.

The file needs torch, numpy, sentencepiece and its codec, nothing of this project. Its settings are a literal;
`--name value`, a configuration file and the standard variables still change whatever exists in it.
Compressed, it is two lines that unpack and run the same code without docstrings. Code bytes are the size of
the file that runs.
"""

from __future__ import annotations

import ast
import base64
import dataclasses
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundle.inline import inline
from techniques import catalog
from techniques.config import TRAINER_FIELDS, Resolved, known_field, read_layer, read_preset, resolve

ROOT = Path(__file__).resolve().parent.parent
FILE = "train_gpt.py"
OF_A_PLACE = ("out_dir", "run_id")  # settings of one run on one machine, no part of a configuration

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
UNPACK = (
    "import base64,linecache,lzma\n"
    'n="<train_gpt>";s=lzma.decompress(base64.b85decode("{data}")).decode();'
    "linecache.cache[n]=len(s),None,s.splitlines(True),n;"  # inspect, which Triton uses, finds it there
    'exec(compile(s,n,"exec"))\n'
)


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
        "trainer.machine": SOURCES,
        "train_gpt": SCRIPT,
    }
    return inline(ROOT, "train_gpt", replaced=replaced)


def without_docstrings(source: str) -> str:
    """The text less the docstrings that --help does not print: the module's and the techniques' stay."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            if not (isinstance(node, ast.ClassDef) and "Technique" in map(ast.unparse, node.bases)):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def compressed(source: str) -> str:
    """Two lines that unpack `source`, less its docstrings, and run it."""
    source = without_docstrings(source)
    best = {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}
    packed = lzma.compress(source.encode(), format=lzma.FORMAT_ALONE, filters=[best])
    return UNPACK.format(data=base64.b85encode(packed).decode())


def resolve_source(*, preset: str, file: Path | None) -> Resolved:
    """The configuration of a preset, or of a file that may name one."""
    layer = read_layer(file) if file else {}
    preset = preset or str(layer.pop("preset", ""))
    layer = {k: v for k, v in layer.items() if k.partition(".")[0] != "about"}
    known = catalog.metadata()
    for name in layer:
        known_field(name, known)
    return resolve({"preset": read_preset(preset) if preset else {}, "file": layer}, known)


def export(resolved: Resolved, folder: Path, *, compress: bool) -> Path:
    """Writes folder/train_gpt.py. ValueError when there is one already."""
    check_free(folder)
    text = bundle(resolved)
    return write(folder, (compressed(text) if compress else text).encode())


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
