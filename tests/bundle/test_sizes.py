"""The expected bytes of a script against those of the script itself."""

from __future__ import annotations

import random
import statistics

import pytest

from bundle.measure import added_bytes, script_bytes
from bundle.sizes import TRAINER, expected_bytes, sizes
from techniques import catalog


def test_the_table_knows_every_technique() -> None:
    assert sizes().keys() == {TRAINER, *catalog.metadata()}, "run `python -m bundle.measure`"


@pytest.mark.parametrize("name", ["gptq", "sliding_window", "xsa"])
def test_the_table_is_what_is_measured(name: str) -> None:
    told = "run `python -m bundle.measure`"
    assert abs(script_bytes(()) / sizes()[TRAINER] - 1) < 0.03, told
    assert abs(added_bytes(name) - sizes()[name]) < max(100, 0.2 * sizes()[name]), told


def sets(count: int) -> list[list[str]]:
    rng = random.Random(1)
    found = list[list[str]]()
    while len(found) < count:
        names = rng.sample(sorted(catalog.metadata()), rng.randint(2, 12))
        try:
            script_bytes(names)
        except ValueError:
            continue
        found.append(names)
    return found


@pytest.mark.parametrize("count", [4, pytest.param(40, marks=pytest.mark.long)])
def test_what_is_expected_of_sets_comes(count: int) -> None:
    errors = [abs(expected_bytes(names) / script_bytes(names) - 1) for names in sets(count)]
    assert statistics.mean(errors) < 0.015 and max(errors) < 0.04, errors
