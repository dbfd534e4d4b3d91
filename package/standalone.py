"""A folder for OptunaHub's registry that needs nothing else: `python -m package.standalone --to FOLDER`.

The files of package/samplers/structured/ and, beside them, the modules of ours that the sampler imports.
"""

import argparse
import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "package/samplers/structured"
SAMPLER = "search.samplers.structured.sampler"


def modules_of(name: str, seen: set[str]) -> Iterator[str]:
    """This module of ours, its packages, and what they import."""
    parts = name.split(".")
    for module in (".".join(parts[:n]) for n in range(1, len(parts) + 1)):
        if module in seen:
            continue
        seen.add(module)
        yield module
        for node in ast.walk(ast.parse(file_of(module).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == parts[0]:
                yield from modules_of(str(node.module), seen)


def file_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def copy_to(folder: Path) -> list[Path]:
    """The files that were written. FileExistsError for a folder with something in it."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"The folder must be new or empty, but {folder} is not. Name another with --to."
        )
    found = {folder / path.name: path for path in sorted(SOURCE.iterdir()) if path.is_file()}
    found |= {folder / path.relative_to(ROOT): path for path in map(file_of, modules_of(SAMPLER, set()))}
    for target, path in found.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return list(found)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--to", type=Path, required=True, help="a new folder, REGISTRY/package/samplers/NAME"
    )
    print(f"{len(copy_to(options.parse_args().to))} files")
