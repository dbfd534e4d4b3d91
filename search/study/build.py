"""A study file's tables -> a checked Study over this trainer's techniques."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

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
from search.study.limits import Limits, check_given
from search.study.model import Header, Pruning, SamplerSettings, Study
from search.study.tables import table_of
from techniques import catalog
from techniques.base import Choice, Float, Int, Technique, check_value, parse_value
from techniques.config import TRAINER_FIELDS, flatten, known_field, read_preset


def build(tables: Mapping[str, dict[str, Any]], path: Path, known: Mapping[str, type[Technique]]) -> Study:
    """The checked study. Raises ValueError."""
    header = table_of(Header, tables["study"], "study", rename={})
    limits = table_of(Limits, tables["limits"], "limits", rename={})
    check_given(tables["limits"])
    base = read_preset(header.preset) if header.preset else {}
    fixed, asked = _fixed(tables["fixed"], known)
    plain = {k: v for k, v in tables["space"].items() if not isinstance(v, Mapping)}
    more, more_asked = _fixed(plain, known)
    for twice in fixed.keys() & tables["space"].keys():
        raise ValueError(f"`{twice}` is both in [fixed] and in [space]. Keep one of the two.")
    fixed, asked = fixed | more, asked | more_asked
    gates = settle_gates(
        _asked_gates(tables["techniques"], asked, known), known, base=base, track=header.track
    )
    slots, domains = _domains(tables["space"], gates, known)
    own = {k: d for k, d in technique_domains(gates, known, track=header.track).items() if k not in fixed}
    free: dict[str, Float | Int | Choice] = {**own, **domains}
    _nothing_unread([*fixed, *domains], gates)
    largest = largest_shape(base, fixed, free)
    bounds = {k: d.high for k, d in free.items() if isinstance(d, Int) and isinstance(d.high, str)}
    return Study(
        name=header.name or path.stem,
        question=header.question,
        path=str(path),
        preset=header.preset,
        track=header.track,
        limits=limits,
        fixed=fixed,
        free={k: bounded(k, d, largest) for k, d in sorted(free.items())},
        bounds=bounds,
        gates=gates.state,
        slots=slots,
        base=base,
        pruning=table_of(Pruning, tables["pruning"], "pruning", rename={"from": "start"}),
        sampler=table_of(SamplerSettings, tables["sampler"], "sampler", rename={}),
        num_reports=header.num_reports,
        allow_duplicates=header.allow_duplicates,
        gpus_per_trial=header.gpus_per_trial,
        timeout_seconds=header.timeout_seconds or limits.timeout_seconds(),
    )


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
