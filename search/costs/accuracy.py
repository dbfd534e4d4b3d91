"""A prediction and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from search.common.attributes import PREFLIGHT
from search.study.limits import LIMITS


@dataclass(frozen=True)
class Pair:
    """One prediction and what came of it, in bytes or seconds."""

    predicted: float
    upper: float
    measured: float

    @property
    def error(self) -> float:
        return self.measured / self.predicted - 1.0


def pair_of(attrs: Mapping[str, Any], figure: str) -> Pair | None:
    """The prediction of a figure and its outcome, if there were both."""
    prediction = cast("Mapping[str, float]", attrs.get(PREFLIGHT) or {})
    predicted = prediction.get(figure)
    upper = prediction.get(f"{figure}_upper")
    measured = attrs.get(figure)
    if not (predicted and measured):
        return None
    return Pair(float(predicted), float(upper or predicted), float(measured))


def errors_of(attrs: Mapping[str, Any]) -> dict[str, float]:
    """constraint -> relative error, of the figures that were predicted and measured."""
    pairs = {limit.constraint: pair_of(attrs, limit.figure) for limit in LIMITS}
    return {name: round(pair.error, 4) for name, pair in pairs.items() if pair}
