"""What texts point to is there: files, modules to run, links between pages."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("studies/*.md")]
ROOMS = (
    "search|bundle|claims|package|pages|submission|readers|trainer|techniques|corpus|conformance|benchmarks|tests|docs|"
    "studies"
)
FILE = re.compile(rf"(?<![\w/.~+-])(?:{ROOMS})/[\w./-]*\w\.(?:py|md|toml|json(?:\.xz)?)\b")
FOLDER = re.compile(rf"(?<![\w/.~+-])(?:{ROOMS})/(?:[\w-]+/)*(?![\w.*{{<-])")
MODULE = re.compile(rf"python -m ((?:{ROOMS})(?:\.\w+)*)")
LINK = re.compile(r"\]\(([^)#:\s]+)[^):\s]*\)")
TEST = re.compile(r"\b(test_\w+\.py)::(test_\w+)")  # the name's beginning is enough
PLACEHOLDER = re.compile(r"NAME|TECHNIQUE|ROOM|tests/t\.py")  # the last: a made-up tree of tests/corpus


def texts() -> Iterator[Path]:
    """Pages, and every source file: their docstrings and comments name files too."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py", "*.toml", "*.md", "Makefile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    yield from (ROOT / name for name in listed if (ROOT / name).is_file() and name != "tests/test_docs.py")


def lost(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    for file, name in TEST.findall(text):
        if not any(f"def {name}" in found.read_text("utf-8") for found in (ROOT / "tests").rglob(file)):
            yield f"{file}::{name}"
    for pattern in (FILE, FOLDER):
        for found in pattern.finditer(text):
            if not PLACEHOLDER.search(found[0]) and not (ROOT / found[0]).exists():
                yield found[0]
    for found in MODULE.finditer(text):
        target = ROOT / found[1].replace(".", "/")
        if not target.with_suffix(".py").exists() and not (target / "__main__.py").exists():
            yield f"python -m {found[1]}"


def test_every_file_and_module_that_a_text_names_exists() -> None:
    bad = sorted({f"{path.relative_to(ROOT)}: {name}" for path in texts() for name in lost(path)})
    assert not bad, "name what is there:\n" + "\n".join(bad)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    bad = [to for to in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / to).exists()]
    assert not bad, bad


def test_the_reader_of_texts_sees(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("`search/gone.py`, search/nowhere/, `python -m benchmarks.gone`; search/cli.py is there")
    assert list(lost(page)) == ["search/gone.py", "search/nowhere/", "python -m benchmarks.gone"]
    page.write_text("`test_docs.py::test_the_reader…`, `test_gone.py::test_x`, `test_docs.py::test_gone`")
    assert list(lost(page)) == ["test_gone.py::test_x", "test_docs.py::test_gone"]
