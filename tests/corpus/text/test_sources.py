"""Prose is found without executing anything, and the fast lexer finds what ast finds."""

import ast
import sysconfig
import textwrap
import warnings
from pathlib import Path

import pytest

from corpus.text.sources import (
    Package,
    find_package,
    is_prose,
    paragraph_key,
    prose,
    read_source,
    source_files,
    standard_library,
)


def docstrings(source: str) -> list[str]:
    """The triple-quoted docstrings on lines of their own, by ast."""
    found: list[str] = []
    lines = source.splitlines()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            statement = node.body[0]
            text = ast.get_docstring(node, clean=False)
            if text and lines[statement.lineno - 1].lstrip().lower().startswith(
                ('"""', "'''", 'r"""', "r'''")
            ):
                found.append(" ".join(text.split()))
    return found


@pytest.mark.parametrize(
    "name", ["textwrap", "difflib", "doctest", "inspect", "typing", "argparse", "tarfile"]
)
def test_the_lexer_finds_the_docstrings_of_ast(name: str):
    source = (Path(sysconfig.get_paths()["stdlib"]) / f"{name}.py").read_text(encoding="utf-8")
    expected = docstrings(source)
    found = {" ".join(text.split()) for text in prose(source)}
    assert len(expected) > 10
    assert [text for text in expected if text not in found] == []


def test_strings_and_comments_do_not_hide_each_other():
    source = textwrap.dedent(
        '''
        # First comment line,
        # and the second.
        x = "# no comment"  # pragma after code
        y = '"""' + """a value # here"""
        """A string statement with a # sign
        and a 'quote'."""
        def f():
            r"""Raw \\alpha."""
            b"""bytes"""
            # Last.
        '''
    )
    assert list(prose(source)) == [
        "First comment line,\nand the second.",
        "A string statement with a # sign\nand a 'quote'.",
        r"Raw \alpha.",
        "Last.",
    ]


@pytest.mark.parametrize(
    ("literal", "text"),
    [
        ('"""a\\tb"""', "a       b"),
        ("'''say \"x\\n'''", 'say "x'),
        ('"""\\\nfirst"""', "first"),
        ('"""q \\""" """', 'q """'),
    ],
)
def test_escapes_are_those_of_python(literal: str, text: str):
    assert ast.literal_eval(literal).expandtabs().strip() == text
    assert list(prose(literal)) == [text]


def test_prose_is_told_from_code_and_tables():
    assert is_prose("Return the number of items in the container.")
    assert not is_prose(">>> print(the, value, of, all, these, names)")
    assert not is_prose("-------- ------- 12 34 56 78 90 12 34 +++ ===")
    assert not is_prose("Two words")
    assert paragraph_key("The size is 3.\n") == paragraph_key("the  SIZE is 12")


def test_packages_are_found_but_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "explosive"
    (folder / "tests").mkdir(parents=True)
    for name in ("__init__.py", "b.py", "a.py", "tests/t.py"):
        (folder / name).write_text("raise SystemExit('executed')")
    (folder / "latin.py").write_bytes(b"# caf\xe9")
    monkeypatch.syspath_prepend(str(tmp_path))
    package = find_package("explosive")
    assert package == Package("explosive", "unknown", folder)
    assert package is not None
    assert [path.name for path in source_files(package)] == ["__init__.py", "a.py", "b.py", "latin.py"]
    assert read_source(folder / "latin.py") is None
    assert find_package("no_such_package_here") is None


def test_the_standard_library_is_there_without_its_tests():
    package = standard_library()
    names = {path.relative_to(package.root).parts[0] for path in source_files(package)}
    assert "argparse.py" in names
    assert not names & {"test", "site-packages"}
