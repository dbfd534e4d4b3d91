"""load_study(path, known) -> Study: one TOML file that says what a search may vary, under which limits.

    [study]       name, question, preset, track, num_reports, allow_duplicates, timeout_seconds,
                  gpus_per_trial
    [limits]      artifact_bytes, train_seconds | train_baselines, eval_seconds | eval_baselines
    [fixed]       flat settings over the preset
    [techniques]  name = "free" | "on" | "off"; others = "free" | "off" | "preset"
    [space]       name = {low, high, log, step} | {choices} | a value that fixes it
    [pruning]     from, margin, min_trials, quantile, confidence, agreement, spare
    [sampler]     kind, startup_trials, max_resamples, candidates, reuse
    [trainer]     somebody else's script (search/study/foreign.py)

Whatever is wrong is one ValueError: the law, the facts, the way out, with the nearest known name for a
typo.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
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
from search.study.foreign import Foreign
from search.study.limits import Limits, check_given
from techniques import catalog
from techniques.base import Choice, Float, Int, Technique, check_value, nearest, parse_value, setting
from techniques.config import TRAINER_FIELDS, digest, flatten, known_field, read_preset

TRACKS = ("record", "open")
KINDS = ("structured", "tpe")  # of samplers
TABLES = ("study", "limits", "fixed", "techniques", "space", "pruning", "sampler", "trainer")
Table = TypeVar("Table")


@dataclass(frozen=True)
class Pruning:
    """When a running trial is given up; search/pruning/pruner.py has the rule."""

    start: float = setting(0.5, "share of the budget before which nothing is pruned", low=0.0, high=1.0)
    margin: float = setting(0.0, "val_bpb above the standard that is good enough to go on", low=0.0)
    min_trials: int = setting(20, "feasible trials to their end without which nothing is pruned", low=5)
    quantile: float = setting(0.1, "of the feasible finals, from the best: the standard", low=0.0, high=1.0)
    confidence: float = setting(0.95, "probability of ending above the standard", low=0.5, high=1.0)
    agreement: float = setting(0.3, "rank correlation of early and final, lower end", low=0.0, high=1.0)
    spare: float = setting(0.1, "share of the prunable trials that run on", low=0.0, high=1.0)


@dataclass(frozen=True)
class SamplerSettings:
    """How proposals are made; search/samplers/caddie.py has the rules."""

    kind: str = setting("structured", "what makes the proposals", choices=KINDS)
    startup_trials: int = setting(0, "first trials, drawn anywhere; 0: the sampler's own number", low=0)
    max_resamples: int = setting(100, "rejected proposals before random draws", low=1)
    candidates: int = setting(24, "draws that a proposal of TPE is the best of", low=1)
    reuse: float = setting(
        0.25, "share of the seconds that trials on cached weights may take; 0: none", low=0.0, high=1.0
    )


@dataclass(frozen=True)
class Header:
    """The [study] table."""

    name: str = setting("", "name of the study in the database")
    question: str = setting("", "what the study is to find out")
    preset: str = setting("", "name of the preset it starts from; empty: the trainer's defaults")
    track: str = setting("record", "what legality admits", choices=TRACKS)
    num_reports: int = setting(8, "early BPB reports, evenly spaced over the budget", low=0, high=100)
    allow_duplicates: bool = setting(False, "sample a configuration again that was tried")
    gpus_per_trial: int = setting(1, "GPUs (without any: processes) that one trial trains on", low=1, high=64)
    timeout_seconds: float = setting(0.0, "wall seconds of a trial at most; 0: from the limits", low=0.0)


@dataclass(frozen=True)
class Study:
    """A study file, checked: every name known, every value in range, every gate settled."""

    name: str
    question: str
    path: str
    preset: str
    track: str
    limits: Limits
    fixed: dict[str, Any]  # flat settings over the preset, gates not among them
    free: dict[str, Float | Int | Choice]  # flat setting -> what may be sampled; Int.high is a number
    bounds: dict[str, str]  # setting -> the shape's size that it may not exceed in its own configuration
    gates: dict[str, str]  # every technique -> "free", "on" or "off"
    slots: dict[str, tuple[str, ...]]  # slot -> the choices that the study narrows it to
    base: dict[str, Any]  # the preset's flat values
    pruning: Pruning
    sampler: SamplerSettings
    num_reports: int
    allow_duplicates: bool
    gpus_per_trial: int
    timeout_seconds: float  # wall seconds after which a trial's processes are killed
    foreign: Foreign | None = None  # [trainer]: another script, with a space of its own

    @property
    def prune_from(self) -> float:
        """Share of the budget before which nothing is pruned."""
        return self.pruning.start


def study_identity(study: Study) -> dict[str, Any]:
    """What a study samples and measures; stored with the Optuna study, so that edits show."""
    kept: dict[str, Any] = {
        "track": study.track,
        "limits": study.limits.declared(),
        "base": study.base,
        "fixed": study.fixed,
        "free": {
            name: [type(domain).__name__, dataclasses.asdict(domain)] for name, domain in study.free.items()
        },
        "bounds": study.bounds,
        "gates": study.gates,
        "slots": {slot: list(choices) for slot, choices in study.slots.items()},
        "num_reports": study.num_reports,
    }
    if study.gpus_per_trial != 1:
        kept["gpus_per_trial"] = study.gpus_per_trial
    return kept if study.foreign is None else kept | {"trainer": study.foreign.identity()}


def study_hash(study: Study) -> str:
    """The identity in 16 letters."""
    return digest(study_identity(study))


def load_study(path: Path, known: Mapping[str, type[Technique]]) -> Study:
    """The study in the TOML file `path`, over the catalogue `known`. ValueError for anything wrong in it."""
    try:
        return _build(_read(path), path, known)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        others = sorted(str(p) for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        way_out = nearest(str(path), others) if others else "Give the path of a study's TOML file."
        raise ValueError(f"No such study file. {way_out}") from None
    except IsADirectoryError:
        raise ValueError("A study is one TOML file, but this is a folder. Name a file in it.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"Not valid TOML: {error}.") from None
    for name, table in tables.items():
        if name not in TABLES:
            raise ValueError(f"Unknown table [{name}]. {nearest(name, TABLES)}")
        if not isinstance(table, dict):
            raise ValueError(
                f"`{name}` must be a table, but got {table!r}. Write [{name}] and its keys below."
            )
    return {name: tables.get(name, {}) for name in TABLES}


def table_of(kind: type[Table], table: Mapping[str, Any], title: str, *, rename: Mapping[str, str]) -> Table:
    """A settings table as its dataclass; `rename` maps keys of the file to fields."""
    fields = {f.name: f for f in dataclasses.fields(cast("Any", kind))}
    names = {
        key: field for field in fields for key in [next((k for k, f in rename.items() if f == field), field)]
    }
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in names:
            raise ValueError(f"[{title}] has no key {key!r}. {nearest(key, names)}")
        field = fields[names[key]]
        parsed = parse_value(f"{title}.{key}", value, field)
        check_value(f"{title}.{key}", parsed, field)
        values[field.name] = parsed
    return kind(**values)


def _build(tables: Mapping[str, dict[str, Any]], path: Path, known: Mapping[str, type[Technique]]) -> Study:
    if tables["trainer"]:
        from search.study import build_foreign as foreign_study

        return foreign_study.build(tables, path)
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
