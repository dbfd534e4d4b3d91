"""proposer_of(space, preflight, seed): what makes the proposals that CaddieSampler checks.

`[sampler] kind` of the study says which: `structured` (the default), `tpe`, `gp` or `random`. Each learns
once a trial (`begin`) and proposes as often as it is asked (`propose`).
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial

from search.common.options import SAMPLERS
from search.costs.preflight import Costs
from search.samplers.admission import examine
from search.samplers.checkpoints import StageChooser
from search.samplers.gp import GaussianProcess
from search.samplers.structured.sources import Source
from search.samplers.tpe import GroupedTpe
from search.space.space import Space
from search.study.limits import UNKNOWN
from search.study.model import Study
from techniques.config import Resolved

TPE_STARTUP = 16  # finished trials before TPE models anything, where the study does not say
START_S = 4.0  # PyTorch's start and the export, which no trial is spared: 3 to 5 s measured on two cores


class Proposer(Protocol):
    """What CaddieSampler needs of a sampler."""

    weighs_stages: bool  # whether it tells gains, and so weighs new training against finished weights

    # learn from all trials but the one that is sampled
    def begin(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None: ...
    def propose(self) -> Mapping[str, Any]: ...  # values of some parameters, active or not; others are drawn
    def reseed_rng(self) -> None: ...  # other random numbers than the parent process's


class Uniform:
    weighs_stages = False

    def begin(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None: ...
    def propose(self) -> Mapping[str, Any]:
        return {}

    def reseed_rng(self) -> None: ...


def sampled_by(study: Study, kind: str) -> Study:
    """The study under another sampler; itself for "". What it samples and its hash stay the same."""
    if kind not in ("", *SAMPLERS):
        raise ValueError(f"A sampler must be one of {', '.join(SAMPLERS)}, but got {kind!r}.")
    settings = dataclasses.replace(study.sampler, kind=kind or study.sampler.kind)
    return dataclasses.replace(study, sampler=settings)


@dataclasses.dataclass(frozen=True)
class Known:
    """What `structured` knows beside the study's own trials."""

    stages: StageChooser | None = None  # finished training, which it weighs
    sources: Sequence[Source] = ()  # earlier studies, which it learns from
    planned: int | None = None  # trials of the whole study


def proposer_of(
    space: Space,
    preflight: Costs,
    seed: int | None,
    *,
    known: Known | None = None,
    refused: Counter[str] | None = None,
) -> Proposer:
    """The sampler that the study asks for. `structured` counts, by reason, what its search turned away
    (`refused`)."""
    settings = preflight.study.sampler
    if settings.kind == "tpe":
        startup = settings.startup_trials or TPE_STARTUP
        candidates = settings.candidates
        groups = space.groups()
        dists = space.distributions
        return GroupedTpe(groups, dists, startup_trials=startup, candidates=candidates, seed=seed)
    if settings.kind == "gp":
        return GaussianProcess(space.distributions, startup_trials=settings.startup_trials, seed=seed)
    if settings.kind == "random":
        return Uniform()
    return _structured(space, preflight, seed, known or Known(), Counter() if refused is None else refused)


def _structured(
    space: Space, preflight: Costs, seed: int | None, known: Known, refused: Counter[str]
) -> Proposer:
    """Ours, with all that space and preflight know before the first trial."""
    from search.samplers.structured.sampler import Prior, StructuredSampler

    def resolved(params: Mapping[str, Any]) -> Resolved:
        return space.resolve(space.repaired(params))

    def admits(params: Mapping[str, Any]) -> bool:
        _, reason = examine(space, preflight, space.repaired(params))
        if reason is not None:
            refused[reason.partition(":")[0]] += 1
        return reason is None

    def seconds(params: Mapping[str, Any]) -> dict[str, float]:
        said = preflight.predict(resolved(params))
        assert said is not None  # what keeps its stages predicts its costs
        return {"train": said.train_seconds or 0.0, "score": START_S + (said.eval_seconds or 0.0)}

    start: Mapping[str, Any] | None = None
    with contextlib.suppress(ValueError):  # a study that cannot express its own preset begins anywhere
        start = space.params_of({"preset": preflight.study.preset})
    prior = Prior(
        space.distributions,
        conditions=space.conditions(),
        keep_active=space.keep_active,
        admits=admits,
        start=start,
        stages=known.stages.stages(seconds) if known.stages else None,
        sources=known.sources,
        unknown=UNKNOWN,
        planned=known.planned,
    )
    settings = preflight.study.sampler
    return StructuredSampler(
        seed=seed, prior=prior, startup_trials=settings.startup_trials or None, candidates=settings.candidates
    )
