"""The conditions as a table say what the space's walk says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.samplers.structured.rows import Rows, learn_rules, rules_within
from search.space.build import build_space
from search.space.space import Space
from search.study.load import load_study
from techniques import catalog
from tests.search.fakes import HEADER, KNOWN, make_study

FOREIGN = """
[study]
name = "theirs"
[limits]
artifact_bytes = 1_000_000
train_seconds = 100
eval_seconds = 100
[trainer]
script = "train.py"
score = ["bpb (.*)"]
[space]
EMA = { gate = true }
DECAY = { low = 0.9, high = 0.999, when = "EMA" }
KIND = { choices = ["a", "b", "c"], when = "EMA" }
GAIN = { low = 0.1, high = 1.0, when = { KIND = ["a", "c"] } }
LAYERS = { low = 2, high = 9 }
"""


def spaces(folder: Path) -> dict[str, Space]:
    (folder / "theirs.toml").write_text(FOREIGN)
    (folder / "train.py").write_text("")
    known = catalog.metadata()
    found = {"fakes": build_space(make_study(folder, "", header=HEADER), KNOWN)}
    for title, text in {"everything": 'others = "free"', "forced": 'others = "free"\ngptq = "on"'}.items():
        path = folder / f"{title}.toml"
        path.write_text(f"{HEADER}\n[techniques]\n{text}\n")
        found[title] = build_space(load_study(path, known), known)
    found["theirs"] = build_space(load_study(folder / "theirs.toml", known), known)
    return found


@pytest.mark.parametrize("title", ["fakes", "everything", "forced", "theirs"])
def test_the_table_says_what_the_walk_says(tmp_path: Path, title: str) -> None:
    space = spaces(tmp_path)[title]
    table = rules_within(space.distributions, space.conditions())
    rows = Rows(space.distributions, table)
    drawn = rows.uniform(np.random.default_rng(0), 400)
    active = rows.active(drawn)
    configurations: list[dict[str, Any]] = [rows.decode(row) for row in drawn]
    for configuration, mask in zip(configurations, active, strict=True):
        assert space.active(configuration) == {n for n, on in zip(rows.names, mask, strict=True) if on}
    examples = [space.keep_active(c) for c in configurations]
    learned = Rows(space.distributions, learn_rules(space.distributions, examples))
    assert (learned.active(drawn) == active).all()
