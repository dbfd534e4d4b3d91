"""A home for the studies of one file of tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.search.fake_studies import clear


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the private database of its studies and their runs are."""
    folder = tmp_path_factory.mktemp("home")
    yield folder
    clear(folder)
