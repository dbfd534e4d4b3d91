"""arms_of(words, ...) -> [base, others]: the configurations that a question compares.

    leaky_relu2                   with it against without it
    smear_gate                    it has modes: each of them against without it
    smear_gate.mode=previous,average   these modes (a choice) against the base without the technique
    xsa.last_n=1,3                each value of a number against the first; a single value against the base
    A.json B.json                 the second file against the first
    --trial 7 --trial 18          the second trial against the first

The base is a preset, a configuration file, or the number of a trial of the study.
"""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from search.common.attributes import CONFIG
from search.report.trial import trial_of
from search.session.session import Session
from search.space.native import native_space
from search.stage_cache.addresses import code_of
from search.study.model import Study
from techniques import catalog
from techniques.base import Choice, nearest, parse_value
from techniques.config import (
    PRESETS,
    TRAINER_FIELDS,
    Resolved,
    digest,
    known_field,
    read_layer,
    read_preset,
    resolve,
    settings_of,
)

Layer = Mapping[str, Any]
OpenSession = Callable[[], Session]  # of the study; ValueError when there is none
MODE = "mode"  # the choice of a technique that is one of several
TOLD_ONLY = {"num_reports": 0}  # an early report costs a quarter of an evaluation, and changes no result


@dataclass(frozen=True)
class Arm:
    """One configuration, without its seed."""

    label: str  # in tables and sentences
    preset: str  # "" for none
    layer: Layer  # flat, over the preset
    own_seed: int  # that it says itself: no fresh one

    def config(self, seed: int) -> dict[str, Any]:
        """config.json of a run."""
        return {**self.settings(), **TOLD_ONLY, "seed": seed}

    def settings(self) -> dict[str, Any]:
        """Its configuration, for a file."""
        return {**({"preset": self.preset} if self.preset else {}), **self.layer}

    def resolved(self, seed: int = 0) -> Resolved:
        """ValueError for what contradicts itself."""
        layers = {"preset": read_preset(self.preset) if self.preset else {}, "file": self.config(seed)}
        layers["file"].pop("preset", None)
        try:
            return resolve(layers, catalog.metadata())
        except ValueError as error:
            raise ValueError(f"{self.label}: {error}") from None

    def identity(self) -> dict[str, Any]:
        """What its results depend on, seed, data and machine apart."""
        found = self.resolved()
        return {"values": {**found.identity(), "seed": None}, "code": code_of(found)}

    @property
    def tokenizer(self) -> str:
        """Its path."""
        return self.resolved().config.tokenizer_path

    def has_text_of(self, other: "Arm") -> bool:
        """Whether a token is the same piece of text in both: one tokenizer, one data."""
        return (self.tokenizer, self.resolved().config.data_path) == (
            other.tokenizer,
            other.resolved().config.data_path,
        )

    @property
    def folder(self) -> str:
        """The name of its folder: the label as far as a path may say it, then a hash of it."""
        plain = re.sub(r"[^\w.=+-]+", "_", self.label)[:40]
        return plain if plain == self.label and plain.strip(".") else f"{plain}-{digest(self.label)[:6]}"


def arm_of_source(source: str, session: OpenSession) -> Arm:
    """A preset, a file, or a trial's number. ValueError for anything else."""
    if source.isdecimal():
        return arm_of_trial(session(), int(source))
    path = Path(source)
    if path.suffix in (".json", ".toml"):
        layer = {k: v for k, v in read_layer(path).items() if k.partition(".")[0] != "about"}
        preset = str(layer.pop("preset", ""))
        return _arm(path.stem, preset, layer)
    names = sorted(p.stem for p in PRESETS.glob("*.toml"))
    if source not in names:
        raise ValueError(
            f"A configuration is a preset, a JSON or TOML file or a trial's number, but got {source!r}. "
            f"{nearest(source, names)}"
        )
    return _arm(source, source, {})


def arm_of_trial(session: Session, number: int, label: str = "") -> Arm:
    """The configuration of a stored trial. ValueError where it has none."""
    refuse_foreign(session.study)
    attrs = trial_of(session, number).user_attrs
    if CONFIG not in attrs:
        raise ValueError(f"Trial {number} of {session.study.name} has no configuration: it never began.")
    layer = dict(attrs[CONFIG])
    return _arm(label or f"#{number}", str(layer.pop("preset", "")), layer)


def refuse_foreign(study: Study) -> None:
    if study.foreign is not None:
        raise ValueError(
            f"Fresh seeds need a trainer of ours, but {study.name!r} runs another script. Run its "
            "configurations again with other seeds by hand (docs/any_trainer.md)."
        )


def arm_of_study(study: Study) -> Arm:
    """What the study starts from: its preset and what it fixes, free techniques off."""
    refuse_foreign(study)
    layer = dict(native_space(study, catalog.metadata()).config({}))
    return _arm(study.name, str(layer.pop("preset", "")), layer)


def _arm(label: str, preset: str, layer: Layer) -> Arm:
    kept = {k: v for k, v in layer.items() if k not in ("seed", "out_dir")}
    known = catalog.metadata()
    for name in kept:
        known_field(name, known)
    own = {**(read_preset(preset) if preset else {}), **layer}.get("seed", TRAINER_FIELDS["seed"].default)
    if not isinstance(own, int):
        raise ValueError(f"{label}: `seed` takes a whole number, but got {own!r}.")
    return Arm(label, preset, kept, own)


def arms_of(
    words: Sequence[str], trials: Sequence[int], base: Callable[[], Arm], session: OpenSession
) -> list[Arm]:
    """[the base, what is compared with it, ...]; `base()` gives the one to start from. ValueError."""
    files = [word for word in words if word.endswith((".json", ".toml"))]
    if len(trials) == 2 and not words:
        found = [arm_of_trial(session(), number) for number in trials]
    elif len(files) == 2 and len(words) == 2 and not trials:
        found = [arm_of_source(word, session) for word in words]
    elif len(words) == 1 and not trials and not files:
        found = varied(words[0], base())
    elif len(words) + len(trials) == 1:
        found = [
            base(),
            *(arm_of_trial(session(), n) for n in trials),
            *(arm_of_source(w, session) for w in files),
        ]
    else:
        raise ValueError(
            "A comparison is of a technique (smear_gate), of values (xsa.last_n=1,3), of two files (A.json "
            f"B.json) or of two trials (--trial 7 --trial 18), but got {[*words, *trials]}."
        )
    return distinct(found)


def distinct(arms: Sequence[Arm]) -> list[Arm]:
    """The arms, each another run and of another name. ValueError for two that are one."""
    seen: dict[str, str] = {}
    found = list[Arm]()
    for arm in arms:
        key = digest(arm.identity())
        if key in seen:
            raise ValueError(
                f"A comparison needs two different runs, but {arm.label} and {seen[key]} have the same "
                "settings. Change one, or give another --base."
            )
        seen[key] = arm.label
        names = {a.label for a in found}
        label = arm.label if arm.label not in names else f"{arm.label} ({len(found) + 1})"
        found.append(replace(arm, label=label))
    return found


def varied(word: str, base: Arm) -> list[Arm]:
    """What `smear_gate`, `smear_gate.mode=a,b` or `matrix_lr=0.02,0.04` asks of a base."""
    name, equals, text = word.partition("=")
    known = catalog.metadata()
    field = known_field(name, known)
    owner = name.partition(".")[0]
    on = bool(base.resolved().values.get(owner, False))
    if field is None:
        if equals:
            raise ValueError(
                f"`{name}` is a technique: compare {name} has it with and without. Drop ={text}."
            )
        off = without(base, owner) if on else with_needs(base, owner)
        kept = base if on else off
        if isinstance(modes := known[owner].space.get(MODE), Choice):
            return [off, *(with_technique(kept, owner, str(mode)) for mode in modes.options)]
        return [off, base if on else with_technique(off, owner)]
    if not text:
        raise ValueError(f"`{name}` is a setting: say its values, as in {name}={field.default},…")
    changes = [{name: parse_value(name, one, field)} for one in text.split(",")]
    if owner not in known:
        arms = [_with(base, change, f"{name}={change[name]}") for change in changes]
        return arms if len(arms) > 1 else [base, *arms]
    base = with_needs(base, owner)
    arms = [_with(base, {owner: True} | change, f"{name}={change[name]}") for change in changes]
    modes = isinstance(known[owner].space.get(name.partition(".")[2]), Choice)
    if modes or len(arms) == 1:
        return [without(base, owner) if modes else base, *arms]
    return arms


def _with(base: Arm, change: Layer, label: str) -> Arm:
    return replace(base, label=label, layer={**base.layer, **change})


def with_technique(base: Arm, name: str, mode: str = "") -> Arm:
    """The base with a technique on, in one of its modes where one is given: as it is by default, else (a
    default may ask for more layers than a small model has) with the first value of one of its settings'
    spaces that fits, which its label then says."""
    on = {name: True} | ({f"{name}.{MODE}": mode} if mode else {})
    label = f"{name}.{MODE}={mode}" if mode else name
    arm = _with(base, on, label)
    try:
        arm.resolved()
        return arm
    except ValueError as error:
        for setting, within in catalog.metadata()[name].space.items():
            if mode and setting == MODE:
                continue
            for value in within.options if isinstance(within, Choice) else (within.low,):
                other = _with(base, on | {f"{name}.{setting}": value}, f"{label} with {setting}={value}")
                with contextlib.suppress(ValueError):
                    other.resolved()
                    return other
        raise ValueError(f"{error} A setting can be said: compare {name}.SETTING=VALUE.") from None


def with_needs(base: Arm, name: str) -> Arm:
    """The base with what a technique needs: both arms have it, the question is of the technique alone."""
    known = catalog.metadata()
    waiting = [name]
    needs = dict[str, bool]()
    values = base.resolved().values
    while waiting:
        for need in known[waiting.pop()].requires:
            if not values[need] and need not in needs:
                needs[need] = True
                waiting.append(need)
    return _with(base, needs, f"{base.label} with {', '.join(needs)}") if needs else base


def without(base: Arm, *names: str) -> Arm:
    """The base with techniques off, and those that need them; settings of others that mean something only
    with them at their defaults. The base itself where all are off."""
    gone = gone_with(base, *names)
    if not gone:
        return base
    on = base.resolved().techniques
    back = {
        f"{name}.{field}": settings_of(type(technique))[field].default
        for name, technique in on.items()
        for field, other in technique.setting_requires.items()
        if name not in gone and other in gone
    }
    kept = {k: v for k, v in base.layer.items() if k.partition(".")[0] not in gone}
    label = f"without {', '.join(gone)}"
    return replace(base, label=label, layer={**kept, **back, **dict.fromkeys(gone, False)})


def gone_with(base: Arm, *names: str) -> list[str]:
    """What must go when these go: those of them that are on, then the techniques that need one of them."""
    on = base.resolved().techniques
    gone = [name for name in names if name in on]
    for name in gone:  # grows on the way
        gone += [n for n, technique in on.items() if name in technique.requires and n not in gone]
    return gone
