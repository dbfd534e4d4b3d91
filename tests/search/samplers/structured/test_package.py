"""The sampler as OptunaHub's package, in place and as a folder of its own; the examples of its pages run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from package.standalone import copy_to

ROOT = Path(__file__).resolve().parents[4]
FOLDER = ROOT / "package/samplers/structured"
HEAD = "import optuna\noptuna.logging.set_verbosity(optuna.logging.ERROR)\n"
LOADERS = {
    "optunahub": "import optunahub\nload = optunahub.load_local_module\n",
    # what that does, where it is not installed
    "by hand": """
import importlib.util, os, sys
def load(package, *, registry_root):
    name = "optunahub_registry.package." + package.replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, os.path.join(registry_root, package, "__init__.py"))
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
""",
}
USE = """
module = load("samplers/structured", registry_root={root!r})
def objective(trial):
    n = trial.suggest_int("n", 1, 3)
    return n + sum(trial.suggest_float(f"x{{k}}", 0, 1) for k in range(n))
study = optuna.create_study(sampler=module.StructuredSampler(seed=0, prior=module.Prior()))
study.optimize(objective, n_trials=24, n_jobs=2)
bad = [name for name in ("torch", "techniques", "sqlalchemy.dialects", "search.study") if name in sys.modules]
assert study.best_value < 1.5 and not bad, (study.best_value, bad)
print(sys.modules["search"].__path__[0])
"""


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own that knows nothing of this project, but where its packages are."""
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and Path(p) != ROOT]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(inherited), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=200)


def needs(loader: str) -> str:
    if loader == "optunahub":
        pytest.importorskip("optunahub")
    return "import sys\n" + HEAD + LOADERS[loader]


@pytest.mark.parametrize("loader", LOADERS)
def test_the_package_loads_in_place_from_anywhere(loader: str, tmp_path: Path) -> None:
    done = python(needs(loader) + USE.format(root=str(ROOT / "package")), tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == ROOT / "search"


@pytest.mark.parametrize("loader", LOADERS)
def test_a_copy_for_a_registry_needs_nothing_else(loader: str, tmp_path: Path) -> None:
    target = tmp_path / "registry/samplers/structured"
    written = copy_to(target)
    assert {"__init__.py", "README.md", "LICENSE", "example.py"} <= {p.name for p in target.iterdir()}
    assert target / "search/samplers/tpe.py" in written and len(written) < 30
    done = python(needs(loader) + USE.format(root=str(tmp_path / "registry")), tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == target / "search"
    with pytest.raises(FileExistsError, match="new or empty"):
        copy_to(target)


def test_somebody_elses_module_of_the_name_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "search.py").write_text("here = True\n")
    done = python(needs("by hand") + USE.format(root=str(ROOT / "package")), tmp_path)
    assert done.returncode == 1
    assert "needs the module name `search`" in done.stderr and "Rename that one" in done.stderr


def test_the_folder_is_what_the_registry_wants() -> None:
    head = (FOLDER / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    keys = ["author", "title", "description", "tags", "optuna_versions", "license"]
    assert [line.partition(":")[0] for line in head.splitlines()] == keys
    assert re.search(r"^tags: \[sampler, ", head, re.MULTILINE) and "license: MIT License\n" in head
    assert (FOLDER / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


PAGES = {
    path.relative_to(ROOT).as_posix(): re.findall(
        r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL
    )
    for path in (ROOT / "docs/sampler.md", FOLDER / "README.md")
} | {"package/samplers/structured/example.py": [(FOLDER / "example.py").read_text(encoding="utf-8")]}


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_run(page: str) -> None:
    assert PAGES[page], "the test looks at nothing"
    for code in PAGES[page]:
        if "optunahub" in code:
            pytest.importorskip("optunahub")
        done = python(code, ROOT)
        assert done.returncode == 0, done.stderr
