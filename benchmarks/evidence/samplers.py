"""Searches of a problem whose runs cost nothing, sampler by sampler, and what a set of them shows.

A problem is a study, its space and a function that says what a run would give. Samplers behind the product's
admission (contradictions, duplicates, predicted bytes and seconds) go through `CaddieSampler`, as in a real
study; `optuna_tpe` is Optuna's TPE as it comes, with the measured constraints and nothing else. Every
search begins with the study's own starting point, if its space holds it.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState

from benchmarks.evidence.files import open_lines, read_lines
from search.common.attributes import RESULT
from search.costs.preflight import Preflight
from search.samplers.caddie import CaddieSampler
from search.samplers.choose import sampled_by
from search.space.space import Space
from search.study.limits import set_all, violations
from search.study.model import Study

OURS = "structured"
METHODS = (OURS, "tpe", "optuna_tpe", "gp", "random")
RIVALS = ("tpe", "optuna_tpe")
AT = (5, 10, 20, 30, 40, 60, 80, 100)  # trials after which regret is told
REFERENCE = 80  # TPE's value at 80 trials within 40, the interval excluding 60
GOAL = 40
DOUBT = 60
LEAST = 10  # searches of a method before anything is told of it
DRAWS = 2000  # of a bootstrap
Params = Mapping[str, Any]
Curves = dict[str, np.ndarray]  # method -> regret of the best so far [searches, trials], BPB


@dataclass(frozen=True)
class Problem:
    """`run(params, rng)` gives a result (val_bpb and the figures of the limits); `regret(params)` is what
    the configuration truly is above some best, BPB: at 0 there is nothing more to find."""

    study: Study
    space: Space
    run: Callable[[Params, np.random.Generator], Mapping[str, float]]
    regret: Callable[[Params], float]


def sampler_of(method: str, problem: Problem, seed: int) -> BaseSampler:
    if method == "optuna_tpe":
        return TPESampler(seed=seed)
    study = sampled_by(problem.study, method)
    return CaddieSampler(problem.space, Preflight(study), seed=seed)


def search(method: str, problem: Problem, seed: int, trials: int) -> list[float]:
    """True regret of the best feasible observation after each trial that ran; inf before there is one."""
    rng = np.random.default_rng([seed, 11])
    space = problem.space
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(sampler=sampler_of(method, problem, seed))
    with contextlib.suppress(ValueError):
        study.enqueue_trial(space.params_of({"preset": problem.study.preset}))
    best = math.inf
    regret = math.inf
    curve = list[float]()
    while len(curve) < trials and regret > 0.0:
        trial = study.ask()
        params = space.repaired(space.suggest(trial))
        try:
            result = problem.run(params, rng)
        except ValueError:  # settings that contradict each other: a trainer says so at once, at no cost
            study.tell(trial, state=TrialState.FAIL)
            continue
        trial.set_user_attr(RESULT, dict(result))
        broken = violations(result, problem.study.limits)
        set_all(trial, broken)
        study.tell(trial, result["val_bpb"])
        if result["val_bpb"] < best and all(v <= 0 for v in broken.values()):
            best = result["val_bpb"]
            regret = problem.regret(params)
        curve.append(regret)
    return [*curve, *([regret] * (trials - len(curve)))]


def search_all(
    problem: Problem, out: Path, seeds: Mapping[str, int], *, trials: int, minutes: float = math.inf
) -> None:
    """Searches that `out` does not hold, seed by seed so that what is there at any time is balanced."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    done = {(one["method"], one["seed"]) for one in read_lines(out) if len(one["curve"]) >= trials}
    begun = time.monotonic()
    with open_lines(out) as file:
        for seed in range(max(seeds.values())):
            for method in (m for m, most in seeds.items() if seed < most and (m, seed) not in done):
                if time.monotonic() - begun > 60.0 * minutes:
                    print("out of time: the same command continues")
                    return
                spent = time.process_time()
                curve = search(method, problem, seed, trials)
                one = {"method": method, "seed": seed, "cpu_s": time.process_time() - spent}
                kept = [round(v, 5) if math.isfinite(v) else None for v in curve]
                file.write(json.dumps({**one, "curve": kept}) + "\n")
                file.flush()
                print(f"{method} {seed}: {kept[-1]}, {one['cpu_s']:.1f} s", flush=True)


def curves_of(out: Path, trials: int) -> Curves:
    """All searches of at least so many trials, of methods with LEAST of them."""
    found: dict[str, dict[int, list[float]]] = {}
    for one in read_lines(out):
        if len(one["curve"]) >= trials:
            curve = [math.inf if v is None else v for v in one["curve"][:trials]]
            found.setdefault(one["method"], {})[one["seed"]] = curve
    return {m: np.array([r[s] for s in sorted(r)]) for m, r in found.items() if len(r) >= LEAST}


def reached(curves: np.ndarray, value: float) -> float:
    """Trials after which the median search is at `value` or below; inf: never."""
    at = np.flatnonzero(np.median(curves, axis=0) <= value)
    return float(at[0] + 1) if len(at) else math.inf


def resampled(rng: np.random.Generator, curves: np.ndarray) -> np.ndarray:
    return curves[rng.integers(len(curves), size=len(curves))]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of bootstrap draws."""
    low, high = np.quantile(values, [0.025, 0.975], method="nearest")
    return float(low), float(high)


def trials_to_reach(curves: Curves, method: str, rival: str) -> tuple[float, float, float]:
    """(trials, low, high): the median search of `method` against the median of `rival` after REFERENCE
    trials; both are resampled for the 95 % interval."""
    rng = np.random.default_rng(0)

    def once(ours: np.ndarray, theirs: np.ndarray) -> float:
        return reached(ours, float(np.median(theirs[:, REFERENCE - 1])))

    drawn = [once(resampled(rng, curves[method]), resampled(rng, curves[rival])) for _ in range(DRAWS)]
    return once(curves[method], curves[rival]), *interval(drawn)


def regret_table(curves: Curves) -> str:
    """Median regret in mBPB with its 95 % interval, a row a method."""
    rng = np.random.default_rng(0)
    trials = next(iter(curves.values())).shape[1]
    at = [n for n in AT if n <= trials]
    lines = [
        f"| sampler | searches | {' | '.join(f'@{n}' for n in at)} |",
        "| --- |" + " ---: |" * (len(at) + 1),
    ]
    for method in (m for m in METHODS if m in curves):
        cells = list[str]()
        for n in at:
            values = 1e3 * curves[method][:, n - 1]
            low, high = interval([float(np.median(resampled(rng, values))) for _ in range(DRAWS)])
            cells.append(f"{statistics.median(values):.1f} ({low:.1f} to {high:.1f})")
        lines.append(f"| {method} | {len(curves[method])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def claim_of(curves: Curves) -> str:
    """What README.md may say: against that TPE which is harder to beat, in its median and its interval."""
    found = {rival: trials_to_reach(curves, OURS, rival) for rival in RIVALS if rival in curves}
    rival = max(found, key=lambda name: found[name])
    trials, low, high = found[rival]
    after = f"as far after {trials:.0f} trials" if math.isfinite(trials) else "not as far within its trials"
    return (
        f"the median search of the sampler is {after} (95 % interval {told(low)} to "
        f"{told(high)}) as that of the better of two TPEs after {REFERENCE}"
    )


def told(trials: float) -> str:
    return f"{trials:.0f}" if math.isfinite(trials) else "more than were run"


def reach_sentences(curves: Curves) -> str:
    """Trials to a rival's value at REFERENCE, and whether that meets the aim."""
    lines = list[str]()
    for rival in RIVALS:
        if rival not in curves or OURS not in curves:
            continue
        ours, low, high = trials_to_reach(curves, OURS, rival)
        back, back_low, back_high = trials_to_reach(curves, rival, OURS)
        between = f" ({told(back_low)} to {told(back_high)})" if math.isfinite(back_low) else ""
        met = "met" if ours <= GOAL and high < DOUBT else "not met"
        lines.append(
            f"- The median search of `{OURS}` reaches what the median one of `{rival}` has after "
            f"{REFERENCE} trials after **{told(ours)}** (95 % interval {told(low)} to {told(high)}); the "
            f"other way round: {told(back)}{between}. Aim, {GOAL} with an "
            f"interval below {DOUBT}: {met}."
        )
    return "\n".join(lines) + "\n"
