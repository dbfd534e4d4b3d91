"""What a study may vary: domains of settings, and gates settled against slots, conflicts, requirements,
legality.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from techniques.base import (
    SLOTS,
    Choice,
    Float,
    Int,
    Shape,
    Technique,
    check_value,
    claims,
    nearest,
    parse_value,
)
from techniques.config import TRAINER_FIELDS, Config

FREE, ON, OFF = "free", "on", "off"
BASELINE = "baseline"  # the choice of a slot that no technique fills
RANGE_KEYS = ("low", "high", "log", "step", "choices")
Domain = Float | Int | Choice


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


def excludes(a: str, b: str, known: Mapping[str, type[Technique]]) -> str:
    """Why techniques a and b cannot both be on; empty when they can."""
    shared = [s for s in SLOTS if s in claims(known[a]) and s in claims(known[b])]
    if shared:
        return f"both fill the slot `{shared[0]}`"
    return known[a].conflicts.get(b, "") or known[b].conflicts.get(a, "")


def settle_gates(
    asked: Mapping[str, str],
    known: Mapping[str, type[Technique]],
    *,
    base: Mapping[str, Any],
    track: str,
) -> Gates:
    """Every technique's state. A technique that the study names must be able to take the state it was given
    (ValueError otherwise); one that only `others` frees is off, with the reason kept, where it cannot."""
    others = asked.get("others", FREE)
    preset_on = {n for n in known if base.get(n, False) is True}
    state: dict[str, str] = {}
    for name in known:
        state[name] = asked.get(name, (ON if name in preset_on else OFF) if others == "preset" else others)
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
            state[name], reasons[name], changed = OFF, reason, True
    return Gates(state, reasons, frozenset(from_preset))


def _obstacle(
    name: str, state: Mapping[str, str], known: Mapping[str, type[Technique]], *, track: str
) -> str:
    """Why `name` can never be on in this study; empty when it can."""
    cls = known[name]
    if not any(v.admitted(track) for v in _verdicts(cls)):
        law = cls.legality
        return f"it is {law.verdict.value} ({law.source}), which the track `{track}` does not admit"
    for other, what in state.items():
        if what == ON and other != name and (why := excludes(name, other, known)):
            return f"{other} is on and {why}"
    for other in cls.requires:
        if state.get(other, OFF) == OFF:
            return f"it needs {other}, which is off"
    return ""


def _verdicts(cls: type[Technique]) -> list[Any]:
    """The legality of every combination of the technique's Choice settings, the rest at their defaults."""
    if cls.verdict is Technique.verdict:
        return [cls.legality]
    axes = {n: d.options for n, d in cls.space.items() if isinstance(d, Choice)}
    combinations = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    return [cls(cls.Config(**settings)).verdict() for settings in combinations]


def technique_domains(gates: Gates, known: Mapping[str, type[Technique]], *, track: str) -> dict[str, Domain]:
    """flat setting -> domain that the technique itself declares, for every technique that may be on; choices
    that the track never admits are left out."""
    out: dict[str, Domain] = {}
    for name, cls in known.items():
        if gates.state[name] == OFF or name in gates.from_preset:
            continue
        for key, domain in cls.space.items():
            if isinstance(domain, Choice):
                domain = Choice(_admitted(cls, key, domain, track=track))
            out[f"{name}.{key}"] = domain
    return out


def _admitted(cls: type[Technique], key: str, domain: Choice, *, track: str) -> tuple[Any, ...]:
    """The options of one setting with which some combination of the other choices is admitted."""
    if cls.verdict is Technique.verdict:
        return domain.options
    others = {n: d.options for n, d in cls.space.items() if isinstance(d, Choice) and n != key}

    def legal(option: Any) -> bool:
        combinations = (dict(zip(others, v, strict=True)) for v in itertools.product(*others.values()))
        return any(cls(cls.Config(**{key: option, **c})).verdict().admitted(track) for c in combinations)

    return tuple(option for option in domain.options if legal(option))


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
        parsed = [parse_value(name, option, field) for option in options]  # pyright: ignore[reportUnknownVariableType]
        for option in parsed:
            check_value(name, option, field)
        return Choice(tuple(dict.fromkeys(parsed)))
    if not {"low", "high"} <= set(spec) or type(field.default) not in (int, float):
        kind = type(field.default).__name__
        raise ValueError(
            f"`{name}` ({kind}) takes choices = [...], a number also low and high, but got {dict(spec)!r}."
        )
    low, high, log = value("low"), value("high"), spec.get("log", False)
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


def largest_shape(
    base: Mapping[str, Any], fixed: Mapping[str, Any], free: Mapping[str, Float | Int | Choice]
) -> Shape:
    """The shape with every free size at its largest: what a size's name in Int.high stands for."""
    values = {k: v for k, v in {**base, **fixed}.items() if k in TRAINER_FIELDS}
    for name, domain in free.items():
        if name in TRAINER_FIELDS:
            values[name] = max(domain.options) if isinstance(domain, Choice) else domain.high
    return Config(**values).shape()


def bounded(name: str, domain: Float | Int | Choice, largest: Shape) -> Float | Int | Choice:
    """The domain with a number where Int.high names a size. ValueError for an unknown size."""
    if not (isinstance(domain, Int) and isinstance(domain.high, str)):
        return domain
    if not hasattr(largest, domain.high):
        sizes = [f.name for f in dataclasses.fields(Shape)]
        raise ValueError(f"`{name}` ends at an unknown size {domain.high!r}. {nearest(domain.high, sizes)}")
    return dataclasses.replace(domain, high=max(domain.low, int(getattr(largest, domain.high))))
