"""Effects: by how much each technique and setting of a study moves val_bpb, how surely, and which clash.

One surrogate (search/samplers/structured/surrogate.py) is fitted to the newest trials, in which everything
varies at once. An effect is a contrast of it, averaged over the tried configurations: with the technique on
less with it off, its own settings as in trials that had it on. A number's contrast is its best place less the
median of what was tried. Intervals are the posterior's, from draws, widened. What the trials do not speak of
shrinks towards 0 with a wide interval; values far above the others count as just above them (`settled`), so
that a hopeless run moves no effect much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from search.common.console import tell
from search.common.numeric import value_at
from search.pruning.pruner import LATEST, is_evidence
from search.report.pruning import print_evidence
from search.report.rows import LEAST, short
from search.samplers.believed import LEARNED, beliefs_of
from search.samplers.caddie import one_thread
from search.samplers.structured.beliefs import LARGEST, Beliefs
from search.samplers.structured.rows import Array
from search.samplers.structured.surrogate import Surrogate

if TYPE_CHECKING:
    from search.session.session import Session

ROOMY = 100  # columns from which a table tells all
DRAWS, AT_ONCE = 200, 50  # from the posterior
PLACES = 21  # of a number, among which its best is sought
SURE = 0.975  # of an interval's one side
WIDER = 1.4  # intervals over the draws' own, which take the fitted variances for true: docs/effects.md
CLASH_SDS = 2.5  # of the draws; a pair is told from here on: there are thousands
CAUTION = (
    "One seed a trial, and everything moves at once: a row says where to look. To be sure, train that one "
    "change alone on several seeds."
)


@dataclass(frozen=True)
class Effect:
    """A change of val_bpb in bits per byte, negative is better; the 95 % interval."""

    name: str
    mean: float
    low: float
    high: float
    better: float  # probability that it is below 0
    trials: int  # that tried it

    @property
    def verdict(self) -> str:
        return "helps" if self.high < 0 else "hurts" if self.low > 0 else "not told"


@dataclass(frozen=True)
class Findings:
    """All of a study's effects, the surest first; pairs: what two do together beyond the sum of both."""

    trials: int
    noise_sd: float  # of one run, and of what the surrogate cannot express; bits per byte
    techniques: tuple[Effect, ...]
    numbers: tuple[Effect, ...]
    pairs: tuple[Effect, ...]


@dataclass(frozen=True)
class _Contrast:
    name: str
    main: Array  # [m]
    pair: Array  # [factors, factors]
    trials: int


@one_thread
def find_effects(trials: Sequence[FrozenTrial], *, seed: int = 0) -> Findings:
    """The effects of a study that minimises val_bpb. ValueError for fewer than LEAST complete trials."""
    done = sorted((t for t in trials if t.state in LEARNED), key=lambda t: t.number)[-LARGEST:]
    complete = [t for t in done if t.state == TrialState.COMPLETE and math.isfinite(t.value or 0.0)]
    if len(complete) < LEAST:
        raise ValueError(
            f"Effects are told from at least {LEAST} complete trials, but this study has {len(complete)}. "
            "Go on with the study's own command and a larger --trials N."
        )
    beliefs = beliefs_of(done)
    model, rng = beliefs.objective.model, np.random.default_rng(seed)
    switches = list(_switches(beliefs, rng))
    contrasts = [*switches, *_numbers(beliefs)]
    if not contrasts:
        raise ValueError("Effects are told of what varies, but in this study's trials nothing does.")
    mean, sd, together, apart = _drawn(model, contrasts, rng)
    effects = [_effect(c.name, m, d, c.trials) for c, m, d in zip(contrasts, mean, sd, strict=True)]
    groups = effects[: len(switches)], effects[len(switches) :], _clashes(beliefs, together, apart)
    return Findings(len(complete), model.noise_sd(), *map(_surest, groups))


def _drawn(
    model: Surrogate, contrasts: Sequence[_Contrast], rng: np.random.Generator
) -> tuple[Array, Array, Array, Array]:
    """(mean, sd) of the contrasts [contrasts] and of the coefficients of pairs [factors, factors]."""
    mains = np.array([c.main for c in contrasts])
    products = np.array([c.pair.ravel() for c in contrasts])
    values: list[Array] = []
    total = squares = np.zeros_like(contrasts[0].pair)
    for _ in range(DRAWS // AT_ONCE):  # blocks: one product of matrices each
        draws = [model.draw(rng) for _ in range(AT_ONCE)]
        pairs = np.array([f.pair.ravel() for f in draws])
        values.append(np.array([f.main for f in draws]) @ mains.T + pairs @ products.T)
        for f in draws:
            both = f.pair + f.pair.T
            total, squares = total + both, squares + both * both
    drawn, middle = np.concatenate(values), total / DRAWS
    apart = np.sqrt(np.maximum(squares / DRAWS - middle**2, 0.0))
    return drawn.mean(axis=0), drawn.std(axis=0), middle, apart


def _effect(name: str, mean: float, sd: float, trials: int) -> Effect:
    normal = NormalDist(float(mean), max(WIDER * float(sd), 1e-12))
    low, high = (normal.inv_cdf(p) for p in (1 - SURE, SURE))
    return Effect(name, normal.mean, low, high, normal.cdf(0.0), trials)


def _surest(effects: Iterable[Effect]) -> tuple[Effect, ...]:
    return tuple(sorted(effects, key=lambda e: -abs(e.mean) / max(e.high - e.low, 1e-12)))


def _contrast(beliefs: Beliefs, name: str, after: Array, before: Array, trials: int) -> _Contrast:
    """Of rows after a change and before it. [n, parameters] each"""
    factors = beliefs.basis.factors
    new, old = beliefs.columns_of(after), beliefs.columns_of(before)
    z, w = new[:, :factors], old[:, :factors]
    return _Contrast(name, (new - old).mean(axis=0), (z.T @ z - w.T @ w) / len(new), trials)


def _switches(beliefs: Beliefs, rng: np.random.Generator) -> Iterator[_Contrast]:
    """A technique on against off; any other choice against the first one."""
    rows = beliefs.rows
    for k, (name, dist) in enumerate(rows.distributions.items()):
        if not isinstance(dist, CategoricalDistribution):
            continue
        own = [rows.at[p] for p, rule in rows.rules.items() if name in rule]
        active = rows.active(beliefs.seen)
        for choice in range(1, len(dist.choices)):
            tried = beliefs.seen[(beliefs.seen[:, k] == choice) & active[:, k]]
            after, before = beliefs.seen.copy(), beliefs.seen.copy()
            after[:, k], before[:, k] = choice, 0
            if len(tried) and own:  # its settings, where it was not tried, are those of a trial that tried it
                lack = beliefs.seen[:, k] != choice
                after[np.ix_(lack, own)] = tried[rng.integers(len(tried), size=int(lack.sum()))][:, own]
            means = rows.active(after)[:, k] & rows.active(before)[:, k]
            if 0 < len(tried) < means.sum():  # otherwise nothing to compare with
                title = _label(name, dist, choice)
                yield _contrast(beliefs, title, after[means], before[means], len(tried))


def _numbers(beliefs: Beliefs) -> Iterator[_Contrast]:
    """Every number at its best place by the mean, against the median of what was tried."""
    rows, mean = beliefs.rows, beliefs.objective.mean
    assert mean is not None
    active = rows.active(beliefs.seen)
    for k, (name, dist) in enumerate(rows.distributions.items()):
        tried = beliefs.seen[active[:, k]]
        if isinstance(dist, CategoricalDistribution) or len(tried) < 2 or np.ptp(tried[:, k]) == 0:
            continue
        before = tried.copy()
        before[:, k] = np.median(tried[:, k])
        places: Array = np.linspace(float(tried[:, k].min()), float(tried[:, k].max()), PLACES)
        moved = [before.copy() for _ in range(PLACES)]
        for after, place in zip(moved, places.tolist(), strict=True):
            after[:, k] = place
        best = int(np.argmin([mean(beliefs.columns_of(after)).mean() for after in moved]))
        old, new = (short(value_at(dist, at), digits=4) for at in (float(before[0, k]), float(places[best])))
        yield _contrast(beliefs, f"{name} {old} → {new}", moved[best], before, len(tried))


def _clashes(beliefs: Beliefs, mean: Array, sd: Array) -> Iterator[Effect]:
    """Pairs whose product counts beyond doubt, by its coefficient's mean and sd [factors, factors]."""
    basis, rows = beliefs.basis, beliefs.rows
    active = rows.active(beliefs.seen)
    on = active & np.where(rows.sizes == 2, beliefs.seen > 0.5, True)
    choices = [1] * len(basis.gates) + basis.choice.astype(int).tolist()  # the first factors are categoricals
    for i, j in np.argwhere(np.triu(np.abs(mean) > CLASH_SDS * sd, 1)).tolist():
        p, q = int(basis.owner[i]), int(basis.owner[j])
        if p != q:
            names = [rows.names[k] for k in (p, q)]
            labels = [
                _label(name, rows.distributions[name], choices[k]) if k < len(choices) else name
                for name, k in zip(names, (i, j), strict=True)
            ]
            both = int((on[:, p] & on[:, q]).sum())
            yield _effect(" × ".join(labels), mean[i, j], sd[i, j], both)


def _label(name: str, dist: BaseDistribution, choice: int) -> str:
    """A technique's name; `name = value` of another choice."""
    assert isinstance(dist, CategoricalDistribution)
    return name if set(dist.choices) <= {False, True} else f"{name} = {dist.choices[choice]}"


def print_effects(console: Console, session: Session, *, top: int = 15) -> None:
    """The tables of a study. ValueError while it has too few trials."""
    trials = sorted(session.optuna_study.get_trials(deepcopy=False), key=lambda t: t.number)
    done = [t.number for t in trials if t.state in LEARNED][-LARGEST:]
    evidence = [t.number for t in trials if is_evidence(t)][-LATEST:]  # as the pruner takes it
    wanted = {*done, *evidence}
    read = {t.number: t for t in session.whole([t for t in trials if t.number in wanted])}
    found = find_effects([read[number] for number in done])
    head = f"{session.study.name}: effects on val_bpb in the newest {found.trials} complete trials, averaged "
    head += f"over what was tried; negative is better. Noise of one trial: {found.noise_sd:.4f}."
    tell(console, head)
    tables: Mapping[str, Sequence[Effect]] = {
        "technique on, against off (a choice: against the first)": found.techniques,
        "number at its best, against the median tried": found.numbers,
        "pair, beyond the sum of both": found.pairs,
    }
    for title, effects in tables.items():
        if effects:
            console.print()
            console.print(_table(title, effects[:top], whole=console.width >= ROOMY))
            if len(effects) > top:
                console.print(f"and {len(effects) - top} less sure (--top)", highlight=False)
    if not found.pairs:
        console.print("\nNo pair does more or less than the sum of both beyond doubt.")
    console.print()
    print_evidence(console, [read[number] for number in evidence], session.study.pruning)
    console.print(f"\n{CAUTION}", highlight=False)


def _table(title: str, effects: Sequence[Effect], *, whole: bool) -> Table:
    """In a narrow terminal without the counts, so that names stay whole."""
    counts = ("better", "trials") if whole else ()
    table = Table(title_justify="left", show_edge=False, pad_edge=False)
    table.add_column(title, overflow="fold")
    for name in ("effect", "95 % interval", *counts):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for e in effects:
        counted = (f"{e.better:.0%}", str(e.trials)) if whole else ()
        numbers = f"{e.mean:+.4f}", f"{e.low:+.4f} to {e.high:+.4f}", *counted
        table.add_row(escape(e.name), *numbers, e.verdict)
    return table
