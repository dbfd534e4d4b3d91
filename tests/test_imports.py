"""The house's rules that a parser can see: who imports whom, how long things are, whose names are unique."""

import ast
import collections
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.inline import names_bound

ROOT = Path(__file__).resolve().parent.parent
TECHNIQUES = sorted(p for p in (ROOT / "techniques").glob("*/*.py") if p.name != "__init__.py")
CONTRACT = sorted((ROOT / "techniques").glob("*.py"))
KERNEL = sorted((ROOT / "trainer").glob("*.py"))
CORPUS = sorted((ROOT / "corpus").glob("*.py"))
SEARCH = sorted((ROOT / "search").rglob("*.py"))
SUITE = [ROOT / "validate.py", *sorted((ROOT / "conformance").glob("*.py"))]
READERS = sorted((ROOT / "readers").glob("*.py"))
BUNDLE = sorted((ROOT / "bundle").glob("*.py"))
CLAIMS = sorted((ROOT / "claims").rglob("*.py"))
PAGES = sorted((ROOT / "pages").glob("*.py"))
SUBMISSION = sorted((ROOT / "submission").glob("*.py"))
STRICT = [
    *SEARCH,
    *CLAIMS,
    *PAGES,
    *SUBMISSION,
    *READERS,
    *BUNDLE,
]  # without torch, and read by whoever reads the search
TRAINER = [ROOT / "train_gpt.py"]
ROOMS = {
    "trainer",
    "techniques",
    "train_gpt",
    "corpus",
    "bundle",
    "claims",
    "pages",
    "submission",
    "readers",
    "search",
    "validate",
    "conformance",
    "tests",
    "benchmarks",
}
CODECS = {"zstandard", "brotli", "constriction", "numpy"}  # what compression may need; arrays of symbols

# whom each room may import: rooms of this house and packages, besides the standard library
MAY: dict[str, tuple[list[Path], set[str]]] = {
    "techniques/*/*": (TECHNIQUES, {"trainer", "techniques", "torch", "triton", *CODECS}),
    "techniques/*": (CONTRACT, {"trainer", "techniques", "torch"}),
    "trainer": (KERNEL, {"trainer", "techniques", "numpy", "torch", "flash_attn", "flash_attn_interface"}),
    "corpus": (
        CORPUS,
        {"corpus", "numpy", "sentencepiece", "huggingface_hub", "zstandard", "typer", "rich"},
    ),
    "train_gpt": (TRAINER, {"bundle", "trainer", "techniques", "corpus", "numpy", "torch"}),
    "readers": (READERS, {"readers"}),
    "bundle": (BUNDLE, {"bundle", "techniques"}),
    "suite": (SUITE, {"conformance", "train_gpt", "trainer", "techniques", "corpus", "torch", "rich"}),
}
NEVER: dict[str, tuple[list[Path], set[str]]] = {
    "search": (SEARCH, {"train_gpt", "torch", "validate", "conformance", "tests"}),
    "claims": (CLAIMS, {"train_gpt", "torch", "validate", "conformance", "tests"}),
    "pages": (PAGES, {"train_gpt", "torch", "validate", "conformance", "tests"}),
    "submission": (SUBMISSION, {"train_gpt", "torch", "validate", "conformance", "tests"}),
}
TORCH_FREE = (
    "base.py",
    "parts.py",
    "catalog.py",
    "config.py",
    "published.py",
    "settings.py",
    "audit.py",
    "machine.py",
    "_adapt.py",
)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its head or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} imports relatively; name the whole module"
            yield node.module or ""
            if node.module in ROOMS:  # from techniques import catalog
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("room", MAY)
def test_a_room_imports_what_it_may(room: str) -> None:
    files, allowed = MAY[room]
    assert files, f"{room} has no files: the test looks at nothing"
    known = allowed | sys.stdlib_module_names
    bad = [f"{name_of(p)} imports {m}" for p in files for m in imports(p) if m.split(".")[0] not in known]
    assert not bad, f"{room} may import the standard library and {', '.join(sorted(allowed))}: {bad}"


@pytest.mark.parametrize("room", NEVER)
def test_a_room_never_imports(room: str) -> None:
    files, forbidden = NEVER[room]
    assert files, f"{room} has no files: the test looks at nothing"
    bad = [f"{name_of(p)} imports {m}" for p in files for m in imports(p) if m.split(".")[0] in forbidden]
    assert not bad, f"{room} never imports {', '.join(sorted(forbidden))}: {bad}"


def test_a_technique_imports_the_contract_and_shared_maths_only() -> None:
    def fine(module: str) -> bool:
        return module == "techniques.base" or module.startswith("techniques._")

    bad = [
        f"{name_of(p)} imports {m}"
        for p in TECHNIQUES
        for m in imports(p)
        if m.split(".")[0] == "techniques" and not fine(m)
    ]
    assert not bad, f"a technique imports techniques.base and techniques._*, never a sibling: {bad}"


def test_only_the_scratch_of_the_contract_needs_torch() -> None:
    bad = [
        p.name
        for p in (*CONTRACT, *KERNEL)
        if p.name in TORCH_FREE and "torch" in {m.split(".")[0] for m in imports(p)}
    ]
    assert not bad, f"the search reads these files without torch: {bad}"


def test_top_level_names_are_unique_in_what_a_bundle_merges() -> None:
    """A bundle puts them into one file and renames nothing."""
    bundled = [
        p for p in CORPUS if p.stem in ("bpb", "caseops", "dataset", "manifest", "shards", "tokenizer")
    ]
    assert len(bundled) == 6
    owners = collections.defaultdict(list)
    for path in [*TECHNIQUES, *CONTRACT, *KERNEL, *TRAINER, *bundled]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            foreign = isinstance(node, ast.Import) or (
                isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] not in ROOMS
            )
            for name in names_bound(ast.unparse(node)):
                if foreign:
                    owners[name] = [*{*owners[name], "a package"}]
                elif not isinstance(node, ast.ImportFrom):
                    owners[name].append(name_of(path))
    twice = {name: files for name, files in owners.items() if len(files) > 1}
    assert not twice, f"a bundle needs one owner for each name: {twice}"


def definitions(path: Path) -> Iterator[tuple[str, str]]:
    """(name, what it is) of a file's top-level names; an alias or a logger is what it is assigned."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, name_of(path)
        elif isinstance(node, ast.Assign):
            yield from ((t.id, ast.unparse(node.value)) for t in node.targets if isinstance(t, ast.Name))


def test_no_name_stands_for_two_things_in_one_package() -> None:
    """Except `make` of search/engines/: the same thing, for each cluster."""
    found: dict[tuple[Path, str], set[str]] = collections.defaultdict(set)
    for path in [*STRICT, *KERNEL]:
        for name, what in definitions(path):
            found[path.parent, name].add(what)
    twice = {f"{folder.name}.{name}" for (folder, name), kinds in found.items() if len(kinds) > 1}
    assert twice <= {"engines.make"}, f"one name, two things in one package: {sorted(twice)}"


def test_metadata_of_every_technique_loads_without_torch() -> None:
    code = (
        "import sys\n"
        "from techniques import catalog\n"
        "from techniques.config import Config\n"
        "shape = Config().shape()\n"
        "for name, cls in catalog.metadata().items():\n"
        "    technique = cls()\n"
        "    technique.check(shape), technique.verdict(), technique.cost(shape).params\n"
        "    assert cls.name == name and cls.reference and cls.smoke is not None\n"
        "    assert set(cls.space) | set(cls.smoke) <= set(cls.Config.__dataclass_fields__), name\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "print(len(catalog.metadata()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sum(1 for p in TECHNIQUES if not p.name.startswith("_"))


LIMITS = [
    *((p, 250) for p in TECHNIQUES),
    *((p, 600) for p in (*STRICT, *SUITE, *KERNEL)),
    *((p, 1300) for p in TRAINER),
]


def test_files_are_no_longer_than_the_house_allows() -> None:
    long = {
        name_of(p): n for p, most in LIMITS if (n := len(p.read_text(encoding="utf-8").splitlines())) > most
    }
    assert not long, f"technique 250 lines, any other module 600, train_gpt.py 1,300; longer: {long}"


def test_functions_are_at_most_60_lines_and_6_parameters() -> None:
    bad = []
    for path in [*TECHNIQUES, *CONTRACT, *KERNEL, *CORPUS, *STRICT, *SUITE, *TRAINER]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                count = len([a for a in arguments if a not in ("self", "cls")])
                is_command = any("command" in ast.unparse(d) for d in node.decorator_list)  # its options
                if lines > 60 or (count > 6 and not is_command):
                    bad.append(
                        f"{name_of(path)}:{node.lineno} {node.name}: {lines} lines, {count} parameters"
                    )
    assert not bad, f"a function has at most 60 lines and 6 parameters: {bad}"


def test_every_file_begins_with_its_contract() -> None:
    files = [*TECHNIQUES, *CONTRACT, *KERNEL, *CORPUS, *STRICT, *SUITE, *TRAINER]
    bad = [name_of(p) for p in files if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]
    assert not bad, f"the first line of a file says what it does: {bad}"
