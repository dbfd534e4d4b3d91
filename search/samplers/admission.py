"""What may be tried: contradictions, legality and limits, before a trial is spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search.common.numeric import draw
from search.costs.preflight import Preflight
from search.space.native import SearchSpace
from search.study.model import Study
from techniques.config import Resolved


class Infeasible(ValueError):
    """No configuration of the study can be tried."""


def draw_all(space: SearchSpace, rng: np.random.Generator) -> dict[str, Any]:
    """A uniform draw of every parameter."""
    return {name: draw(dist, rng) for name, dist in space.distributions.items()}


def smallest(space: SearchSpace) -> dict[str, Any]:
    """Every gate off, every slot at its first choice, every number at its lowest."""
    return {
        name: dist.choices[0] if isinstance(dist, CategoricalDistribution) else dist.low
        for name, dist in space.distributions.items()
        if isinstance(dist, CategoricalDistribution | FloatDistribution | IntDistribution)
    }


def examine(
    space: SearchSpace, preflight: Preflight, params: Mapping[str, Any]
) -> tuple[Resolved | None, str | None]:
    """(the run, why it cannot be tried): `contradiction: …`, or the preflight's reason, or None."""
    try:
        resolved = space.resolve(params)
    except ValueError as error:
        return None, f"contradiction: {error}"
    return resolved, preflight.rejection(resolved)


def require_feasible(space: SearchSpace, preflight: Preflight, *, draws: int = 500, seed: int = 0) -> None:
    """Infeasible (a ValueError) unless some of many draws can be tried: before the first trial of a study."""
    rng = np.random.default_rng(seed)
    reasons, least, closest = Counter[str](), None, ""
    for k in range(draws):
        params = smallest(space) if k == 0 else space.repaired(draw_all(space, rng))
        resolved, reason = examine(space, preflight, params)
        if reason is None:
            return
        kind = reason.partition(":")[0]
        reasons[kind] += 1
        if resolved is not None:
            bytes_ = preflight.predict(resolved).artifact_bytes
            least = bytes_ if least is None else min(least, bytes_)
        if kind == "contradiction" and not closest:
            closest = f" For example: {reason.partition(': ')[2]}"
    raise Infeasible(_nothing_left(preflight, reasons, draws=draws, least=least) + closest)


def _nothing_left(preflight: Preflight, reasons: Mapping[str, int], *, draws: int, least: int | None) -> str:
    counts = ", ".join(f"{kind} {count}" for kind, count in Counter(reasons).most_common())
    limits = preflight.study.limits
    smallest_bytes = f"; the smallest is predicted at {least:,} bytes" if least is not None else ""
    return (
        f"Some configuration of a study must keep its limits ({limits.summary()}), but {draws} draws "
        f"are all rejected ({counts}){smallest_bytes}. Raise the limit that rejects most, or widen [space] "
        f"in {preflight.study.path}."
    )


def check_space(study: Study) -> str:
    """ValueError unless something of the space can be tried. Returns its size in words."""
    from search.costs.preflight import preflight_for
    from search.space.build import build_space
    from techniques import catalog

    space = build_space(study, catalog.metadata())
    require_feasible(space, preflight_for(study))
    techniques = len(space.switches) + sum(len(choices) - 1 for choices in space.slots.values())
    return f"{len(space.distributions)} parameters, {techniques} techniques to switch"
