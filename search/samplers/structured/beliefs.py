"""Beliefs: what a study's trials say about the objective and every constraint, as surrogates over rows.

Objective: complete trials; running ones stand in at the posterior mean (fantasies), so that workers spread;
pruned ones at what a line through the complete trials' reports at that step predicts, with the scatter around
it as noise. Constraints, each a surrogate without pairs: log(1 + relative violation), which is additive for
sizes and times; one with two values only (it diverged or not) becomes ±1. What is infinite counts as somewhat
beyond the finite values. Trials of earlier studies are rows of the objective under a bias and a trust of
their own (search/samplers/structured/sources.py), and rows like any other of the constraints.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from search.common.numeric import Distributions
from search.samplers.structured.rows import Array, Rows, Rules, Settings
from search.samplers.structured.sources import Index, Source
from search.samplers.structured.surrogate import Basis, Function, Surrogate, settled
from search.samplers.tpe import settled_params

FIT_STEPS, CONSTRAINT_STEPS = 12, 10  # of L-BFGS, each time the variances are fitted
GROWTH, LATE_GROWTH = 1.04, 1.25  # of the number of trials between two fits, before LATE and from there on
LATE = 250  # trials
IN_TURN = 100  # trials beyond which no two models are fitted in one ask
LARGEST, BEST = 400, 50  # trials that are learned from: the newest, and of the others the best feasible ones
EARLIER = 50  # trials of earlier studies that are read at least, the best; else as many as LARGEST leaves
CAUTION = 0.5  # noise sds of a constraint between its prediction and the limit
BINARY_CAUTION = 0.3  # on ±1
LEAST_REPORTS = 8  # complete trials with a report at a step, without which it predicts nothing
FEW = 4  # values of a constraint without which nothing is learned
BEYOND = 0.5  # of the finite values' range: how far outside infinity stands
MOST = 1e100  # of an absolute value: its square is a number still


@dataclass(frozen=True)
class Data:
    """What the objective's model is told: `noise_sd` is 0 of a complete trial."""

    rows: Array  # [n, parameters]
    y: Array  # [n], to be small
    noise_sd: Array  # [n]
    running: Array  # rows [q, parameters] of running trials


@dataclass
class Learned:
    """A surrogate, how many trials its variances were fitted to, and its mean."""

    model: Surrogate
    steps: int = FIT_STEPS
    fitted: int = 0
    mean: Function | None = None
    caution: float = 0.0

    def update(
        self,
        columns: Array,
        y: Array,
        noise_sd: Array | None,
        *,
        count: int,
        running: Array | None = None,
        source: Index | None = None,
    ) -> bool:
        """Condition on the data, with fantasies in columns `running`; fit the variances when that is due.
        Whether they were fitted."""
        due = self._due(count)
        fit = self.steps if due else 0
        self.model.observe(columns, y, noise_sd=noise_sd, more=running, fit=fit, source=source)
        self.fitted = count if due else self.fitted
        more = 0 if running is None or not len(y) else len(running)
        if more and self._due(count + more):
            self.fitted = count + more  # with many workers a fit waits for those that run
        self.mean = self.model.mean()
        return due

    def _due(self, count: int) -> bool:
        growth = GROWTH if self.fitted < LATE else LATE_GROWTH
        return count >= max(self.fitted + 3, math.ceil(growth * self.fitted))


class Earlier:
    """The trials of earlier studies as rows, the best first."""

    def __init__(self, sources: Sequence[Source], rows: Rows, basis: Basis, sign: float):
        found = [settled(sign * source.values) for source in sources]
        which = [np.full(len(values), s, dtype=np.int64) for s, values in enumerate(found, start=1)]
        none: list[Array] = [np.zeros(0)]
        order = np.argsort(np.concatenate(none + [v - v.mean() for v in found]), kind="stable")
        self.values: Array = np.concatenate(none + found)[order]
        self.noise_sd: Array = np.concatenate(none + [source.noise_sd for source in sources])[order]
        self.which: Index = np.concatenate([np.zeros(0, dtype=np.int64), *which])[order]
        self.rows = rows.encode([p for source in sources for p in source.params])[order]
        self.columns = basis.columns(self.rows, rows.active(self.rows))
        told = [c for source in sources for c in source.constraints]
        self.constraints: list[Mapping[str, float]] = [told[k] for k in order.tolist()]
        feasible = [f for source in sources for f in source.feasible]
        self.feasible = np.array(feasible, dtype=np.bool_)[order]

    def __len__(self) -> int:
        return len(self.values)


class Beliefs:
    """`learn` every trial of the study; then `objective`, `excess` and `incumbents` judge."""

    def __init__(
        self,
        distributions: Distributions,
        rules: Rules,
        *,
        sign: float = 1.0,
        unknown: float | None = None,
        sources: Sequence[Source] = (),
    ):
        """`unknown`: a constraint's value that says nothing."""
        self.rows = Rows(distributions, rules)
        self.unknown = unknown
        self.basis, self.sign = Basis(distributions), sign
        self.earlier = Earlier(sources, self.rows, self.basis, sign)
        self.objective = Learned(Surrogate(self.basis))
        self.constraints: dict[str, Learned] = {}
        self.complete: list[FrozenTrial] = []
        self.seen: Array = np.zeros((0, len(distributions)))  # rows of `complete`
        self.columns: Array = np.zeros((0, len(self.basis.owner)))  # of `seen`
        self.data = Data(self.seen, np.zeros(0), np.zeros(0), self.seen)
        self.tried: set[Settings] = set()  # configurations, running ones included
        self._weights: Array = np.zeros((0, 0))
        self._offsets: Array = np.zeros(0)
        self._known: dict[int, tuple[Mapping[str, object], Array]] = {}  # number -> parameters and row
        self._tried: dict[int, Settings] = {}  # what finished trials tried
        self._all_tried: set[Settings] = set()  # the same
        self._violations: dict[int, Mapping[str, float]] = {}  # number -> constraints of a finished trial
        self._merits: dict[int, float] = {}  # the same: its value, to be small; inf unless it is feasible
        self.begun, self.finished = 0, 0  # trials, whether learned from or not
        self.first = True  # the trial that is sampled is number 0, whoever began beside it

    def learn(self, trials: Sequence[FrozenTrial]) -> None:
        """Everything anew; only rows and fitted variances are kept from call to call."""
        done = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        self.begun, self.finished = len(trials), len(done)
        self.first = all(t.number for t in trials)
        done = self._worth_learning(done)
        forgotten = self.finished - len(done)
        self.complete = [t for t in done if t.state == TrialState.COMPLETE]
        self.seen = self._rows_of(self.complete)
        self.columns = self.columns_of(self.seen)
        y = settled(bounded(np.array([self.sign * float(t.value or 0.0) for t in self.complete])))
        pruned, at, scatter = self._expected_finals(done)
        self.tried = self._tried_by(trials)
        running = self._rows_of([t for t in trials if t.state == TrialState.RUNNING])
        early = self._rows_of(pruned)
        columns = np.concatenate([self.columns, self.columns_of(early)])
        values, noise = np.concatenate([y, at]), np.concatenate([np.zeros(len(y)), scatter])
        count = len(values) + forgotten
        self.data = Data(np.concatenate([self.seen, early]), values, noise, running)
        if more := min(len(self.earlier), max(EARLIER, LARGEST - len(values))):
            count += FEW  # they alone are reason to fit
            columns = np.concatenate([columns, self.earlier.columns[:more]])
            noise = np.concatenate([noise, self.earlier.noise_sd[:more]])
            source = np.concatenate([np.zeros(len(values), dtype=np.int64), self.earlier.which[:more]])
            values = np.concatenate([values, self.earlier.values[:more]])
        else:
            source = None
        running = self.columns_of(running)
        update = self.objective.update
        was_fitted = update(columns, values, noise, count=count, running=running, source=source)
        self._learn_constraints(done, forgotten, was_fitted)

    def _worth_learning(self, done: list[FrozenTrial]) -> list[FrozenTrial]:
        """What a fit can afford to read of many finished trials: it costs the third power of their number."""
        if len(done) <= LARGEST:
            return done
        by_number = sorted(done, key=lambda t: t.number)
        older, newest = by_number[: BEST - LARGEST], by_number[BEST - LARGEST :]
        merits = np.array([self._merit(t) for t in older])
        best = np.argsort(merits, kind="stable")[:BEST]
        good = [older[int(k)] for k in best if merits[k] < math.inf]
        return sorted([*good, *newest], key=lambda t: t.number)

    def _merit(self, trial: FrozenTrial) -> float:
        """Of a finished trial, small where it is good; inf where it is not complete and feasible."""
        found = self._merits.get(trial.number)
        if found is None:
            good = trial.state == TrialState.COMPLETE and self._is_feasible(trial)
            found = self._merits[trial.number] = self.sign * float(trial.value or 0.0) if good else math.inf
        return found

    def _constraints_of(self, trial: FrozenTrial) -> Mapping[str, float]:
        """Of a finished trial; Optuna picks them from all attributes anew each time."""
        if trial.number not in self._violations:
            self._violations[trial.number] = trial.constraints
        return self._violations[trial.number]

    def _is_feasible(self, trial: FrozenTrial) -> bool:
        return max(self._constraints_of(trial).values(), default=0.0) <= 0.0

    def _rows_of(self, trials: Sequence[FrozenTrial]) -> Array:
        """Rows [n, parameters]; a known one is made anew only when a running trial got another parameter."""
        params = [settled_params(t) for t in trials]
        stale = [k for k, t in enumerate(trials) if not self._is_known(t.number, params[k])]
        rows = self.rows.encode([self.rows.expressible(params[k]) for k in stale])
        self._known |= {trials[k].number: (params[k], row) for k, row in zip(stale, rows, strict=True)}
        found = [self._known[t.number][1] for t in trials]
        return np.array(found).reshape(len(found), len(self.rows.names))

    def _is_known(self, number: int, params: Mapping[str, object]) -> bool:
        known = self._known.get(number, (None,))[0]
        return known is params or known == params

    def _tried_by(self, trials: Sequence[FrozenTrial]) -> set[Settings]:
        new = [t for t in trials if t.number not in self._tried]
        tried = [(t, self.rows.settings(settled_params(t))) for t in new]
        over = {t.number: settings for t, settings in tried if t.state.is_finished()}
        self._tried |= over
        self._all_tried |= set(over.values())
        return self._all_tried | {settings for _, settings in tried}

    def columns_of(self, rows: Array) -> Array:
        """The surrogates' columns of rows. [n, m]"""
        return self.basis.columns(rows, self.rows.active(rows))

    def _expected_finals(self, done: Sequence[FrozenTrial]) -> tuple[list[FrozenTrial], Array, Array]:
        """(pruned trials that predict something, their predicted final values, the scatter of that)."""
        found: list[tuple[FrozenTrial, float, float]] = []
        for trial in done:
            step = trial.last_step
            if trial.state != TrialState.PRUNED or step is None:
                continue
            report = self.sign * trial.intermediate_values[step]
            finite = math.isfinite
            like = [t for t in self.complete if finite(t.intermediate_values.get(step, math.nan))]
            like = [t for t in like if finite(t.value or 0.0)]
            if len(like) < LEAST_REPORTS or not math.isfinite(report):
                continue
            early = np.array([self.sign * t.intermediate_values[step] for t in like])
            final = np.array([self.sign * float(t.value or 0.0) for t in like])
            off, rest = early - early.mean(), final - final.mean()
            slope = float(off @ rest) / (float(off @ off) or 1.0)
            scatter = float((rest - slope * off).std())
            ahead = float(np.clip(report, early.min(), early.max()) - early.mean())
            expected = float(final.mean()) + slope * ahead
            found.append((trial, expected, 1.2 * scatter))
        return [f[0] for f in found], np.array([f[1] for f in found]), np.array([f[2] for f in found])

    def _learn_constraints(self, done: Sequence[FrozenTrial], forgotten: int, was_fitted: bool) -> None:
        told = {key for constraints in self.earlier.constraints for key in constraints}
        values: dict[str, list[tuple[FrozenTrial, float]]] = {key: [] for key in sorted(told)}
        for trial in done:
            for key, value in self._constraints_of(trial).items():
                if value != self.unknown:
                    values.setdefault(key, []).append((trial, value))
        for key, pairs in values.items():
            earlier = self.earlier.constraints
            known = [k for k, told in enumerate(earlier) if told.get(key, self.unknown) != self.unknown]
            every = [*(v for _, v in pairs), *(earlier[k][key] for k in known)]
            raw = bounded(np.array([*every, 0.0]))[:-1]  # infinity stays on its side of 0
            if len(raw) < FEW or (raw <= 0).all():
                self.constraints.pop(key, None)  # never broken: nothing to fear
                continue
            if not (raw < 0).any():  # max(0, ...): what keeps it stands as far below as the others above
                raw = np.where(raw == 0.0, -np.median(raw[raw > 0]), raw)
            binary = len(np.unique(raw)) <= 2
            y = np.sign(raw) if binary else np.log1p(np.maximum(raw, -0.95))
            found = self.constraints.setdefault(
                key, Learned(Surrogate(self.basis, pairs=False), CONSTRAINT_STEPS)
            )
            columns = self.columns_of(self._rows_of([t for t, _ in pairs]))
            columns = np.concatenate([columns, self.earlier.columns[known]])
            count = len(y) + forgotten
            waits = was_fitted and count > IN_TURN
            was_fitted |= found.update(columns, y, None, count=found.fitted if waits else count)
            found.caution = BINARY_CAUTION if binary else CAUTION * found.model.noise_sd()
        self._stack_constraints()

    def excess(self, columns: Array, margin: float = 0.0) -> Array:
        """By how much the constraints, tightened by `margin`, are expected to be broken, in their sds. [n]"""
        if not self._weights.size:
            return np.zeros(len(columns))
        return np.maximum(columns @ self._weights + self._offsets + margin, 0.0).sum(axis=1)

    def _stack_constraints(self) -> None:
        learned = [c for c in self.constraints.values() if c.mean is not None]
        weights = np.array([c.mean.main / c.model.scale for c in learned if c.mean])
        self._weights = weights.reshape(len(learned), len(self.basis.owner)).T
        offsets = [(c.mean.intercept + c.caution) / c.model.scale for c in learned if c.mean]
        self._offsets = np.array(offsets, dtype=np.float64)

    def keeps(self, trial: FrozenTrial) -> bool:
        """Whether a finished trial is complete and feasible."""
        return self._merit(trial) < math.inf

    def recently_kept(self, count: int) -> float:
        """Share of the newest complete trials that keep the constraints, as far as these are learned; of a
        trial that has none the models say it."""
        newest = self.complete[-count:] if self.constraints else []
        if not newest:
            return 1.0
        expected = self.excess(self.columns[-len(newest) :]) <= 0.0
        known = [bool(self._constraints_of(t)) for t in newest]
        kept = [self.keeps(t) and (k or e) for t, k, e in zip(newest, known, expected, strict=True)]
        return float(np.mean(kept))

    def best_earlier(self) -> list[tuple[int, Array]]:
        """(source, row) of earlier studies' feasible trials, the best posterior mean first."""
        if self.objective.mean is None or not len(self.earlier):
            return []
        order = np.argsort(self.objective.mean(self.earlier.columns), kind="stable")
        kept = [int(k) for k in order if self.earlier.feasible[k]]
        return [(int(self.earlier.which[k]), self.earlier.rows[k]) for k in kept]

    def known(self) -> float:
        """Complete trials, those of earlier studies by their trust."""
        trusts = np.array([0.0, *self.objective.model.trusts()])
        source = self.objective.model.which
        return len(self.complete) + float((trusts[source] ** 2).sum() if len(trusts) > 1 else 0.0)

    def incumbents(self, count: int) -> list[int]:
        """Indices into `complete` of the feasible trials with the best posterior means, best first."""
        if not self.complete or self.objective.mean is None:
            return []
        means = self.objective.mean(self.columns)
        kept = np.array([self.keeps(t) for t in self.complete])
        order = [int(k) for k in np.argsort(np.where(kept, means, np.inf)) if kept[k]]
        return order[:count]


def bounded(values: Array) -> Array:
    """Values with infinities somewhat beyond the finite ones: worse than the worst."""
    if not len(values) or np.abs(values).max() < MOST:
        return values
    finite = values[np.isfinite(values)].clip(-MOST, MOST)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (-1.0, 1.0)
    beyond = BEYOND * (high - low) or 1.0
    values = np.where(values == math.inf, high + beyond, np.where(values == -math.inf, low - beyond, values))
    return values.clip(-MOST, MOST)
