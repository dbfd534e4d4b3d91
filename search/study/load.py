"""load_study(path, known) -> Study: one TOML file that says what a search may vary, under which limits.

    [study]       name, question, preset, track, num_reports, allow_duplicates, timeout_seconds,
                  gpus_per_trial, trackers
    [limits]      artifact_bytes, train_seconds | train_baselines, eval_seconds | eval_baselines;
                  memory_bytes (no limit where it is left out)
    [fixed]       flat settings over the preset
    [techniques]  name = "free" | "on" | "off"; others = "free" | "off" | "preset"
    [space]       name = {low, high, log, step} | {choices} | a value that fixes it
    [pruning]     from, margin, min_trials, quantile, confidence, agreement, spare
    [sampler]     kind, startup_trials, max_resamples, candidates, replicates, reuse
    [prior]       studies, published: what BPB is learnt from before the first trial
    [confirm]     top, seeds: at the study's end its best run again on fresh seeds
    [cost]        dollars_per_gpu_hour
    [trainer]     somebody else's script; [arguments], [keys], [constants] with it (search/study/foreign.py)

Domains say what a study may vary of each setting; gates are settled against slots, conflicts, requirements
and legality. Whatever is wrong is one ValueError, with the nearest known name for a typo.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from search.common.paths import DEFAULT_STUDY, ROOT, STUDIES, shown
from search.study.foreign import BINDINGS, Foreign, parse_foreign, refuse_bindings, refuse_native
from search.study.limits import Limits, check_given
from search.study.model import (
    TRACKERS,
    Confirm,
    Domain,
    Header,
    Price,
    PriorSettings,
    Pruning,
    SamplerSettings,
    Slots,
    Study,
)
from techniques import base as declared
from techniques import catalog
from techniques.base import Choice, Float, Int, Shape, Technique, check_value, nearest, parse_value
from techniques.config import TRAINER_FIELDS, Config, flatten, known_field, read_preset

NAME = re.compile(r"\w[\w.+-]*")
TABLES = (
    "study",
    "limits",
    "fixed",
    "techniques",
    "space",
    "pruning",
    "sampler",
    "prior",
    "confirm",
    "cost",
    "trainer",
    *BINDINGS,
)
Table = TypeVar("Table")
FREE = "free"
ON = "on"
OFF = "off"
BASELINE = "baseline"  # the choice of a slot that no technique fills
Catalogue = Mapping[str, type[Technique]]
RANGE_KEYS = ("low", "high", "log", "step", "choices")


def load_study(path: Path, known: Catalogue) -> Study:
    """The study in the TOML file `path`, over the catalogue `known`. ValueError for anything wrong in it."""
    return read_study(None, path, known)


def load_draft(path: Path) -> tuple[Study, Foreign]:
    """(the study of another script in the file `path`, that script). ValueError for anything wrong."""
    study = load_study(path, {})
    assert study.foreign is not None  # a draft has a [trainer]
    return study, study.foreign


def read_study(text: str | None, path: Path, known: Catalogue) -> Study:
    """The same with the text that `path` had; None: that it has."""
    try:
        return build(_read(path, text), path, known)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None


def _read(path: Path, text: str | None) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig") if text is None else text)
    except FileNotFoundError:
        if path.name == path.stem == str(path) and (known := STUDIES / f"{path}.toml").exists():
            raise ValueError(f"No such study file. Did you mean {str(shown(known))!r}?") from None
        others = sorted(str(p) for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        way_out = nearest(str(path), others) if others else "Give the path of a study's TOML file."
        raise ValueError(f"No such study file. {way_out}") from None
    except IsADirectoryError:
        raise ValueError("A study is one TOML file, but this is a folder. Name a file in it.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"Not valid TOML: {error}.") from None
    except RecursionError:
        raise ValueError("Not a study: its values nest too deeply.") from None
    for name, table in tables.items():
        if name not in TABLES:
            raise ValueError(f"Unknown table [{name}]. {nearest(name, TABLES)}")
        if not isinstance(table, dict):
            raise ValueError(
                f"`{name}` must be a table, but got {table!r}. Write [{name}] and its keys below."
            )
    if tables.get("confirm") == {}:
        tables["confirm"] = {"top": Confirm().top}  # it is asked for, as it comes
    return {name: tables.get(name, {}) for name in TABLES}


def find_study(path: Path | None) -> Study:
    """The study of a file; a relative path starts here or at the project. Raises ValueError."""
    path = DEFAULT_STUDY if path is None else path
    if not path.exists() and (ROOT / path).exists():
        path = ROOT / path
    study = load_study(path, catalog.metadata())
    if not NAME.fullmatch(study.name):
        raise ValueError(
            f"{path}: the study's name is also a folder's: letters, digits and . _ + - only, but got "
            f"{study.name!r}. Rename it."
        )
    return study


def build(tables: Mapping[str, dict[str, Any]], path: Path, known: Catalogue) -> Study:
    if tables["trainer"]:
        refuse_native(tables)
        study = dataclasses.replace(_whatever_runs(tables, path), foreign=parse_foreign(tables, path))
    else:
        if any(tables[table] for table in BINDINGS):
            refuse_bindings(tables)
        study = _native(_whatever_runs(tables, path), tables, known)
    for twice in tables["fixed"].keys() & tables["space"].keys():
        raise ValueError(f"`{twice}` is both in [fixed] and in [space]. Keep one of the two.")
    _check_seeds(study)
    return study


def _check_seeds(study: Study) -> None:
    """A seed is nothing to search for, and a replicate needs one."""
    own = {"seed", "SEED", study.foreign.seed} if study.foreign else {"seed"}
    for name in own & {*(study.foreign.variables if study.foreign else study.free)}:
        raise ValueError(
            f"A search over seeds finds the luckiest one, but `{name}` is in [space]. Fix it, and write "
            "`replicates = 4` under [sampler] for so many runs of each configuration on seeds of their own; "
            "`python search.py confirm` runs a study's best on fresh seeds."
        )
    if study.confirm and study.foreign is not None:
        raise ValueError(
            "[confirm] runs a study's best on fresh seeds of our trainer, but this study has a [trainer]. "
            "Leave [confirm] out; `replicates` under [sampler] runs configurations on further seeds."
        )
    if study.sampler.replicates > 1 and study.foreign is not None and not study.foreign.seed:
        raise ValueError(
            "`replicates` in [sampler] runs configurations on further seeds, but [trainer] does not say "
            'which variable of the script is its seed. Add it: seed = "SEED".'
        )


def _whatever_runs(tables: Mapping[str, Mapping[str, Any]], path: Path) -> Study:
    """What a study of any trainer says; nothing is fixed or free yet."""
    study = {key: value for key, value in tables["study"].items() if key != "trackers"}
    header = table_of(Header, study, "study")
    limits = table_of(Limits, tables["limits"], "limits")
    check_given(tables["limits"])
    given: dict[str, Any] = vars(header) | {
        "name": header.name or path.stem,
        "track": "open" if tables["trainer"] else header.track,
        "timeout_seconds": header.timeout_seconds or limits.timeout_seconds(),
    }
    return Study(
        path=str(path),
        limits=limits,
        base=read_preset(header.preset) if header.preset else {},
        pruning=table_of(Pruning, tables["pruning"], "pruning", rename={"from": "start"}),
        sampler=table_of(SamplerSettings, tables["sampler"], "sampler"),
        prior=_prior(tables["prior"]),
        confirm=table_of(Confirm, tables["confirm"], "confirm") if tables["confirm"] else None,
        price=table_of(Price, tables["cost"], "cost"),
        trackers=_trackers(tables["study"].get("trackers", [])),
        **given,
    )


def _trackers(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in cast("list[Any]", names)):
        raise ValueError(f'`study.trackers` must be a list, ["mlflow", "wandb"], but got {names!r}.')
    for name in cast("list[str]", names):
        if name not in TRACKERS:
            raise ValueError(f"There is no tracker {name!r}. {nearest(name, TRACKERS)}")
    return tuple(dict.fromkeys(cast("list[str]", names)))


def _prior(table: Mapping[str, Any]) -> PriorSettings:
    names = table.get("studies", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in cast("list[Any]", names)):
        raise ValueError(f'`prior.studies` must be a list of names, ["OLD"], but got {names!r}.')
    rest = {key: value for key, value in table.items() if key != "studies"}
    settings = table_of(PriorSettings, rest, "prior")
    return dataclasses.replace(settings, studies=tuple(dict.fromkeys(cast("list[str]", names))))


def _native(study: Study, tables: Mapping[str, dict[str, Any]], known: Catalogue) -> Study:
    """The study with what it fixes and frees of our trainer's settings and techniques."""
    fixed, asked = _fixed(tables["fixed"], known)
    plain = {k: v for k, v in tables["space"].items() if not isinstance(v, Mapping)}
    more, more_asked = _fixed(plain, known)
    fixed, asked = fixed | more, asked | more_asked
    asked = _asked_gates(tables["techniques"], asked, known)
    gates = settle_gates(asked, known, base=study.base, track=study.track)
    slots, domains = _domains(tables["space"], gates, known)
    own = technique_domains(gates, known, track=study.track)
    free: dict[str, Domain] = {k: d for k, d in own.items() if k not in fixed} | domains
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
        values[field.name] = checked(f"{title}.{key}", value, field)
    return kind(**values)


def checked(name: str, value: Any, field: dataclasses.Field[Any]) -> Any:
    """The value as its field's type, inside its hard limits. ValueError."""
    parsed = parse_value(name, value, field)
    check_value(name, parsed, field)
    return parsed


def _fixed(table: Mapping[str, Any], known: Catalogue) -> tuple[dict[str, Any], dict[str, str]]:
    """(flat settings, gates that the table forces) of [fixed] or of the plain values in [space]."""
    values = dict[str, Any]()
    gates = dict[str, str]()
    for name, value in flatten(table).items():
        field = known_field(name, known)
        if field is None:
            if not isinstance(value, bool):
                raise ValueError(f"`{name}` is a technique's gate: true or false, but got {value!r}.")
            gates[name] = ON if value else OFF
        else:
            values[name] = checked(name, value, field)
    return values, gates


def _asked_gates(table: Mapping[str, Any], fixed: Mapping[str, str], known: Catalogue) -> dict[str, str]:
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


def _domains(table: Mapping[str, Any], gates: Gates, known: Catalogue) -> tuple[Slots, dict[str, Domain]]:
    """(slot -> narrowed choices, setting -> domain) of [space]."""
    slots = Slots()
    domains = dict[str, Domain]()
    groups = catalog.slot_groups(dict(known))
    for name, value in table.items():
        if not isinstance(value, Mapping):
            continue
        spec = cast("Mapping[str, Any]", value)
        claimants = groups.get(name)
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


@dataclass(frozen=True)
class Gates:
    """Every technique's state, and why it is off where the study did not say so."""

    state: dict[str, str]
    reasons: dict[str, str]
    from_preset: frozenset[str]  # on because the preset turns them on: their settings stay the preset's

    def why(self, name: str) -> str:
        """` (reason)` for a technique that is off for a reason of ours, to put into an error."""
        return f" ({self.reasons[name]})" if name in self.reasons else ""

    def narrow_slot(self, slot: str, spec: Mapping[str, Any], claimants: Sequence[str]) -> tuple[str, ...]:
        """The choices that a study leaves to a slot. ValueError for one that cannot be taken."""
        options = [BASELINE, *(n for n in claimants if self.state[n] == FREE)]
        if set(spec) != {"choices"} or not spec["choices"]:
            raise ValueError(f"The slot `{slot}` takes {{choices = [...]}}, but got {dict(spec)!r}.")
        for name in spec["choices"]:
            if name not in options:
                off = f" It is off{self.why(name)}." if self.state.get(name) == OFF else ""
                raise ValueError(
                    f"The slot `{slot}` has no choice {name!r}.{off} {nearest(str(name), options)}"
                )
        return tuple(spec["choices"])


def excludes(a: str, b: str, known: Catalogue) -> str:
    """Why techniques a and b cannot both be on; empty when they can."""
    both = declared.claims(known[a]), declared.claims(known[b])
    shared = [slot for slot in declared.SLOTS if all(slot in own for own in both)]
    if shared:
        return f"both fill the slot `{shared[0]}`"
    return known[a].conflicts.get(b, "") or known[b].conflicts.get(a, "")


def settle_gates(asked: Mapping[str, str], known: Catalogue, *, base: Mapping[str, Any], track: str) -> Gates:
    """Every technique's state. A technique that the study names must be able to take the state it was given
    (ValueError otherwise); one that only `others` frees is off, with the reason kept, where it cannot."""
    others = asked.get("others", FREE)
    preset_on = {n for n in known if base.get(n, False) is True}
    unasked = {n: (ON if n in preset_on else OFF) if others == "preset" else others for n in known}
    state = {name: asked.get(name, unasked[name]) for name in known}
    from_preset = {n for n in preset_on if n not in asked and others == "preset"}
    reasons: dict[str, str] = {}
    changed = True
    while changed:
        changed = False
        for name in known:
            reason = "" if state[name] == OFF else _obstacle(name, state, known, track=track)
            if not reason:
                continue
            if name in asked or name in from_preset:
                raise ValueError(
                    f"{name} cannot be {state[name]}: {reason}. Turn {name} off, or change the other."
                )
            state[name] = OFF
            reasons[name] = reason
            changed = True
    return Gates(state, reasons, frozenset(from_preset))


def _obstacle(name: str, state: Mapping[str, str], known: Catalogue, *, track: str) -> str:
    """Why `name` can never be on in this study; empty when it can."""
    cls = known[name]
    if not any(v.admitted(track) for v in _verdicts(cls, {})):
        law = cls.legality
        return f"it is {law.verdict.value} ({law.source}), which the track `{track}` does not admit"
    for other, what in state.items():
        if what == ON and other != name and (why := excludes(name, other, known)):
            return f"{other} is on and {why}"
    for other in cls.requires:
        if state.get(other, OFF) == OFF:
            return f"it needs {other}, which is off"
    return ""


def _verdicts(cls: type[Technique], held: Mapping[str, Any]) -> list[Any]:
    """The legality of every combination of the technique's Choice settings that are not `held`."""
    if cls.verdict is Technique.verdict:
        return [cls.legality]
    choices = {n: d.options for n, d in cls.space.items() if isinstance(d, Choice) and n not in held}
    combinations = (
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    )
    return [cls(cls.Config(**held, **settings)).verdict() for settings in combinations]


def technique_domains(gates: Gates, known: Catalogue, *, track: str) -> dict[str, Domain]:
    """flat setting -> its technique's domain, where that may be on; choices that the track admits."""
    out: dict[str, Domain] = {}

    def admitted(cls: type[Technique], key: str, option: Any) -> bool:
        return any(verdict.admitted(track) for verdict in _verdicts(cls, {key: option}))

    for name, cls in known.items():
        if gates.state[name] == OFF or name in gates.from_preset:
            continue
        for key, domain in cls.space.items():
            if isinstance(domain, Choice):
                domain = Choice(tuple(option for option in domain.options if admitted(cls, key, option)))
            out[f"{name}.{key}"] = domain
    return out


def parse_domain(name: str, spec: Mapping[str, Any], field: dataclasses.Field[Any]) -> Domain:
    """A [space] entry as a domain of the field's type, inside its hard limits. ValueError otherwise."""
    for key in spec:
        if key not in RANGE_KEYS:
            raise ValueError(f"`{name}` has no key {key!r} in [space]. {nearest(key, RANGE_KEYS)}")

    def value(key: str) -> Any:
        got = parse_value(f"{name}.{key}", spec[key], field)
        check_value(name, got, field)
        return got

    if "choices" in spec:
        options = spec["choices"]
        if set(spec) != {"choices"} or not isinstance(options, list) or not options:
            raise ValueError(
                f"`{name}` takes either choices = [...] or low and high, but got {dict(spec)!r}."
            )
        return Choice(tuple(dict.fromkeys(checked(name, o, field) for o in cast("list[Any]", options))))
    if not {"low", "high"} <= set(spec) or type(field.default) not in (int, float):
        kind = type(field.default).__name__
        raise ValueError(
            f"`{name}` ({kind}) takes choices = [...], a number also low and high, but got {dict(spec)!r}."
        )
    low = value("low")
    high = value("high")
    log = spec.get("log", False)
    if not low < high:
        raise ValueError(f"`{name}` must have low < high, but got {low} and {high}. A plain value fixes it.")
    if not isinstance(log, bool) or (log and low <= 0):
        raise ValueError(
            f"`{name}` is logarithmic from {low} with log = {log!r}: log is a boolean and needs low > 0."
        )
    if type(field.default) is float:
        if "step" in spec:
            raise ValueError(f"`{name}` is a real number and takes no step. Use choices = [...] for a grid.")
        return Float(low, high, log)
    step = spec.get("step", 1)
    if not isinstance(step, int) or step < 1 or (log and step != 1):
        raise ValueError(f"`{name}`: step must be a positive integer (1 when log), but got {step!r}.")
    return Int(low, high, log, step)


def largest_shape(base: Mapping[str, Any], fixed: Mapping[str, Any], free: Mapping[str, Domain]) -> Shape:
    """The shape with every free size at its largest: what a size's name in Int.high stands for."""
    values = {k: v for k, v in {**base, **fixed}.items() if k in TRAINER_FIELDS}
    for name, domain in free.items():
        if name in TRAINER_FIELDS:
            values[name] = max(domain.options) if isinstance(domain, Choice) else domain.high
    return Config(**values).shape()


def bounded(name: str, domain: Domain, largest: Shape) -> Domain:
    """The domain with a number where Int.high names a size. ValueError for an unknown size."""
    if not (isinstance(domain, Int) and isinstance(domain.high, str)):
        return domain
    if not hasattr(largest, domain.high):
        sizes = [f.name for f in dataclasses.fields(Shape)]
        raise ValueError(f"`{name}` ends at an unknown size {domain.high!r}. {nearest(domain.high, sizes)}")
    return dataclasses.replace(domain, high=max(domain.low, int(getattr(largest, domain.high))))
