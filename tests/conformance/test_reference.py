"""docs/techniques.md is what the catalogue says, for every technique and every setting."""

import dataclasses

import pytest

from conformance import reference
from techniques import catalog

KNOWN = catalog.metadata()


def test_the_reference_is_not_stale() -> None:
    written = reference.TARGET.read_text(encoding="utf-8")
    assert written == reference.reference(), "stale: run `python -m conformance.reference`"


def test_check_says_stale(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    stale = tmp_path / "techniques.md"
    monkeypatch.setattr(reference, "TARGET", stale)
    assert reference.main(["--check"]) == 1
    stale.write_text(reference.reference() + "edited by hand\n")
    assert reference.main(["--check"]) == 1 and "stale" in capsys.readouterr().err
    stale.write_text(reference.reference())
    assert reference.main(["--check"]) == 0


@pytest.mark.parametrize("name", KNOWN)
def test_every_technique_has_all_of_its_facts(name: str) -> None:
    whole = reference.reference()
    page = whole.split(f"\n### {name}\n")[1].split("\n### ")[0].split("\n## ")[0]
    cls = KNOWN[name]
    for part in (
        "**Formula.** ",
        "**Source.** ",
        "**Cost at full size.** ",
        "**Legality.** ",
        "**Company.** ",
    ):
        assert part in page and not page.split(part)[1].startswith("\n"), part
    assert cls.reference in page and cls.legality.verdict in page
    for f in dataclasses.fields(cls.Config):
        assert f"| `{f.name}` |" in page
    for variable in cls.env:
        assert f"`{variable}`" in page
    for other in (*cls.conflicts, *cls.requires, *cls.overrides, *cls.setting_requires.values()):
        assert other in page
    assert "LOG.md" in page
