"""Earlier studies' BPB for a new one: `--from OLD`, `[prior] studies` and `published` (docs/prior.md).

A trial of a changed space becomes the nearest configuration of this study's space: by its resolved values, so
that a technique which is new here is off, a setting that has a range only here has the value that the run
had, and what is no longer free has the value that this study fixes. Where that is another configuration than
the one that ran, a model of the earlier study alone (search/samplers/structured/surrogate.py) moves the
trial's BPB by what the difference is expected to be, and doubts it by as much as it does not know; what is
doubted more than that study's values spread is left out. Differences that all of its trials share (data,
code, a fixed setting) are its bias, which the sampler learns.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from search.common import attributes
from search.common.attributes import HARDWARE, result_of
from search.common.console import counted
from search.common.paths import ROOT
from search.samplers.structured.rows import Array, Rows
from search.samplers.structured.sources import Source
from search.session.session import Session
from search.space.native import build_space
from search.space.nearest import Values, near_settings, near_stored
from search.space.space import Space
from search.study.limits import feasible, violations
from search.workers.warm_start import SECONDS, comparable
from techniques import catalog
from techniques.base import nearest
from techniques.config import read_preset

PUBLISHED = ROOT / "studies" / "published.json"
RECORDS = "published"  # its name as a source
MOST = 200  # trials that are read of an earlier study: the best, and as many of the newest
ENOUGH = 8  # trials that a model of the earlier study needs
FEW = 3  # published results, with fewer of which nothing is told apart
STEPS = 12  # of the fit of its variances
SCALE = ("num_layers", "model_dim", "iterations")  # where no result has what this space can have, none counts
DATA = ("data_path", "tokenizer_path", "vocab_size", "caseops", "val_tokens")


@dataclass(frozen=True)
class Told:
    """One earlier run: the configuration that ran, and the nearest one of this study's space."""

    ran: Values
    params: Values
    here: Values  # what `params` runs
    bpb: float
    constraints: Mapping[str, float]  # under this study's limits


@dataclass(frozen=True)
class Learnt:
    """What one earlier study teaches."""

    source: Source
    moved: int = 0  # trials whose configuration this space can only come near to
    left: int = 0  # trials that say nothing here
    differs: tuple[str, ...] = ()  # settings of the data that all its trials have otherwise

    def facts(self) -> dict[str, Any]:
        return {"trials": len(self.source.params), "moved": self.moved, "left": self.left} | (
            {"differs": list(self.differs)} if self.differs else {}
        )

    def summary(self) -> str:
        """OLD: 100 trials, 12 of them moved into this space, 3 left out; other data_path."""
        told = f"{self.source.name}: {counted(len(self.source.params), 'trial')}"
        told += f", {self.moved} of them moved into this space" if self.moved else ""
        told += f", {self.left} left out" if self.left else ""
        return told + (f"; other {', '.join(self.differs)}, so its level is biased" if self.differs else "")


def settle(session: Session, given: Sequence[str]) -> list[Learnt]:
    """Before the first trial: what this study learns from, checked and kept with it; a later session goes on
    with it, unless it names others. ValueError for studies that cannot teach it."""
    study = session.optuna_study
    kept: dict[str, Any] = study.user_attrs.get(attributes.PRIOR) or {}
    own = session.study.prior
    names = list(dict.fromkeys([*given, *own.studies])) or still_there(session)
    published = own.published or bool(kept.get("published"))
    structured = session.study.sampler.kind == "structured"
    asked = bool(given) or own.asked
    if not (names or published) or not (structured or asked):  # for a session another sampler goes on
        return []
    if not structured:
        raise ValueError(
            f"Earlier studies' BPB is learnt by the structured sampler, but {session.study.name} is sampled "
            f"by {session.study.sampler.kind}. Drop --from and [prior], or use --sampler structured."
        )
    found = [earlier(session, name) for name in names]
    found += [records(session)] if published else []
    storage = study._storage  # pyright: ignore[reportPrivateUsage]
    ids = {name: storage.get_study_id_from_name(name) for name in names}  # a study may get another name
    studies = {r.source.name: {"id": ids[r.source.name], **r.facts()} for r in found[: len(names)]}
    now = {"studies": studies, "published": published}
    if now != kept:
        study.set_user_attr(attributes.PRIOR, now)
    return found


def sources_of(session: Session, hardware: str) -> list[Source]:
    """For a worker: what `settle` kept, read again under the limits as measured."""
    kept = session.optuna_study.user_attrs[attributes.PRIOR]
    found = [earlier(session, name, hardware).source for name in still_there(session)]
    return found + ([records(session).source] if kept["published"] else [])


def still_there(session: Session) -> list[str]:
    """The names that the studies have now that were kept; who deleted one wanted no more of it."""
    study = session.optuna_study
    found = list[str]()
    kept: dict[str, dict[str, Any]] = study.user_attrs.get(attributes.PRIOR) or {}
    for facts in kept.get("studies", {}).values():
        with contextlib.suppress(KeyError):
            storage = study._storage  # pyright: ignore[reportPrivateUsage]
            found.append(storage.get_study_name_from_id(facts["id"]))
    return found


def earlier(session: Session, name: str, hardware: str = "") -> Learnt:
    """What the study `name` of the same database teaches. ValueError when it cannot."""
    import optuna

    storage = session.optuna_study._storage  # pyright: ignore[reportPrivateUsage]
    names = [n for n in optuna.get_all_study_names(storage) if n != session.study.name]
    if name == session.study.name:
        raise ValueError(
            f"--from and [prior] name an earlier study, but {name!r} is this study itself: its own trials "
            "count anyway. Name another, or drop it."
        )
    if name not in names:
        way_out = nearest(name, names) if names else "Its database holds no other study."
        raise ValueError(
            f"--from and [prior] name a study of the same database, but {name!r} is none. {way_out}"
        )
    old = optuna.load_study(study_name=name, storage=storage)
    check_comparable(session, old, name)
    trials = [t for t in old.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if t.value is not None]
    chosen = worth_reading([t for t in trials if math.isfinite(t.value or 0.0)])
    space = build_space(session.study, catalog.metadata())
    identity: dict[str, Any] = old.user_attrs.get(attributes.STUDY_IDENTITY) or {}
    told = [told_by(session, space, t, identity, hardware) for t in chosen]
    learnt = learn(name, [t for t in told if t], unread=sum(t is None for t in told))
    if not learnt.source.params:
        raise ValueError(
            f"An earlier study must have trials to learn from, but of {name!r} {len(trials)} are complete "
            f"and none can be expressed in {session.study.path}. Run it further, or drop it."
        )
    return learnt


def check_comparable(session: Session, old: Any, name: str) -> None:
    """ValueError unless both studies' val_bpb come from the same trainer, by the same rule."""
    mine = session.optuna_study.user_attrs
    theirs = old.user_attrs
    ran = [Path(str(a.get(attributes.TRAINER, ""))).name for a in (mine, theirs)]
    identities: list[dict[str, Any]] = [a.get(attributes.STUDY_IDENTITY) or {} for a in (mine, theirs)]
    if ran[0] != ran[1] or ("trainer" in identities[0]) != ("trainer" in identities[1]):
        raise ValueError(
            f"BPB is learnt from studies of the same trainer, but {session.study.name} runs "
            f"{ran[0] or 'none'} and {name} ran {ran[1] or 'none'}. Drop it."
        )
    trainers: list[dict[str, Any]] = [i.get("trainer", {}) for i in identities]
    keys = ("score", "occurrence", "score_pattern")
    rules = [{k: t.get(k) for k in keys if k in t} for t in trainers]
    if rules[0] != rules[1]:
        raise ValueError(
            f"BPB is learnt from studies that score by the same rule, but [trainer] has {rules[0]} here and "
            f"{rules[1]} in {name}. Drop it, or score by its rule."
        )


def worth_reading(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """MOST of them: the feasible ones with the best values and, half of all, the newest."""
    newest = sorted(trials, key=lambda t: t.number)[-MOST // 2 :]
    rest = sorted(trials, key=lambda t: (not feasible(t), cast("float", t.value)))
    chosen = {t.number: t for t in newest}
    for trial in rest:
        if len(chosen) >= MOST:
            break
        chosen.setdefault(trial.number, trial)
    return [chosen[number] for number in sorted(chosen)]


def told_by(
    session: Session, space: Space, trial: FrozenTrial, identity: Mapping[str, Any], hardware: str
) -> Told | None:
    """None where this version of the code no longer reads the trial's configuration."""
    config = trial.user_attrs.get(attributes.CONFIG)
    if not isinstance(config, dict):
        return None
    try:
        near = near_stored(space, cast("Values", config), identity.get("base", {}))
    except (KeyError, ValueError):
        return None
    result: Mapping[str, Any] = result_of(trial) or {}
    if near.resolved is not None:
        result = comparable(session.study, hardware, near.resolved, trial, result)
    elif not hardware or result.get(HARDWARE) != hardware:
        result = {key: value for key, value in result.items() if key not in SECONDS}
    found = violations(result, session.study.limits)
    return Told(near.ran, near.params, near.here, float(trial.value or 0.0), found)


def learn(name: str, told: Sequence[Told], *, unread: int = 0) -> Learnt:
    """The source of one earlier study, its BPB moved into this space: see the head of this file."""
    bpb = np.array([t.bpb for t in told])
    varied = {k for t in told for k in t.ran if differs(t.ran, told[0].ran, k)}
    varied |= {k for k in (told[0].ran if told else ()) if any(k not in t.ran for t in told)}
    odd = np.array([any(differs(t.ran, t.here, k) for k in varied) for t in told], dtype=np.bool_)
    shift = np.zeros(len(told))
    doubt = np.where(odd, np.inf, 0.0)
    if odd.any() and len(told) >= ENOUGH:
        shift, doubt = moved(sorted(varied), told, bpb, odd)
    kept = [k for k in range(len(told)) if doubt[k] < np.inf]
    shared = [k for k in DATA if told and all(differs(t.ran, t.here, k) for t in told)]
    source = Source(
        name,
        tuple(told[k].params for k in kept),
        (bpb - shift)[kept],
        doubt[kept],
        tuple({} if odd[k] else told[k].constraints for k in kept),
        tuple(max(told[k].constraints.values(), default=0.0) <= 0.0 for k in kept),
    )
    left = len(told) - len(kept) + unread
    return Learnt(source, moved=int(odd[kept].sum()), left=left, differs=tuple(shared))


def differs(one: Values, other: Values, name: str) -> bool:
    return (name in one) != (name in other) or one.get(name) != other.get(name)


def moved(varied: Sequence[str], told: Sequence[Told], bpb: Array, odd: Any) -> tuple[Array, Array]:
    """(BPB that each run has over its nearest configuration here, its sd, inf: above the values' own), by a
    model of that study."""
    from search.samplers.structured.surrogate import Basis, Surrogate, settled

    both = [dict(v) for v in (*(t.ran for t in told), *(t.here for t in told))]
    for name in varied:
        if all(v.get(name, True) is True for v in both):  # a gate: what is off is not told
            both = [{**v, name: name in v} for v in both]
    rows = Rows({name: range_of([v[name] for v in both if name in v]) for name in varied}, {})
    basis = Basis(rows.distributions)
    present = np.array([[n in v for n in varied] for v in both])
    encoded = rows.encode([{n: v[n] for n in varied if n in v} for v in both])
    columns = basis.columns(encoded, present)
    ran = columns[: len(told)]
    here = columns[len(told) :]
    model = Surrogate(basis, pairs=False)
    model.observe(ran, settled(bpb), fit=STEPS)
    mean = model.mean()
    doubt = model.contrast_sd(ran - here)
    doubt = np.where(doubt > settled(bpb).std(), np.inf, doubt)
    return np.where(odd, mean(ran) - mean(here), 0.0), np.where(odd, doubt, 0.0)


def range_of(values: Sequence[Any]) -> BaseDistribution:
    """Of a setting's values: numbers as a range, anything else as choices."""
    different = list(dict.fromkeys(values))
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in different) or len(different) < 3:
        return CategoricalDistribution(tuple(different))
    low = float(min(different))
    high = float(max(different))
    return FloatDistribution(low, high, log=low > 0 and high / low >= 10)


def records(session: Session) -> Learnt:
    """What studies/published.json says of configurations that this study's space can come near to."""
    space = build_space(session.study, catalog.metadata())
    if not session.trainer.built_in:
        raise ValueError(
            f"Published results are of this trainer's techniques, but {session.study.path} drives another "
            "script. Drop `prior.published`."
        )
    told: list[Told] = []
    results: list[dict[str, Any]] = json.loads(PUBLISHED.read_text(encoding="utf-8"))["result"]
    for result in results:
        layers = {"preset": read_preset(result["preset"]), "file": result.get("settings", {})}
        try:
            near = near_settings(space, layers)
        except ValueError:
            continue
        told.append(Told(near.ran, near.params, near.here, float(result["val_bpb"]), {}))
    found = learn(RECORDS, told, unread=len(results) - len(told))
    other_scale = any(all(differs(t.ran, t.here, k) for t in told) for k in SCALE)
    like = 0 if other_scale else len(found.source.params)
    if like < FEW:
        raise ValueError(
            f"Published results must be of runs like this study's, but of {len(results)} only "
            f"{like} can be expressed in {session.study.path}. Drop `prior.published`."
        )
    return found
