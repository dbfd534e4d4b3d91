"""Predicted against measured: what `search.py costs` and `search.py show N` say of the cost model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from search.common.attributes import PREFLIGHT
from search.costs.preflight import BOUND, Pair, pair_of
from search.study.limits import LIMITS

if TYPE_CHECKING:
    from search.session.session import Session

MEANING = (
    "Each prediction was made with what had finished by then; an error is measured / predicted - 1. "
    "Seconds are predicted for the worker's own machine, from the first trial on that finished there, in "
    "this study or in an earlier one of the same database."
)
WINDOW = 20  # trials at the start and at the end of a study that are compared


@dataclass(frozen=True)
class Accuracy:
    """Of some predictions: means of relative errors, and the share of bounds that held."""

    count: int
    mean_absolute: float
    bias: float  # positive: dearer than predicted
    coverage: float


def accuracy_of(pairs: Sequence[Pair]) -> Accuracy:
    errors = [pair.error for pair in pairs]
    return Accuracy(
        count=len(pairs),
        mean_absolute=sum(map(abs, errors)) / len(pairs),
        bias=sum(errors) / len(pairs),
        coverage=sum(pair.measured <= pair.upper for pair in pairs) / len(pairs),
    )


def windows_of(pairs: Sequence[Pair]) -> dict[str, Sequence[Pair]]:
    """All, and where those are more, the first and the last ones, in the order in which they were tried."""
    ends = {f"first {WINDOW}": pairs[:WINDOW], f"last {WINDOW}": pairs[-WINDOW:]}
    found = (ends if len(pairs) > WINDOW else {}) | {"all": pairs}
    return {name: part for name, part in found.items() if part}


def accuracy_table(pairs: Mapping[str, Sequence[Pair]], title: str) -> Table:
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for name in ("limit on", "trials", "number", "mean |error|", "bias", f"below the {BOUND:.1%} bound"):
        table.add_column(name, justify="left" if name in ("limit on", "trials") else "right")
    for constraint, found in pairs.items():
        for window, part in windows_of(found).items():
            accuracy = accuracy_of(part)
            shares = f"{accuracy.mean_absolute:.1%}", f"{accuracy.bias:+.1%}", f"{accuracy.coverage:.1%}"
            table.add_row(constraint, window, str(accuracy.count), *shares)
    return table


def print_costs(console: Console, session: Session) -> None:
    trials: list[FrozenTrial] = session.optuna_study.get_trials(deepcopy=False)
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    pairs: dict[str, list[Pair]] = {}
    for limit in LIMITS:
        found = [pair_of(t.user_attrs, limit.figure) for t in complete]
        pairs[limit.constraint] = [pair for pair in found if pair]
    if not any(pairs.values()):
        console.print("No trial with a prediction has finished yet. Start some with `python search.py`.")
        return
    title = f"{session.study.name}: predicted before the trial against measured"
    console.print(accuracy_table(pairs, title))
    console.print(MEANING, highlight=False)


def prediction_summary(attrs: Mapping[str, Any], figure: str) -> str:
    """ ", predicted 9.4, at most 9.9, error +1.2 %" for `show`; "" without a prediction."""
    predicted = cast("Mapping[str, float]", attrs.get(PREFLIGHT) or {})
    if predicted.get(figure) is None:
        return ""
    text = f", predicted {predicted[figure]:,.6g}"
    if predicted.get(f"{figure}_upper") is not None:
        text += f", at most {predicted[f'{figure}_upper']:,.6g}"
    pair = pair_of(attrs, figure)
    return text + (f", error {pair.error:+.1%}" if pair else "")
