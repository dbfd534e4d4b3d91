"""docs/techniques.md is what the catalogue says, for every technique and every setting."""

import dataclasses
import re

import pytest

from conformance import reference
from techniques import catalog
from techniques.config import TRAINER_FIELDS

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
    assert "**Measured.** " in page


@pytest.mark.parametrize("page", reference.pages(), ids=lambda page: page.name)
def test_what_we_saw_is_an_entry_that_names_the_technique(page: reference.Page) -> None:
    assert bool(page.entries) == ("What we saw" in page.prose), (
        "the pointer ends the docstring and quotes titles"
    )
    known = reference.log_entries()
    for title in page.entries:
        assert title in known, f"{page.name}: studies/LOG.md has no entry {title!r}"
        assert re.search(rf"\b{page.name}\b", known[title]), f"the entry {title!r} does not name {page.name}"


def test_every_room_has_an_area_and_every_name_of_ours_is_one() -> None:
    rooms = {page.room for page in reference.pages()}
    assert rooms == {room for rooms in reference.AREAS.values() for room in rooms}
    for ours, _ in reference.NAMED.values():
        for word in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", ours):
            assert word in KNOWN or word in TRAINER_FIELDS, word


def test_every_technique_has_a_measured_cost() -> None:
    assert not KNOWN.keys() - reference.measured_rows().keys(), (
        "python -m benchmarks.trainer.technique_cost --write"
    )
