"""The study's starting point as an earlier session measured it; limits that are multiples of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from search.common.attributes import BASELINE
from search.study.model import Study

if TYPE_CHECKING:
    import optuna


def stored(study: optuna.Study) -> dict[str, Any] | None:
    """What an earlier session measured."""
    return study.user_attrs.get(BASELINE)


def with_measured_limits(study: Study, baseline: dict[str, Any] | None) -> Study:
    """The study with its limits in seconds."""
    if baseline is None or not study.limits.relative:
        return study
    limits = study.limits.measured(baseline)
    return dataclasses.replace(study, limits=limits, timeout_seconds=limits.timeout_seconds())
