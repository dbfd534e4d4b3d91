"""The safety net of a refactoring finds what was planted, and finds a name wherever it moved to."""

import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.same import canonical, compare, first_of, rows_of, without_clocks

FOUND: dict[str, Any] = {
    "losses": [{"step": 1, "train_loss": 5.765515327453613}, {"step": 2, "train_loss": 0.0}],
    "on": True,
    "name": "six",
}


def test_equal_stays_equal():
    assert compare(FOUND, copy.deepcopy(FOUND)).differences == []
    shuffled = dict(reversed(FOUND.items()))
    assert compare(FOUND, shuffled).differences == [], "the order of keys says nothing"
    assert compare(float("nan"), float("nan")).differences == []


@pytest.mark.parametrize(
    ("planted", "value"),
    [(5.765515327453614, 5.765515327453613), (-0.0, 0.0), (1, 1.0), (True, 1), (None, 0), ("1", 1)],
)
def test_a_planted_difference_is_found_and_named(planted: Any, value: Any):
    one, other = copy.deepcopy(FOUND), copy.deepcopy(FOUND)
    one["losses"][1]["train_loss"], other["losses"][1]["train_loss"] = value, planted
    assert [place for place, _, _ in compare(one, other).differences] == ["losses[1].train_loss"]


def test_what_one_side_lacks_is_a_difference_unless_it_is_a_default():
    more = {**FOUND, "margin": 0.5}
    for one, other in ((FOUND, more), (more, FOUND)):
        assert [place for place, _, _ in compare(one, other).differences] == ["margin"]
        met = compare(one, other, frozenset({"margin"}))
        assert (met.differences, met.ignored) == ([], ["margin"])
    changed = {**more, "margin": 0.6}
    assert compare(more, changed, frozenset({"margin"})).differences, (
        "a default is no excuse for another value"
    )
    longer = {**FOUND, "losses": [*FOUND["losses"], {}]}
    assert compare(FOUND, longer).differences == [("losses.length", "2", "3")]


def test_the_table_names_the_first_difference_and_never_passes_an_error():
    base = {"off": {"found": {"a": 1, "b": 2}}, "six": {"error": "refused"}, "gone": {"found": 1}}
    current = {"off": {"found": {"a": 3, "b": 4}}, "six": {"error": "refused"}}
    rows = {what: (equal, note) for what, equal, note in rows_of(base, current)}
    assert rows["off"] == (False, "a: 1 -> 3 (and 1 more)")
    assert not rows["six"][0] and not rows["gone"][0]
    assert all(equal for _, equal, _ in rows_of({"off": base["off"]}, {"off": base["off"]}))


def test_clocks_and_code_are_left_out_and_nothing_else():
    result = {"val_bpb": 1.2, "train_seconds": 3.0, "code_bytes": 9, "reads": [{"from_s": 0.1, "tokens": 5}]}
    assert without_clocks(result) == {"val_bpb": 1.2, "reads": [{"tokens": 5}]}
    assert without_clocks({"max_wallclock_seconds": 600.0}) == {"max_wallclock_seconds": 600.0}


def test_a_dataclass_becomes_its_fields_and_tells_its_defaults(tmp_path: Path):
    @dataclass(frozen=True)
    class Inner:
        margin: float = 0.5
        kinds: tuple[str, ...] = ("a",)

    @dataclass(frozen=True)
    class Outer:
        path: Path
        inner: Inner = field(default_factory=Inner)

    defaults: set[str] = set()
    tree = canonical(Outer(tmp_path / "x.toml", Inner(0.6)), "study", defaults, str(tmp_path))
    assert tree == {"path": "x.toml", "inner": {"margin": 0.6, "kinds": ["a"]}}
    assert defaults == {"study.inner.kinds"}


def test_first_of_finds_a_name_that_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "moved_about"
    (package / "deep").mkdir(parents=True)
    for path, text in (
        ("__init__.py", ""),
        ("old.py", "def here(): return 1\n"),
        ("deep/__init__.py", ""),
        ("deep/new.py", "def there(): return 2\ndef twice(): return 3\n"),
        ("deep/other.py", "def twice(): return 4\n"),
        ("broken.py", "import no_such_module_at_all\n"),
    ):
        (package / path).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert first_of("moved_about.old.part:here", "moved_about.old:here")() == 1
        assert first_of("moved_about.old:there", "moved_about.nowhere:there")() == 2
        with pytest.raises(LookupError, match="once"):
            first_of("moved_about.old:twice")
        with pytest.raises(LookupError, match="must be there"):
            first_of("moved_about.old:nothing_is_called_this")
        with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
            first_of("moved_about.broken:here", "moved_about.old:here")
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "moved_about"]:
            del sys.modules[name]
