"""Finds every technique file. `metadata()` reads them without torch; `runtime()` imports them for the
trainer.

A technique file mixes torch modules and plain declarations. `metadata()` executes only the half that needs no
torch: it drops imports of torch and triton and every top-level class derived from `nn.Module` or `torch.*`
before running the file under a name of its own, so that `search.py status` and the workers' pre-flight answer
without the seconds and the memory of torch. Functions stay (their bodies never run here). Both views can live
in one process.
"""

from __future__ import annotations

import ast
import functools
import importlib
import sys
import types
import zlib
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

from techniques.base import SLOTS, Technique, claims, nearest

TECHNIQUES_FOLDER = Path(__file__).resolve().parent
HEAVY = ("torch", "triton")
LIGHT = ("techniques._adapt",)  # shared, and free of torch


def shared_files(root: Path = TECHNIQUES_FOLDER.parent) -> list[Path]:
    """What a run may execute beside its techniques' own files: trainer, its kernel, contract and corpus."""
    rooms = ("trainer", "techniques", "corpus")
    return [root / "train_gpt.py", *(p for room in rooms for p in sorted(root.glob(f"{room}/*.py")))]


def technique_files() -> dict[str, Path]:
    """name -> file, sorted by name. Files and folders whose name starts with `_` are shared maths, not
    techniques."""
    files = {p.stem: p for p in sorted(TECHNIQUES_FOLDER.glob("*/*.py")) if not p.stem.startswith("_")}
    return dict(sorted(files.items()))


def _needs_torch(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import):
        return any(a.name.split(".")[0] in HEAVY for a in node.names)
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        return module.split(".")[0] in HEAVY or (
            module.startswith(("techniques._", "trainer.")) and module not in LIGHT
        )
    if isinstance(node, ast.ClassDef):
        return any(ast.unparse(b).split(".")[0] in ("nn", *HEAVY) for b in node.bases)
    return False


class _Light(SourceFileLoader):
    """Loads a technique's file without what needs torch. Its bytecode is kept beside that of the whole file,
    under a name that changes with the rule of what is dropped."""

    def source_to_code(self, data: Any, path: Any, *, _optimization: int = -1) -> types.CodeType:
        tree = ast.parse(data, path)
        tree.body = [node for node in tree.body if not _needs_torch(node)]
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimization)

    def get_data(self, path: str) -> bytes:
        return super().get_data(_light(path))

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        super().set_data(_light(path), data, _mode=_mode)


def _light(path: str) -> str:
    return f"{path.removesuffix('.pyc')}.{_rule()}.pyc" if path.endswith(".pyc") else path


@functools.cache
def _rule() -> str:
    return f"light-{zlib.crc32(Path(__file__).read_bytes()):08x}"


def _load_metadata(name: str, path: Path) -> type[Technique]:
    loader = _Light(f"techniques_metadata.{name}", str(path))
    spec = spec_from_loader(loader.name, loader)
    assert spec
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look their module up by name
    loader.exec_module(module)
    return _technique_in(module, name, path)


def _technique_in(module: types.ModuleType, name: str, path: Path) -> type[Technique]:
    found = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Technique) and v.__module__ == module.__name__
    ]
    if len(found) != 1 or found[0].name != name:
        got = ", ".join(f"{c.__name__}(name={c.name!r})" for c in found) or "none"
        raise ValueError(
            f"{path} must hold exactly one Technique, named {name!r} like its file, but got: {got}."
        )
    return found[0]


@functools.cache
def metadata() -> dict[str, type[Technique]]:
    """name -> Technique class, without torch: only declarations, `check`, `verdict`, `cost`, `planned_bits`,
    and the seams of numbers alone (`hyper`, `hyper_at`, `lr_scale`) may be used."""
    return {name: _load_metadata(name, path) for name, path in technique_files().items()}


@functools.cache
def runtime() -> dict[str, type[Technique]]:
    """name -> Technique class whose seams work (imports torch)."""
    out: dict[str, type[Technique]] = {}
    for name, path in technique_files().items():
        module = importlib.import_module(f"techniques.{path.parent.name}.{name}")
        out[name] = _technique_in(module, name, path)
    return out


def lookup(catalog: dict[str, type[Technique]], name: str) -> type[Technique]:
    if name not in catalog:
        raise ValueError(f"Unknown technique {name!r}. {nearest(name, catalog)}")
    return catalog[name]


def slot_groups(catalog: dict[str, type[Technique]]) -> dict[str, list[str]]:
    """slot -> the techniques that claim it (at most one of them may be on), for slots with any claimant."""
    groups = {slot: [n for n, t in catalog.items() if slot in claims(t)] for slot in SLOTS}
    return {slot: names for slot, names in groups.items() if names}


def order(techniques: dict[str, Technique]) -> list[Technique]:
    """Chain order: every technique behind those named in its `after`, ties by name. ValueError on a cycle."""
    waiting, out = dict(sorted(techniques.items())), []
    while waiting:
        ready = [n for n, t in waiting.items() if not any(a in waiting for a in t.after)]
        if not ready:
            raise ValueError(
                f"The `after` declarations of {', '.join(waiting)} form a cycle. Break one of them."
            )
        out.append(waiting.pop(ready[0]))
    return out


def check_together(techniques: dict[str, Technique]) -> None:
    """ValueError when two techniques cannot both be on, or a required one is off; both parties are named."""
    for slot in SLOTS:
        claimants = [n for n, t in techniques.items() if slot in claims(t)]
        if len(claimants) > 1:
            raise ValueError(
                f"Only one technique may fill the slot `{slot}`, but {' and '.join(sorted(claimants))} "
                f"are both on. Turn one off."
            )
    aiming = sorted(n for n, t in techniques.items() if t.aims_at_bytes)
    if len(aiming) > 1:
        raise ValueError(
            f"Only one technique may aim at bytes, but target_bytes of {' and '.join(aiming)} are set. "
            f"Set one of them to 0."
        )
    for name, technique in techniques.items():
        for other, why in technique.conflicts.items():
            if other in techniques:
                raise ValueError(f"{name} and {other} cannot both be on: {why}. Turn one off.")
        for other in technique.requires:
            if other not in techniques:
                raise ValueError(f"{name} needs {other}, which is off. Turn {other} on, or {name} off.")
        for field, other in technique.setting_requires.items():
            default = technique.Config.__dataclass_fields__[field].default
            if other not in techniques and getattr(technique.config, field) != default:
                raise ValueError(
                    f"`{name}.{field}` needs {other}, which is off. Turn {other} on, or leave the default."
                )


def load(name: str) -> type[Technique]:
    """One technique's class, without importing the others: a broken file fails alone."""
    path = technique_files()[name]
    module = importlib.import_module(f"techniques.{path.parent.name}.{name}")
    found = (v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Technique))
    return next(cls for cls in found if cls.name == name)
