"""What may be tried: contradictions, legality and limits, before a trial is spent."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search.common.console import counted
from search.common.numeric import draw
from search.costs.preflight import Costs, costs_of
from search.space.native import build_space
from search.space.space import Space, endless
from search.study.model import Study
from search.trainers.trainer import trainer_of
from techniques import catalog


class Infeasible(ValueError):
    """No configuration of the study can be tried."""


def draw_all(space: Space, rng: np.random.Generator) -> dict[str, Any]:
    return {name: draw(dist, rng) for name, dist in space.distributions.items()}


def smallest(space: Space) -> dict[str, Any]:
    """Every gate off, every slot at its first choice, every number at its lowest."""
    return {
        name: dist.choices[0] if isinstance(dist, CategoricalDistribution) else dist.low
        for name, dist in space.distributions.items()
        if isinstance(dist, CategoricalDistribution | FloatDistribution | IntDistribution)
    }


def examine(
    space: Space, preflight: Costs, params: Mapping[str, Any], *, doubtful: bool = False
) -> tuple[Any | None, str | None]:
    """(the run, why it cannot be tried): `contradiction: …`, or the preflight's reason, or None."""
    try:
        resolved = space.resolve(params)
    except ValueError as error:
        return None, f"contradiction: {error}"
    return resolved, preflight.rejection(resolved, doubtful=doubtful)


def require_feasible(space: Space, preflight: Costs, *, draws: int = 500, seed: int = 0) -> None:
    """Infeasible (a ValueError) unless some of many draws may keep the limits: before the first trial."""
    rng = np.random.default_rng(seed)
    reasons, least, closest = Counter[str](), None, ""
    for k in range(draws):
        params = smallest(space) if k == 0 else space.repaired(draw_all(space, rng))
        resolved, reason = examine(space, preflight, params, doubtful=True)
        if reason is None:
            return
        kind = reason.partition(":")[0]
        reasons[kind] += 1
        said = None if resolved is None else preflight.predict(resolved)
        if said is not None:
            bytes_ = said.artifact_bytes
            least = bytes_ if least is None else min(least, bytes_)
        if kind == "contradiction" and not closest:
            closest = f" For example: {reason.partition(': ')[2]}"
    raise Infeasible(_nothing_left(preflight, reasons, draws=draws, least=least) + closest)


def _nothing_left(preflight: Costs, reasons: Mapping[str, int], *, draws: int, least: int | None) -> str:
    counts = ", ".join(f"{kind} {count}" for kind, count in Counter(reasons).most_common())
    limits = preflight.study.limits
    smallest_bytes = f"; the smallest is predicted at {least:,} bytes" if least is not None else ""
    return (
        f"Some configuration of a study must keep its limits ({limits.summary()}), but {draws} draws "
        f"are all rejected ({counts}){smallest_bytes}. Raise the limit that rejects most, or widen [space] "
        f"in {preflight.study.path}."
    )


def check_replicates(study: Study, space: Space) -> None:
    """ValueError where replicates would never begin."""
    name = endless(space)
    if study.sampler.replicates > 1 and (name or study.allow_duplicates):
        why = f"`{name}` is a real number: give it choices = [...]" if name else "allow_duplicates is on"
        raise ValueError(
            "`replicates` in [sampler] runs configurations on further seeds once all were tried, but this "
            f"space is never used up ({why}). Or leave it out: `python search.py confirm` runs the best "
            "trials on fresh seeds."
        )


def check_space(study: Study) -> str:
    """ValueError unless something of the space can be tried. Returns its size in words."""
    space = build_space(study, catalog.metadata())
    check_replicates(study, space)
    require_feasible(space, costs_of(trainer_of(study), study))
    switches = counted(len(space.switchable()), "technique")
    return f"{counted(len(space.distributions), 'parameter')}, {switches} to switch"
