"""Study: a study file, checked; study_identity, study_hash: what it samples and measures; fresh_seeds."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from search.common.options import SAMPLERS
from search.study.foreign import Foreign
from search.study.limits import Limits
from techniques.base import Choice, Float, Int, setting
from techniques.config import TRAINER_FIELDS, digest

TRACKS = ("record", "open")
TRACKERS = ("mlflow", "wandb")  # search/trackers/
Domain = Float | Int | Choice
Slots = dict[str, tuple[str, ...]]


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

    kind: str = setting("structured", "what makes the proposals", choices=SAMPLERS)
    startup_trials: int = setting(0, "first trials, drawn anywhere; 0: the sampler's own number", low=0)
    max_resamples: int = setting(100, "rejected proposals before random draws", low=1)
    admit: float = setting(
        0.85, "probability of keeping all limits that a configuration needs to be tried", low=0.0, high=1.0
    )
    candidates: int = setting(24, "draws that a proposal of TPE is the best of", low=1)
    replicates: int = setting(
        1, "runs of each feasible configuration, on seeds of their own, once all were tried", low=1, high=64
    )
    reuse: float = setting(
        0.25, "share of the seconds that trials on cached weights may take; 0: none", low=0.0, high=1.0
    )


@dataclass(frozen=True)
class PriorSettings:
    """What is known of BPB before the first trial; search/workers/prior.py reads it."""

    studies: tuple[str, ...] = setting((), "earlier studies of this database, as --from names them")
    published: bool = setting(False, "the published results of studies/published.json")

    @property
    def asked(self) -> bool:
        return bool(self.studies) or self.published


@dataclass(frozen=True)
class Confirm:
    """What the study's end runs again by itself; claims/confirm.py does it."""

    top: int = setting(3, "its best, on fresh seeds", low=1, high=10)
    seeds: int = setting(16, "fresh seeds of each at most; it stops once it is clear", low=4, high=64)


@dataclass(frozen=True)
class Price:
    """The [cost] table."""

    dollars_per_gpu_hour: float = setting(0.0, "what an hour of one GPU costs; 0: not known", low=0.0)


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
    base: dict[str, Any]  # the preset's flat values
    pruning: Pruning
    sampler: SamplerSettings
    num_reports: int
    allow_duplicates: bool
    gpus_per_trial: int
    timeout_seconds: float  # wall seconds after which a trial's processes are killed
    fixed: dict[str, Any] = field(default_factory=dict[str, Any])  # flat settings over the preset; no gates
    free: dict[str, Domain] = field(
        default_factory=dict[str, Domain]
    )  # what may be sampled; Int.high: a number
    bounds: dict[str, str] = field(
        default_factory=dict[str, str]
    )  # setting -> the size that it may not exceed
    gates: dict[str, str] = field(default_factory=dict[str, str])  # every technique -> "free", "on" or "off"
    slots: Slots = field(default_factory=dict[str, tuple[str, ...]])  # the choices that it narrows a slot to
    prior: PriorSettings = PriorSettings()
    confirm: Confirm | None = None
    price: Price = Price()
    trackers: tuple[str, ...] = ()  # of TRACKERS: where each trial is shown too
    foreign: Foreign | None = None  # [trainer]: another script, with a space of its own

    @property
    def gpus(self) -> int:
        """Of one trial; 0 where it demands none."""
        return self.gpus_per_trial if self.settled("device") == "cuda" else 0

    @property
    def in_nats(self) -> bool:
        """Whether its score is a loss in nats per token, not bits per byte."""
        return self.foreign is not None and self.foreign.in_nats

    def settled(self, name: str) -> Any:
        """A trainer setting's value as the study fixes it, the largest one where it is free."""
        domain = self.free.get(name)
        if domain is not None:
            return max(domain.options) if isinstance(domain, Choice) else domain.high
        default = TRAINER_FIELDS[name].default
        return self.fixed.get(name, self.base.get(name, default))


def own_seed(study: Study) -> int | None:
    """The seed of every trial that is no replicate; None where a script has its own."""
    found = study.foreign.fixed.get(study.foreign.seed, "") if study.foreign else study.settled("seed")
    return int(found) if str(found).isdecimal() else None


def study_identity(study: Study) -> dict[str, Any]:
    """What a study samples and measures; stored with the Optuna study, so that edits show."""
    as_it_is = ("track", "base", "fixed", "bounds", "gates", "num_reports")
    kept: dict[str, Any] = {name: getattr(study, name) for name in as_it_is}
    kept["limits"] = study.limits.declared()
    kept["free"] = {name: [type(d).__name__, dataclasses.asdict(d)] for name, d in study.free.items()}
    kept["slots"] = {slot: list(choices) for slot, choices in study.slots.items()}
    if study.gpus_per_trial != 1:
        kept["gpus_per_trial"] = study.gpus_per_trial
    return kept if study.foreign is None else kept | {"trainer": study.foreign.identity()}


def study_hash(study: Study) -> str:
    return digest(study_identity(study))


def fresh_seeds(question: str, count: int, known: set[int]) -> list[int]:
    """Seeds that follow from the question alone, none of them in use."""
    found = list[int]()
    i = 0
    while len(found) < count:
        seed = int(digest([question, "seed", i])[:8], 16) % (2**31 - 1)
        if seed not in known and seed not in found:
            found.append(seed)
        i += 1
    return found
