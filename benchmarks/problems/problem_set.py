"""PROBLEMS, HELD_OUT and LATER: small problems of many kinds for benchmarks/problems/, each define-by-run.

A problem's seed moves its optimum and draws its effects, so that no method gains from the middle of a range.
`true` is the value without noise; what a study is told is `true` plus `noise` times a normal number. Two are
real scikit-learn pipelines with conditional parameters (cross-validated error on data that comes with it).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

Array = NDArray[np.float64]
Value = Callable[[optuna.Trial], float]


@dataclass(frozen=True)
class Problem:
    """`of(seed)` gives the function of a trial; `optimum` None: the best that any search found."""

    of: Callable[[int], Value]
    optimum: float | None = 0.0
    runs: int = 60
    noise: float = 0.0
    louder: str = ""  # a parameter that the noise is multiplied by
    conditional: bool = False  # CMA-ES is for spaces without conditions and categoricals
    numeric: bool = True


def floats(trial: optuna.Trial, count: int, low: float, high: float) -> Array:
    """x0, x1, ..."""
    return np.array([trial.suggest_float(f"x{k}", low, high) for k in range(count)])


def moved(count: int, low: float, high: float, function: Callable[[Array], float]) -> Callable[[int], Value]:
    """`function`, with its optimum at 0, moved by up to a fifth of the range."""

    def of(seed: int) -> Value:
        shift = np.random.default_rng([seed, 5]).uniform(-0.2, 0.2, count) * (high - low)
        return lambda trial: function(floats(trial, count, low, high) - shift)

    return of


def fixed(count: int, low: float, high: float, function: Callable[[Array], float]) -> Callable[[int], Value]:
    """`function` as it is, whatever the seed."""
    return lambda _seed: lambda trial: function(floats(trial, count, low, high))


def rastrigin(x: Array) -> float:
    return float(10.0 * len(x) + (x * x - 10.0 * np.cos(2.0 * np.pi * x)).sum())


def sphere(x: Array) -> float:
    return float((x * x).sum())


def rosenbrock(x: Array) -> float:
    return float((100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).sum())


def branin(x: Array) -> float:
    a = 15.0 * x[0] - 5.0
    b = 15.0 * x[1]
    bow = b - 5.1 / (4.0 * np.pi**2) * a * a + 5.0 / np.pi * a - 6.0
    return float(bow * bow + 10.0 * (1.0 - 1.0 / (8.0 * np.pi)) * np.cos(a) + 10.0)


HARTMANN_A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
HARTMANN_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann6(x: Array) -> float:
    inner = (HARTMANN_A * (x - HARTMANN_P) ** 2).sum(axis=1)
    return float(-np.exp(-inner) @ np.array([1.0, 1.2, 3.0, 3.2]))


def needle(seed: int) -> Value:
    """One of 50 choices is good; two numbers matter a little."""
    good = int(np.random.default_rng([seed, 5]).integers(50))

    def value(trial: optuna.Trial) -> float:
        choice = trial.suggest_categorical("choice", range(50))
        x = floats(trial, 2, 0.0, 1.0)
        return float(choice != good) + 0.1 * float(((x - 0.3) ** 2).sum())

    return value


def needles(seed: int) -> Value:
    """Three categoricals of ten choices, one of each good, the others as bad as each other."""
    good = np.random.default_rng([seed, 5]).integers(10, size=3)

    def value(trial: optuna.Trial) -> float:
        return float(sum(trial.suggest_categorical(f"c{k}", range(10)) != good[k] for k in range(3)))

    return value


def nested(seed: int) -> Value:
    """Branches inside branches; the best one looks worse than its neighbours until its numbers fit."""
    rng = np.random.default_rng([seed, 5])
    best = rng.uniform(0.15, 0.85, (3, 3, 3))
    twist = rng.permutation(3)

    def value(trial: optuna.Trial) -> float:
        k = int(trial.suggest_categorical("branch", range(3)))
        if twist[k] == 0:
            x = np.array([trial.suggest_float(f"b{k}.x{i}", 0.0, 1.0) for i in range(2)])
            return 0.5 + float(((x - best[k, 0, :2]) ** 2).sum())
        j = int(trial.suggest_categorical(f"b{k}.kind", range(3)))
        x = np.array([trial.suggest_float(f"b{k}.{j}.x{i}", 0.0, 1.0) for i in range(3)])
        away = float(((x - best[k, j]) ** 2).sum())
        if twist[k] == 1:
            return 0.3 + 0.2 * j + 0.7 * away
        return (0.0 if j == 1 else 0.6) + 2.5 * away

    return value


def plateau(seed: int) -> Value:
    """Flat but for a basin of a fourteenth of the space, under noise."""
    centre = np.random.default_rng([seed, 5]).uniform(0.2, 0.8, 4)

    def value(trial: optuna.Trial) -> float:
        away = float(np.sqrt(((floats(trial, 4, 0.0, 1.0) - centre) ** 2).sum()))
        return 1.0 - max(0.0, 1.0 - away / 0.35)

    return value


def additive_categoricals(seed: int) -> Value:
    """Twelve categoricals of four choices, effects independent."""
    effects = np.random.default_rng([seed, 5]).exponential(1.0, (12, 4))
    effects -= effects.min(axis=1, keepdims=True)

    def value(trial: optuna.Trial) -> float:
        chosen = [int(trial.suggest_categorical(f"c{k}", range(4))) for k in range(12)]
        return float(sum(effects[k, c] for k, c in enumerate(chosen)))

    return value


def gates(seed: int) -> Value:
    """Forty gates, ten with a number under them; half of the gates help."""
    rng = np.random.default_rng([seed, 5])
    effect = rng.normal(0.0, 1.0, 40)
    best = rng.uniform(0.2, 0.8, 10)

    def value(trial: optuna.Trial) -> float:
        total = float(-np.minimum(effect, 0.0).sum())
        for k in range(40):
            if trial.suggest_categorical(f"g{k}", (False, True)):
                total += float(effect[k])
                if k < 10:
                    total += 2.0 * (trial.suggest_float(f"g{k}.x", 0.0, 1.0) - best[k]) ** 2
        return total

    return value


@cache
def data(name: str) -> tuple[Array, Array]:
    """(inputs, targets) that come with scikit-learn, at most 300 rows."""
    from sklearn import datasets  # pyright: ignore

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))[:300]
    return x[order], y[order]


def scored(name: str, model: Any, scoring: str) -> float:
    """Mean over three folds, as something that is to be small."""
    from sklearn.model_selection import cross_val_score  # pyright: ignore

    x, y = data(name)
    return -float(cross_val_score(model, x, y, cv=3, scoring=scoring).mean())


def digits(_seed: int) -> Value:
    """Four families of classifiers, each with parameters of its own."""

    def value(trial: optuna.Trial) -> float:
        from sklearn.ensemble import ExtraTreesClassifier  # pyright: ignore
        from sklearn.linear_model import RidgeClassifier  # pyright: ignore
        from sklearn.neighbors import KNeighborsClassifier  # pyright: ignore
        from sklearn.svm import SVC  # pyright: ignore

        family = trial.suggest_categorical("family", ("svm", "neighbours", "trees", "ridge"))
        if family == "svm":
            c = trial.suggest_float("svm.c", 1e-2, 1e3, log=True)
            kernel = trial.suggest_categorical("svm.kernel", ("rbf", "poly"))
            gamma: Any = trial.suggest_float("svm.gamma", 1e-6, 1e-1, log=True)
            model = SVC(C=c, kernel=kernel, gamma=gamma)
        elif family == "neighbours":
            weights = trial.suggest_categorical("neighbours.weights", ("uniform", "distance"))
            k = trial.suggest_int("neighbours.k", 1, 30)
            p: Any = trial.suggest_float("neighbours.p", 1.0, 4.0)
            model = KNeighborsClassifier(k, weights=weights, p=p)
        elif family == "trees":
            depth = trial.suggest_int("trees.depth", 2, 16)
            share: Any = trial.suggest_float("trees.share", 0.02, 1.0)
            model = ExtraTreesClassifier(30, max_depth=depth, max_features=share, random_state=0)
        else:
            model = RidgeClassifier(trial.suggest_float("ridge.alpha", 1e-3, 1e4, log=True))
        return 1.0 + scored("digits", model, "accuracy")

    return value


def diabetes(_seed: int) -> Value:
    """A scaler, then one of three families of regressions, each with parameters of its own."""

    def value(trial: optuna.Trial) -> float:
        from sklearn.kernel_ridge import KernelRidge  # pyright: ignore
        from sklearn.linear_model import ElasticNet  # pyright: ignore
        from sklearn.pipeline import make_pipeline  # pyright: ignore
        from sklearn.preprocessing import QuantileTransformer, RobustScaler, StandardScaler  # pyright: ignore
        from sklearn.svm import SVR  # pyright: ignore

        scaler = trial.suggest_categorical("scaler", ("standard", "robust", "quantile"))
        first = {"standard": StandardScaler(), "robust": RobustScaler()}.get(scaler)
        if first is None:
            first = QuantileTransformer(n_quantiles=trial.suggest_int("quantile.count", 5, 200))
        family = trial.suggest_categorical("family", ("elastic", "svm", "kernel"))
        if family == "elastic":
            alpha = trial.suggest_float("elastic.alpha", 1e-3, 10.0, log=True)
            model = ElasticNet(alpha=alpha, l1_ratio=trial.suggest_float("elastic.l1", 0.01, 1.0))
        elif family == "svm":
            c = trial.suggest_float("svm.c", 1e-4, 1e4, log=True)
            width: Any = trial.suggest_float("svm.gamma", 1e-4, 1e4, log=True)
            model = SVR(C=c, gamma=width, epsilon=trial.suggest_float("svm.epsilon", 1e-2, 1e2, log=True))
        else:
            ridge: Any = trial.suggest_float("kernel.alpha", 1e-4, 1e2, log=True)
            gamma = trial.suggest_float("kernel.gamma", 1e-5, 1.0, log=True)
            model = KernelRidge(alpha=ridge, gamma=gamma, kernel="rbf")
        return scored("diabetes", make_pipeline(first, model), "neg_root_mean_squared_error")

    return value


def ackley(x: Array) -> float:
    near = -20.0 * np.exp(-0.2 * np.sqrt((x * x).mean()))
    return float(near - np.exp(np.cos(2.0 * np.pi * x).mean()) + 20.0 + np.e)


def levy(x: Array) -> float:
    w = 1.0 + x / 4.0
    inner = (w[:-1] - 1) ** 2 * (1 + 10 * np.sin(np.pi * w[:-1] + 1) ** 2)
    last = (w[-1] - 1) ** 2 * (1 + np.sin(2 * np.pi * w[-1]) ** 2)
    return float(np.sin(np.pi * w[0]) ** 2 + inner.sum() + last)


def styblinski(x: Array) -> float:
    return float(0.5 * (x**4 - 16.0 * x * x + 5.0 * x).sum())


def michalewicz(x: Array) -> float:
    return float(-(np.sin(x) * np.sin(np.arange(1, len(x) + 1) * x * x / np.pi) ** 20).sum())


def camel(x: Array) -> float:
    a = 3.0 * x[0]
    b = 2.0 * x[1]
    return float((4 - 2.1 * a * a + a**4 / 3) * a * a + a * b + (-4 + 4 * b * b) * b * b)


def deceptive(seed: int) -> Value:
    """Three blocks of three gates: each gate alone harms, all of a block together help most."""
    flip = np.random.default_rng([seed, 5]).integers(0, 2, (3, 3))

    def value(trial: optuna.Trial) -> float:
        total = 0.0
        for block in range(3):
            on = sum(
                int(trial.suggest_categorical(f"b{block}{k}", (0, 1))) ^ int(flip[block, k]) for k in range(3)
            )
            total += (0.4, 0.7, 1.0, 0.0)[on]
        return total

    return value


def mixed(seed: int) -> Value:
    """Integers, logarithms, floats and categoricals with products between them."""
    rng = np.random.default_rng([seed, 5])
    best = rng.uniform(-0.6, 0.6, 4)
    width = int(rng.integers(20, 200))
    kinds = rng.permutation(4)

    def value(trial: optuna.Trial) -> float:
        rate = math.log10(trial.suggest_float("rate", 1e-5, 1e-1, log=True)) + 3.0
        layers = trial.suggest_int("layers", 1, 8)
        units = trial.suggest_int("units", 8, 512, log=True)
        drop = trial.suggest_float("drop", 0.0, 0.6, step=0.05)
        kind = int(kinds[trial.suggest_categorical("kind", range(4))])
        size = math.log2(units / width) + 0.3 * (layers - 4)
        return float((rate - best[0] - 0.3 * size) ** 2 + 0.1 * size**2 + 2 * (drop - 0.3) ** 2 + 0.15 * kind)

    return value


def steps(seed: int) -> Value:
    """A staircase down a bowl of five numbers."""
    centre = np.random.default_rng([seed, 5]).uniform(0.2, 0.8, 5)

    def value(trial: optuna.Trial) -> float:
        return float(np.floor(8.0 * np.abs(floats(trial, 5, 0.0, 1.0) - centre)).sum())

    return value


def ridge(seed: int) -> Value:
    """A narrow valley across five numbers, which slopes slowly."""
    rng = np.random.default_rng([seed, 5])
    axes, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    scale = np.array([0.05, 1.0, 3.0, 10.0, 30.0])
    centre = rng.uniform(0.3, 0.7, 5)

    def value(trial: optuna.Trial) -> float:
        return float(scale @ (axes @ (floats(trial, 5, 0.0, 1.0) - centre)) ** 2)

    return value


def assignment(seed: int) -> Value:
    """Six workers choose one of six tasks each; a task that two chose is paid once."""
    cost = np.random.default_rng([seed, 5]).uniform(0.0, 1.0, (6, 6))

    def value(trial: optuna.Trial) -> float:
        chosen = [int(trial.suggest_categorical(f"w{k}", range(6))) for k in range(6)]
        return float(sum(cost[k, c] for k, c in enumerate(chosen))) + 1.0 * (6 - len(set(chosen)))

    return value


def prefix(seed: int) -> Value:
    """Eight categoricals of four choices; one counts only where all before it are right."""
    rng = np.random.default_rng([seed, 5])
    right = rng.integers(4, size=8)
    order = rng.permutation(8)

    def value(trial: optuna.Trial) -> float:
        hits = [trial.suggest_categorical(f"c{k}", range(4)) == right[k] for k in range(8)]
        return float(8 - np.cumprod([hits[k] for k in order]).sum())

    return value


def cliff(seed: int) -> Value:
    """A bowl of four numbers whose bottom lies a hundredth from a plane beyond which all is bad."""
    rng = np.random.default_rng([seed, 5])
    centre = rng.uniform(0.3, 0.7, 4)
    normal = rng.normal(size=4)
    normal /= np.sqrt(normal @ normal)

    def value(trial: optuna.Trial) -> float:
        away = floats(trial, 4, 0.0, 1.0) - centre
        return float(away @ away) + 3.0 * float(away @ normal > 0.01)

    return value


def bowl(seed: int) -> Value:
    """A turned bowl of three numbers."""
    rng = np.random.default_rng([seed, 5])
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    centre = rng.uniform(0.3, 0.7, 3)

    def value(trial: optuna.Trial) -> float:
        return float(np.array([1.0, 3.0, 9.0]) @ (axes @ (floats(trial, 3, 0.0, 1.0) - centre)) ** 2)

    return value


def integers(seed: int) -> Value:
    """Six integers of 31 values, coupled in a ring; every odd sum costs more."""
    best = np.random.default_rng([seed, 5]).integers(5, 26, 6)

    def value(trial: optuna.Trial) -> float:
        off = np.array([trial.suggest_int(f"n{k}", 0, 30) for k in range(6)]) - best
        coupled = np.abs(off + np.roll(off, 1))
        return float(np.abs(off).sum() + coupled.sum()) / 10.0 + 0.5 * float(off.sum() % 2)

    return value


def sparse(seed: int) -> Value:
    """Forty numbers, of which three matter, together."""
    rng = np.random.default_rng([seed, 5])
    which = rng.choice(40, 3, replace=False)
    centre = rng.uniform(0.2, 0.8, 3)

    def value(trial: optuna.Trial) -> float:
        away = floats(trial, 40, 0.0, 1.0)[which] - centre
        return 1.0 - float(np.exp(-6.0 * (away @ away + away[0] * away[1])))

    return value


PROBLEMS: dict[str, Problem] = {
    "sphere": Problem(moved(5, -5.0, 5.0, sphere)),
    "branin": Problem(fixed(2, 0.0, 1.0, branin), 0.39788736),
    "hartmann6": Problem(fixed(6, 0.0, 1.0, hartmann6), -3.32236801),
    "rosenbrock4": Problem(fixed(4, -2.0, 2.0, rosenbrock)),
    "rastrigin4": Problem(moved(4, -5.12, 5.12, rastrigin), runs=100),
    "noisy_plateau": Problem(plateau, noise=0.1),
    "needle50": Problem(needle, numeric=False),
    "needles3": Problem(needles, numeric=False),
    "nested": Problem(nested, conditional=True, numeric=False),
    "categoricals": Problem(additive_categoricals, numeric=False),
    "gates": Problem(gates, conditional=True, numeric=False, runs=100),
    "digits": Problem(digits, None, conditional=True, numeric=False),
    "diabetes": Problem(diabetes, None, conditional=True, numeric=False),
}
HELD_OUT: dict[str, Problem] = {
    "ackley5": Problem(moved(5, -10.0, 10.0, ackley)),
    "levy4": Problem(moved(4, -8.0, 8.0, levy)),
    "styblinski4": Problem(fixed(4, -5.0, 5.0, styblinski), 4 * -39.16616570),
    "michalewicz5": Problem(fixed(5, 0.0, math.pi, michalewicz), -4.687658),
    "camel": Problem(fixed(2, -1.0, 1.0, camel), -1.03162845),
    "deceptive": Problem(deceptive, numeric=False, runs=100),
    "mixed": Problem(mixed, numeric=False),
    "steps": Problem(steps),
    "ridge": Problem(ridge),
    "assignment": Problem(assignment, None, numeric=False, runs=100),
}
LATER: dict[str, Problem] = {
    "prefix": Problem(prefix, numeric=False, runs=100),
    "cliff": Problem(cliff),
    "loud": Problem(bowl, noise=0.5, louder="x0"),
    "integers": Problem(integers),
    "sparse40": Problem(sparse, runs=100),
}


def problems(names: Sequence[str] = ()) -> dict[str, Problem]:
    """Those of these names; all that can run here for none. ValueError for an unknown name."""
    known = PROBLEMS | HELD_OUT | LATER
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"A problem must be one of {', '.join(known)}, but got {', '.join(unknown)}.")
    chosen = {n: p for n, p in known.items() if n in (names or known)}
    if importlib.util.find_spec("sklearn") is None:
        chosen = {n: p for n, p in chosen.items() if n not in ("digits", "diabetes")}
    return chosen
