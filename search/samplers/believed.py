"""believed(trials) -> the surrogate's posterior mean at each of a study's finished trials: the score that a
configuration is expected to have, by what all trials say. The best of many observed scores is partly luck;
the mean takes out what its neighbours contradict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from search.samplers.caddie import one_thread
from search.samplers.structured.beliefs import BEST, LARGEST, Beliefs
from search.samplers.structured.rows import learn_rules
from search.samplers.tpe import settled_params
from search.study.limits import UNKNOWN, feasible

STEPS = 40  # of the fit of the variances
LEARNED = (TrialState.COMPLETE, TrialState.PRUNED)


def beliefs_of(done: Sequence[FrozenTrial]) -> Beliefs:
    """What the surrogate learns of whole, finished trials of a study that minimises. [trials]"""
    complete = [t for t in done if t.state == TrialState.COMPLETE and math.isfinite(t.value or 0.0)]
    space: dict[str, BaseDistribution] = {}
    for trial in done:
        space |= {name: d for name, d in trial.distributions.items() if not d.single()}
    examples = [{n: v for n, v in settled_params(t).items() if n in space} for t in complete]
    beliefs = Beliefs(space, learn_rules(space, examples, numbers=False), unknown=UNKNOWN)
    beliefs.learn(done)
    model = beliefs.objective.model
    y = model.y * model.scale + model.centre
    model.observe(model.columns, y, noise_sd=np.sqrt(model.extra) * model.scale, fit=STEPS)
    beliefs.objective.mean = model.mean()
    return beliefs


def worth_reading(done: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Of finished trials, whole or not, by number: the newest, and the best feasible ones of the others."""
    by_number = sorted(done, key=lambda t: t.number)
    older = by_number[: max(0, len(by_number) - LARGEST + BEST)]
    good = [t for t in older if t.state == TrialState.COMPLETE and feasible(t)]
    best = sorted(good, key=lambda t: t.value or 0.0)[:BEST]
    return [*sorted(best, key=lambda t: t.number), *by_number[len(older) :]]


@one_thread
def believed(done: Sequence[FrozenTrial]) -> Mapping[int, float]:
    """By number, of whole trials that finished, in the objective's unit: the complete ones. {} where nothing
    varies."""
    if all(d.single() for t in done for d in t.distributions.values()):
        return {}
    beliefs = beliefs_of(done)
    mean = beliefs.objective.mean
    assert mean is not None
    return {t.number: float(v) for t, v in zip(beliefs.complete, mean(beliefs.columns), strict=True)}
