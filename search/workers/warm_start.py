"""find_warm_start(session, hardware) -> WarmStart: costs begin with what others in the database paid.

Bytes: trials of the same trainer, whatever their sizes, data and machine: the bills hold what differs.
Seconds: only those of the same hardware, ranks and kernels; of an evaluation of all validation tokens,
whose number no bill knows, only on the same data. Trials of this study push those of others out, and what
leaves nothing to try is forgotten (search/samplers/caddie.py). The newest CARRIED trials are read, first
those of studies on this kind of machine.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from optuna.trial import FrozenTrial, TrialState

from search.common import attributes
from search.common.attributes import HARDWARE, result_of
from search.common.console import counted
from search.costs.bills import num_params
from search.costs.factors import CARRIED
from search.costs.preflight import Costs
from search.session.passport import BUILT_IN
from search.session.session import Session
from search.space.space import Space
from search.storage.bulk import BatchStorage
from search.study.model import Study
from techniques import catalog
from techniques.base import Choice
from techniques.config import Resolved, resolve

STUDIES = """
select s.study_id, s.study_name, a.key, a.value_json from studies s
join study_user_attributes a on a.study_id = s.study_id where a.key = any(:keys)"""
NEWEST = """
select trial_id, study_id from trials where study_id = any(:ids) and cast(state as text) = 'COMPLETE'
order by study_id = any(:near) desc, datetime_complete desc limit :most"""
KERNELS = ("compute_dtype", "compile", "attention")  # settings that move seconds and stand in no bill
SECONDS = (attributes.TRAIN_SECONDS, attributes.EVAL_SECONDS, attributes.STAGE_SECONDS)
NAMED = 3  # studies that are named at the start


@dataclass(frozen=True)
class EarlierTrial:
    """One finished trial of another study."""

    study: str
    resolved: Resolved
    result: Mapping[str, Any]


@dataclass(frozen=True)
class WarmStart:
    """What is carried over, the most telling last."""

    trials: tuple[EarlierTrial, ...] = ()

    def apply(self, preflight: Costs) -> None:
        """Teaches the preflight, before the first trial of its own study."""
        for trial in self.trials:
            preflight.learn([(trial.resolved, trial.result)], study=trial.study)

    def summary(self, *, seconds: bool = True) -> str:
        """One line; "" when there are none. `seconds`: the trials will run here."""
        count = len(self.trials)
        names = list(dict.fromkeys(trial.study for trial in reversed(self.trials)))
        if not count:
            return ""
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        of = f"{'studies' if len(names) > 1 else 'study'} {', '.join(names[:NAMED])}{more}"
        timed = sum(attributes.TRAIN_SECONDS in trial.result for trial in self.trials)
        some = f", seconds of this machine from {timed or 'none'}" if seconds and timed < count else ""
        return f"costs: learnt from {counted(count, 'trial')} of {of}{some}"


def find_warm_start(session: Session, hardware: str) -> WarmStart:
    """For a study whose trials run on this hardware; none once its own would push all of them out again."""
    storage = session.optuna_study._storage  # pyright: ignore[reportPrivateUsage]
    if not session.trainer.predicts_costs or not isinstance(storage, BatchStorage):
        return WarmStart()
    own = session.optuna_study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    studies = related_studies(session, storage) if len(own) < CARRIED else {}
    if not studies:
        return WarmStart()
    here = session.optuna_study.user_attrs.get(HARDWARE)
    near = [key for key, facts in studies.items() if facts.get(HARDWARE) == here]
    which = {"ids": list(studies), "near": near, "most": CARRIED}
    owners: dict[int, int] = dict(map(tuple, storage.bulk.rows(NEWEST, which)))
    trials = {t._trial_id: t for t in storage.bulk.trials_of(list(owners))}  # pyright: ignore[reportPrivateUsage]
    found: list[EarlierTrial] = []
    for trial_id, owner in reversed(owners.items()):
        trial = trials[trial_id]
        facts = studies[owner]
        resolved = resolved_run(trial, facts[attributes.STUDY_IDENTITY])
        result = result_of(trial)
        if resolved is not None and result is not None:
            kept = comparable(session.study, hardware, resolved, trial, result)
            found.append(EarlierTrial(facts["name"], resolved, kept))
    return WarmStart(tuple(found))


def teach_baseline(preflight: Costs, space: Space, baseline: Mapping[str, Any]) -> None:
    """The study's starting point is its first own run: it tells how fast the machine is that measured it."""
    if HARDWARE in baseline and (start := space.resolve({})).hash() == baseline.get("hash"):
        preflight.learn([(start, baseline)])


def related_studies(session: Session, storage: BatchStorage) -> dict[int, dict[str, Any]]:
    """id -> name and attributes of the other studies of this trainer: this very code, or any of ours."""
    studies: dict[int, dict[str, Any]] = {}
    keys = [attributes.CODE_HASH, attributes.TRAINER, HARDWARE, attributes.STUDY_IDENTITY]
    for study_id, name, key, value in storage.bulk.rows(STUDIES, {"keys": keys}):
        studies.setdefault(study_id, {"name": name})[key] = json.loads(value)
    mine = session.optuna_study.user_attrs
    ours = mine.get(attributes.TRAINER) == BUILT_IN

    def fits(facts: Mapping[str, Any]) -> bool:
        same = attributes.CODE_HASH in facts and facts[attributes.CODE_HASH] == mine.get(attributes.CODE_HASH)
        same = same or (ours and facts.get(attributes.TRAINER) == BUILT_IN)
        return same and facts["name"] != session.study.name and attributes.STUDY_IDENTITY in facts

    return {key: facts for key, facts in studies.items() if fits(facts)}


def resolved_run(trial: FrozenTrial, identity: Mapping[str, Any]) -> Resolved | None:
    """The run of a stored trial; None where this version no longer reads it as the model that was trained."""
    config: object = trial.user_attrs.get(attributes.CONFIG)
    if not isinstance(config, dict):
        return None
    layer = {k: v for k, v in cast("dict[str, Any]", config).items() if k != "preset"}
    try:
        resolved = resolve({"preset": identity["base"], "file": layer}, catalog.metadata())
    except (KeyError, ValueError):
        return None
    return resolved if num_params(resolved) == trial.user_attrs.get(attributes.PARAMS) else None


def comparable(
    study: Study, hardware: str, resolved: Resolved, trial: FrozenTrial, result: Mapping[str, Any]
) -> dict[str, Any]:
    """The result without the seconds that say nothing here."""
    passport = cast("Mapping[str, Any]", trial.user_attrs.get(attributes.PASSPORT) or {})
    alike = passport.get(HARDWARE) == hardware and passport.get("world_size") == study.gpus_per_trial
    alike = alike and all(_may_be(study, name, getattr(resolved.config, name)) for name in KERNELS)
    dropped = () if _same_evaluation(study, resolved) else (attributes.EVAL_SECONDS,)
    dropped = dropped if alike else SECONDS
    return {key: value for key, value in result.items() if key not in dropped}


def _same_evaluation(study: Study, resolved: Resolved) -> bool:
    """Whether both score a known number of tokens, or both all of one data set."""
    every = not study.settled("val_tokens")
    if every != (not resolved.config.val_tokens):
        return False
    names = ("data_path", "tokenizer_path", "vocab_size") if every else ()
    return all(_may_be(study, name, getattr(resolved.config, name)) for name in names)


def _may_be(study: Study, name: str, value: Any) -> bool:
    domain = study.free.get(name)
    return value in domain.options if isinstance(domain, Choice) else value == study.settled(name)
