"""build(tables, path, known) -> Study: a study file's tables, checked, over our trainer or another script."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from search.study.domains import (
    FREE,
    OFF,
    ON,
    Gates,
    bounded,
    largest_shape,
    parse_domain,
    settle_gates,
    technique_domains,
)
from search.study.foreign import parse_foreign, refuse_native, refuse_twice
from search.study.limits import Limits, check_given
from search.study.model import Header, Pruning, SamplerSettings, Study
from techniques import catalog
from techniques.base import Choice, Float, Int, Technique, check_value, nearest, parse_value
from techniques.config import TRAINER_FIELDS, flatten, known_field, read_preset

Table = TypeVar("Table")


def build(tables: Mapping[str, dict[str, Any]], path: Path, known: Mapping[str, type[Technique]]) -> Study:
    """The checked study. Raises ValueError."""
    if tables["trainer"]:
        refuse_native(tables)
        return dataclasses.replace(_whatever_runs(tables, path), foreign=parse_foreign(tables, path))
    return _native(_whatever_runs(tables, path), tables, known)


def _whatever_runs(tables: Mapping[str, Mapping[str, Any]], path: Path) -> Study:
    """What a study of any trainer says; nothing is fixed or free yet."""
    header = table_of(Header, tables["study"], "study")
    limits = table_of(Limits, tables["limits"], "limits")
    check_given(tables["limits"])
    return Study(
        name=header.name or path.stem,
        question=header.question,
        path=str(path),
        preset=header.preset,
        track="open" if tables["trainer"] else header.track,
        limits=limits,
        fixed={},
        free={},
        bounds={},
        gates={},
        slots={},
        base=read_preset(header.preset) if header.preset else {},
        pruning=table_of(Pruning, tables["pruning"], "pruning", rename={"from": "start"}),
        sampler=table_of(SamplerSettings, tables["sampler"], "sampler"),
        num_reports=header.num_reports,
        allow_duplicates=header.allow_duplicates,
        gpus_per_trial=header.gpus_per_trial,
        timeout_seconds=header.timeout_seconds or limits.timeout_seconds(),
    )


def _native(
    study: Study, tables: Mapping[str, dict[str, Any]], known: Mapping[str, type[Technique]]
) -> Study:
    """The study with what it fixes and frees of our trainer's settings and techniques."""
    fixed, asked = _fixed(tables["fixed"], known)
    plain = {k: v for k, v in tables["space"].items() if not isinstance(v, Mapping)}
    more, more_asked = _fixed(plain, known)
    refuse_twice(fixed, tables["space"])
    fixed, asked = fixed | more, asked | more_asked
    gates = settle_gates(
        _asked_gates(tables["techniques"], asked, known), known, base=study.base, track=study.track
    )
    slots, domains = _domains(tables["space"], gates, known)
    own = technique_domains(gates, known, track=study.track)
    free: dict[str, Float | Int | Choice] = {k: d for k, d in own.items() if k not in fixed} | domains
    _nothing_unread([*fixed, *domains], gates)
    largest = largest_shape(study.base, fixed, free)
    return dataclasses.replace(
        study,
        fixed=fixed,
        free={k: bounded(k, d, largest) for k, d in sorted(free.items())},
        bounds={k: d.high for k, d in free.items() if isinstance(d, Int) and isinstance(d.high, str)},
        gates=gates.state,
        slots=slots,
    )


def table_of(
    kind: type[Table], table: Mapping[str, Any], title: str, *, rename: Mapping[str, str] | None = None
) -> Table:
    """A settings table as its dataclass; `rename` maps keys of the file to fields."""
    fields = {f.name: f for f in dataclasses.fields(cast("Any", kind))}
    keys = {field: key for key, field in (rename or {}).items()}
    names = {keys.get(field, field): field for field in fields}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in names:
            raise ValueError(f"[{title}] has no key {key!r}. {nearest(key, names)}")
        field = fields[names[key]]
        parsed = parse_value(f"{title}.{key}", value, field)
        check_value(f"{title}.{key}", parsed, field)
        values[field.name] = parsed
    return kind(**values)


def _fixed(
    table: Mapping[str, Any], known: Mapping[str, type[Technique]]
) -> tuple[dict[str, Any], dict[str, str]]:
    """(flat settings, gates that the table forces) of [fixed] or of the plain values in [space]."""
    values: dict[str, Any] = {}
    gates: dict[str, str] = {}
    for name, value in flatten(table).items():
        field = known_field(name, known)
        if field is None:
            if not isinstance(value, bool):
                raise ValueError(f"`{name}` is a technique's gate: true or false, but got {value!r}.")
            gates[name] = ON if value else OFF
        else:
            values[name] = parse_value(name, value, field)
            check_value(name, values[name], field)
    return values, gates


def _asked_gates(
    table: Mapping[str, Any], fixed: Mapping[str, str], known: Mapping[str, type[Technique]]
) -> dict[str, str]:
    """What the file says of gates, `others` included."""
    asked = dict(fixed)
    for name, value in table.items():
        allowed = (FREE, OFF, "preset") if name == "others" else (FREE, ON, OFF)
        state = {True: ON, False: OFF}[value] if isinstance(value, bool) else value
        if name != "others":
            catalog.lookup(dict(known), name)
        if state not in allowed:
            raise ValueError(f"`techniques.{name}` must be one of {', '.join(allowed)}, but got {value!r}.")
        if asked.get(name, state) != state:
            raise ValueError(f"`{name}` is {asked[name]} in [fixed] and {state} in [techniques]. Keep one.")
        asked[name] = state
    return asked


def _domains(
    table: Mapping[str, Any], gates: Gates, known: Mapping[str, type[Technique]]
) -> tuple[dict[str, tuple[str, ...]], dict[str, Float | Int | Choice]]:
    """(slot -> narrowed choices, setting -> domain) of [space]."""
    slots: dict[str, tuple[str, ...]] = {}
    domains: dict[str, Float | Int | Choice] = {}
    for name, value in table.items():
        if not isinstance(value, Mapping):
            continue
        spec = cast("Mapping[str, Any]", value)
        claimants = catalog.slot_groups(dict(known)).get(name)
        if claimants is not None and name not in known and name not in TRAINER_FIELDS:
            slots[name] = gates.narrow_slot(name, spec, claimants)
            continue
        field = known_field(name, known)
        if field is None:
            raise ValueError(f'`{name}` is a technique\'s gate. Free it with [techniques] {name} = "free".')
        domains[name] = parse_domain(name, spec, field)
    return slots, domains


def _nothing_unread(names: list[str], gates: Gates) -> None:
    for name in names:
        owner = name.partition(".")[0]
        if "." in name and gates.state[owner] == OFF:
            raise ValueError(
                f"`{name}` is set, but {owner} is off in this study{gates.why(owner)}. Free {owner}, or drop "
                f"the setting."
            )
