"""The default corpus is there before any question is asked: it is part of the question, and another test that
builds it meanwhile would make the same words another question."""

import pytest

from corpus import embedded
from search.common.paths import ROOT


@pytest.fixture(scope="session", autouse=True)
def _corpus() -> None:  # pyright: ignore[reportUnusedFunction]
    embedded.ensure(ROOT / "data", "sp1024")
