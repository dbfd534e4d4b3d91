"""The benchmark of compare's error rate runs, and its bars hold."""

from benchmarks import claims


def test_bars() -> None:
    for kind in ("normal", "heavy tails (t, 4 degrees)"):
        null = claims.simulate(kind, effect=0.0, shared=0.0, within=0.0, seeds=64, studies=8000)
        assert null.wrong < 0.013, kind  # 1 % and three standard errors
    assert claims.confirm_null(seeds=64, studies=8000) < 0.013
    three = claims.simulate("normal", effect=3.0, shared=0.0, within=0.0, seeds=claims.SEEDS, studies=2000)
    assert three.differs >= 0.9 and three.wrong == 0.0 and three.mean_seeds < 8


def test_the_page_takes_the_tables() -> None:
    made = claims.tables(50)
    page = claims.put(claims.DOCUMENT.read_text(encoding="utf-8"), made)
    assert all(table in page for table in made.values())
    assert claims.put(page, made) == page
