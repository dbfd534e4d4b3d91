"""The benchmark of compare's error rate runs, and its bars hold."""

import inspect

from benchmarks import claims
from claims.sequential import LAST, LEVEL
from search import cli


def test_bars() -> None:
    for kind in claims.NOISES:
        assert claims.null_rate(kind, claims.SEEDS, 20_000) < LEVEL, kind
        assert claims.null_rate(kind, LAST, 10_000) < LEVEL, kind
    sure = claims.confirm_told(3.0, 4000)
    assert sure[claims.CONFIRM_SEEDS] >= 0.9 > sure[claims.SEEDS]
    assert claims.confirm_null(LAST, 8000) < LEVEL
    three = claims.simulate("normal", effect=3.0, shared=0.0, within=0.0, seeds=claims.SEEDS, studies=2000)
    assert three.differs >= 0.9 and three.wrong == 0.0 and three.mean_seeds < 8


def test_the_numbers_of_seeds_are_the_commands() -> None:
    of = {one: inspect.signature(one).parameters["seeds"].default for one in (cli.compare, cli.confirm)}
    assert of == {cli.compare: claims.SEEDS, cli.confirm: claims.CONFIRM_SEEDS}
    assert inspect.signature(cli.confirm).parameters["top"].default == claims.CONTENDERS


def test_the_page_takes_the_tables() -> None:
    made = claims.tables(50)
    page = claims.put(claims.DOCUMENT.read_text(encoding="utf-8"), made)
    assert all(table in page for table in made.values())
    assert claims.put(page, made) == page
