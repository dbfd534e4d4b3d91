"""build(tables, path) -> Study: a study file with a [trainer] table, over somebody else's script."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search.study.foreign import parse_foreign
from search.study.limits import Limits, check_given
from search.study.model import Header, Pruning, SamplerSettings, Study
from search.study.tables import table_of


def build(tables: Mapping[str, Mapping[str, Any]], path: Path) -> Study:
    """The checked study. Raises ValueError."""
    for title in ("techniques",):
        if tables[title]:
            raise ValueError(
                f"[{title}] switches techniques of this trainer, but [trainer] drives a script of its own. "
                "Write its switches in [space]: NAME = { gate = true }."
            )
    header = table_of(Header, tables["study"], "study", rename={})
    if header.preset or "track" in tables["study"]:
        raise ValueError(
            "`study.preset` and `study.track` say something about this trainer's techniques, but [trainer] "
            "drives another script. Drop them; what is fixed stands in [fixed]."
        )
    limits = table_of(Limits, tables["limits"], "limits", rename={})
    check_given(tables["limits"])
    return Study(
        name=header.name or path.stem,
        question=header.question,
        path=str(path),
        preset="",
        track="open",
        limits=limits,
        fixed={},
        free={},
        bounds={},
        gates={},
        slots={},
        base={},
        pruning=table_of(Pruning, tables["pruning"], "pruning", rename={"from": "start"}),
        sampler=table_of(SamplerSettings, tables["sampler"], "sampler", rename={}),
        num_reports=header.num_reports,
        allow_duplicates=header.allow_duplicates,
        gpus_per_trial=header.gpus_per_trial,
        timeout_seconds=header.timeout_seconds or limits.timeout_seconds(),
        foreign=parse_foreign(tables, path),
    )
