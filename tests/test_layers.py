"""Who may import whom: every import of ours goes down, none goes round, no room has more than twelve files.

Every import statement counts, at a file's head, inside a function or for the type checker alone: what a file
must know of another to be read is a dependency. Importing `a.b.c` counts as importing `a` and `a.b`, whose
`__init__.py` Python runs.
"""

from __future__ import annotations

import ast
import collections
import fnmatch
import graphlib
import itertools
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COVERED = (
    "search",
    "claims",
    "pages",
    "submission",
    "readers",
    "bundle",
    "trainer",
    "techniques",
    "conformance",
    "corpus",
    "benchmarks",
)
SCRIPTS = ("search.py", "validate.py", "train_gpt.py")
MOST_FILES = 12  # of a package, without its __init__.py

# From the top down. A room is a module, or a package with all that is in it. It imports rooms of lower lines,
# and of its own line so long as no circle closes.
ORDER = (
    ("benchmarks",),
    ("search.py", "validate"),
    ("search.cli",),
    ("search.request",),
    ("submission",),
    ("search.run", "claims", "pages"),
    ("search.engines",),
    ("search.workers", "search.report"),
    ("search.samplers",),
    ("search.space", "search.session", "search.stage_cache"),
    ("search.costs", "search.pruning", "search.trainers", "search.trackers"),
    ("search.study",),
    ("search.storage",),
    ("search.common", "readers"),
    ("conformance",),
    ("train_gpt",),
    ("bundle",),
    ("techniques.*",),  # the rooms of techniques and techniques._*
    ("trainer",),
    ("techniques.settings",),
    ("techniques.unanswered",),
    ("techniques.published",),
    ("techniques.config",),
    ("techniques.catalog",),
    ("techniques.base",),
    ("techniques.parts",),
    ("corpus",),
)
PARENTS = ("search", "techniques")  # they hold rooms; a file of their own that imports has no place above
# What the order alone would allow.
NEVER = {
    "search.workers": ("search.report",),  # a worker runs trials; it writes what reports read, below both
    "search": ("conformance", "train_gpt", "techniques.*", "trainer"),  # they load torch
}
TORCH_FREE = ("trainer", "trainer.machine")  # what the search may know of the trainer
# Imports inside functions, with what they save. Anything else stands at the head of its file.
LATE: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "benchmarks.scale": (
        "its workers stand for the search's, which load no torch",
        ("conformance.subject", "train_gpt", "trainer.muon", "trainer.seams"),
    ),
    "search.cli": (
        "`--help` answers without Optuna, and each command loads its own page",
        (
            "bundle.lean",
            "bundle.one_file",
            "claims.ablation.ablate",
            "claims.ablation.greedy",
            "claims.board",
            "claims.compare",
            "claims.confirm",
            "pages.live",
            "pages.report",
            "search.report.costs",
            "search.report.dashboard",
            "search.report.effects",
            "search.report.leaderboard",
            "search.report.status",
            "search.report.studies",
            "search.report.trial",
            "search.run",
            "search.study.load",
            "readers.scan",
            "search.trainers.foreign.draft",
            "search.workers.tries",
            "submission.question",
            "submission.submit",
            "techniques.config",
        ),
    ),
    "search.request": (
        "`--help` answers without Optuna",
        ("search.common.tables", "search.session.session", "search.session.shelf", "search.study.load"),
    ),
    "search.common.console": ("only --csv and --json need it, and Rich's tables", ("search.common.tables",)),
    "search.session.session": (
        "a study that was never begun is refused without Optuna and SQLAlchemy, 1.2 s of CPU",
        ("search.storage.patient", "search.storage.patient"),
    ),
    "search.report.rows": (
        "only who ranks by what is believed loads SciPy, 0.3 s of CPU; `status` and the live view do not",
        ("search.samplers.believed",),
    ),
    "search.samplers.choose": (
        "the structured sampler loads SciPy, 1.1 s of CPU that other studies do not pay",
        ("search.samplers.structured.sampler",),
    ),
    "search.workers.prior": (
        "a worker without earlier studies starts without SciPy, 1.1 s of CPU",
        ("search.samplers.structured.surrogate",),
    ),
    "search.trackers.__main__": (
        "a process loads the library of its own tracker alone: MLflow 0.8 s of CPU, wandb 0.5",
        ("search.trackers.to_mlflow", "search.trackers.to_wandb"),
    ),
    "search.trainers.foreign.run": (
        "every command knows its study's trainer, only a worker's start reads the script: 0.01 s of CPU",
        ("readers.constants", "readers.scan"),
    ),
    "train_gpt": (
        "a file made by the bundle holds no bundler, and it loads once the model is packed",
        ("bundle.lean",),
    ),
    "corpus.__main__": (
        "each command loads its own part, `--help` none",
        ("corpus.build", "corpus.download", "corpus.embedded"),
    ),
}


@dataclass(frozen=True)
class Import:
    """One module that a file imports."""

    place: str  # path:line
    importer: str
    imported: str
    in_function: bool

    def __str__(self) -> str:
        return f"{self.place}: {self.importer} imports {self.imported}"


def files_of(root: Path) -> Iterator[Path]:
    for folder in COVERED:
        yield from sorted((root / folder).rglob("*.py"))
    yield from (root / name for name in SCRIPTS)


def module_of(path: Path, root: Path) -> str:
    """`search.py` stands beside the package `search`: it keeps its suffix."""
    if path == root / "search.py":
        return "search.py"
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def late_or_not(tree: ast.AST, *, late: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    """Every import statement, and whether it stands in a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, late
        yield from late_or_not(node, late=late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@cache
def statements(source: str) -> tuple[tuple[int, tuple[str, ...], bool], ...]:
    """(line, names that may be modules, in a function) of every import statement."""
    found: list[tuple[int, tuple[str, ...], bool]] = []
    for node, late in late_or_not(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = tuple(alias.name for alias in node.names)
        else:
            assert isinstance(node, ast.ImportFrom) and node.level == 0, f"line {node.lineno}: no dots"
            names = (str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names))
        found.append((node.lineno, names, late))
    return tuple(found)


def all_imports(root: Path) -> list[Import]:
    """Every import of ours, packages on the way included."""
    modules = {module_of(path, root): path for path in files_of(root)}
    known = modules.keys() - {*PARENTS}
    found: dict[Import, None] = {}
    for importer, path in modules.items():
        for line, names, late in statements(path.read_text(encoding="utf-8")):
            for name in names:
                parts = name.split(".")
                for imported in (".".join(parts[:n]) for n in range(1, len(parts) + 1)):
                    if imported in known and not f"{importer}.".startswith(f"{imported}."):
                        found[Import(f"{path.relative_to(root)}:{line}", importer, imported, late)] = None
    return list(found)


@cache
def room_of(module: str) -> str:
    """The longest name in ORDER that fits."""
    rooms = [r for line in ORDER for r in line if fnmatch.fnmatch(module, r) or module.startswith(f"{r}.")]
    assert rooms, f"{module} has no place in ORDER of tests/test_layers.py: put its room there"
    return max(rooms, key=lambda room: (room == module, len(room)))


def level_of(module: str) -> int:
    """0 is the top."""
    room = room_of(module)
    return next(i for i, line in enumerate(ORDER) if room in line)


def stands_in(module: str, room: str) -> bool:
    return room_of(module) == room or f"{module}.".startswith(f"{room}.")


def upward(imports: list[Import]) -> Iterator[str]:
    for found in modules_only(imports):
        if level_of(found.imported) < level_of(found.importer):
            yield (
                f"{found}, which stands above it ({room_of(found.imported)} over {room_of(found.importer)}). "
                "Move what both need below both, or hand it over as an argument."
            )
        for room, forbidden in NEVER.items():
            for other in forbidden if found.imported not in TORCH_FREE else ():
                if stands_in(found.importer, room) and stands_in(found.imported, other):
                    yield f"{found}, but {room} never imports {other}. Move what both need below both."


def modules_only(imports: list[Import]) -> list[Import]:
    """Without the packages on the way, which are told with what is imported from them."""
    return [
        i
        for i in imports
        if not any(o.place == i.place and o.imported.startswith(f"{i.imported}.") for o in imports)
    ]


def circle_in(edges: Mapping[str, set[str]]) -> list[str]:
    """The nodes of one circle, or nothing."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def circles(imports: list[Import]) -> Iterator[str]:
    """One circle of modules and one of rooms, each with the lines that close it."""
    for kind, name in (("modules", str), ("rooms", room_of)):
        edges: dict[str, set[str]] = collections.defaultdict(set)
        lines: dict[tuple[str, str], str] = {}
        for found in imports:
            importer, imported = name(found.importer), name(found.imported)
            if importer != imported:
                edges[importer].add(imported)
                lines.setdefault((importer, imported), found.place)
        circle = circle_in(edges)
        if circle:
            way = [lines[b, a] for a, b in itertools.pairwise(circle)]
            yield (
                f"{way[0]}: a circle of {kind}, {' < '.join(circle)} ({', '.join(way)}). "
                "Move what both ends need below both."
            )


def full_rooms(root: Path) -> Iterator[str]:
    for folder in {path.parent for path in files_of(root)} - {root}:
        count = sum(1 for path in folder.glob("*.py") if path.name != "__init__.py")
        if count > MOST_FILES:
            where = folder.relative_to(root)
            yield f"{where}/ has {count} files, at most {MOST_FILES}. Give those of one idea a room in it."


def late_ones(imports: list[Import]) -> Iterator[str]:
    for found in modules_only([i for i in imports if i.in_function]):
        if found.imported not in LATE.get(found.importer, ("", ()))[1]:
            yield (
                f"{found} inside a function. Import it at the head of the file; if that would slow a start, "
                "add it to LATE in tests/test_layers.py with the reason."
            )


def faults(root: Path) -> list[str]:
    imports = all_imports(root)
    return sorted([*upward(imports), *circles(imports), *full_rooms(root), *late_ones(imports)])


def test_every_import_goes_down() -> None:
    imports = all_imports(ROOT)
    assert len(imports) > 500, "the test looks at nothing"
    assert not (bad := list(upward(imports))), "\n" + "\n".join(bad)


def test_no_circle() -> None:
    assert not (bad := list(circles(all_imports(ROOT)))), "\n" + "\n".join(bad)


def test_no_room_is_too_full() -> None:
    assert not (bad := list(full_rooms(ROOT))), "\n" + "\n".join(bad)


def test_imports_inside_functions_save_start_up_time() -> None:
    assert not (bad := list(late_ones(all_imports(ROOT)))), "\n" + "\n".join(bad)


def test_the_list_of_late_imports_is_not_stale() -> None:
    there = {(i.importer, i.imported) for i in all_imports(ROOT) if i.in_function}
    listed = {(importer, name) for importer, (_, names) in LATE.items() for name in names}
    assert not listed - there, f"take these out of LATE: {sorted(listed - there)}"


# Codecs' measured overheads, and what two techniques do to bytes; a word of other trainers' schedules
NAMING = {
    "search/costs/bills.py": {
        *("zstd", "lzma_xz", "brotli_shuffle", "ans", "per_group"),
        *("prune", "awq_lite"),
    },
    "search/study/foreign.py": {"warmdown"},
    "search/trainers/foreign/draft.py": {"warmdown"},
}


def test_what_techniques_share_names_none() -> None:
    """A technique declares what is true of it; `slot` is a kind of seam as well."""
    shared = [ROOT / "train_gpt.py", *(ROOT / "trainer").glob("*.py"), *(ROOT / "techniques").glob("*.py")]
    shared = [path for path in shared if path.stem not in ("published", "unanswered")]  # tables of names
    shared += [path for room in ("search", "bundle", "claims") for path in (ROOT / room).rglob("*.py")]
    names = {path.stem for path in (ROOT / "techniques").glob("*/[!_]*.py")} - {"slot"}
    assert len(names) > 50 and len(shared) > 100, "the test looks at nothing"
    found = {
        (str(path.relative_to(ROOT)), node.value): node.lineno
        for path in shared
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    }
    known = {(path, name) for path, named in NAMING.items() for name in named}
    bad = [f"{path}:{line}: {name}" for (path, name), line in found.items() if (path, name) not in known]
    assert not bad, "\n".join(bad)
    assert not known - found.keys(), f"take these out of NAMING: {sorted(known - found.keys())}"


def test_a_worker_reaches_no_report() -> None:
    """Nor does anything that a worker imports, by however many steps."""
    below: dict[str, set[str]] = collections.defaultdict(set)
    for found in all_imports(ROOT):
        below[found.importer].add(found.imported)
    waiting = [module for module in below if module.startswith("search.workers")]
    reached: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += below[module]
    assert "search.samplers.caddie" in reached, "the test looks at nothing"
    assert not {m for m in reached if m.startswith("search.report")}


PLANTED = {
    "upward": (
        "search/common/numeric.py",
        "import search.storage.patient\n",
        "search.common.numeric imports search.storage.patient, which stands above it",
    ),
    "upward, for the type checker": (
        "search/study/limits.py",
        "if TYPE_CHECKING:\n    from search.space.native import SearchSpace\n",
        "search.study.limits imports search.space.native, which stands above it",
    ),
    "upward, in a function": (
        "trainer/muon.py",
        "def planted() -> None:\n    from techniques.block import ln_scale\n",
        "trainer.muon imports techniques.block.ln_scale, which stands above it",
    ),
    "a worker's report": (
        "search/workers/record.py",
        "from search.report import rows\n",
        "search.workers.record imports search.report.rows, but search.workers never imports search.report",
    ),
    "the trainer in the search": (
        "search/space/space.py",
        "from trainer import muon\n",
        "search.space.space imports trainer.muon, but search never imports trainer",
    ),
    "a circle": (
        "search/study/limits.py",
        "from search.study import load\n",
        "a circle of modules, ",
    ),
    "a late import": (
        "search/costs/bills.py",
        "def planted() -> None:\n    from search.costs import factors\n",
        "search.costs.bills imports search.costs.factors inside a function",
    ),
    "a thirteenth file": (
        "corpus/text/one{}.py",
        "",
        "corpus/text/ has 14 files, at most 12",
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the test reads, to plant in."""
    folder = tmp_path_factory.mktemp("house")
    for path in files_of(ROOT):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folder


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_fault_is_found(copy: Path, kind: str) -> None:
    name, code, message = PLANTED[kind]
    before = faults(copy)
    assert not any(message in line for line in before)
    planted = {copy / name.format(i): code for i in range(12 if "{}" in name else 1)}
    kept = {path: path.read_text(encoding="utf-8") if path.exists() else None for path in planted}
    try:
        for path, text in planted.items():
            path.write_text((kept[path] or "") + "\n" + text, encoding="utf-8")
        found = [line for line in faults(copy) if message in line]
    finally:
        for path, text in kept.items():
            path.unlink() if text is None else path.write_text(text, encoding="utf-8")
    assert len(found) == 1, found
    if "{}" not in name:
        line = len((kept[copy / name] or "").splitlines()) + 1 + len(code.splitlines())
        assert kind == "a circle" or found[0].startswith(f"{name}:{line}: "), found
