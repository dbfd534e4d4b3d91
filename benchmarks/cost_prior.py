"""The prior of the cost models, learnt from recorded trials:

    python -m benchmarks.cost_prior [--study FILE --home FOLDER] ... [--write]

Reads the finished trials of the given studies (each in its home's private database) and of the committed
ones (tests/search/own_text_trials.json), fits each cost model (bytes, seconds of training, of evaluation) to
all of them at once, with a level of its own for every study, and prints what each factor became: its mean and
the spread that a new study or machine should believe. --write: to search/costs/prior.json.

The spread of a factor has two parts. What the trials leave open given all other factors: 1 / sqrt of the
posterior precision's diagonal (the best fit of independent normals to the posterior). And what these trials
cannot tell, because they come from few texts, sizes and machines: a share of the spread that the factor has
without any trial, TRANSFER. Factors about which the trials say next to nothing are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import subprocess
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import TrialState

from search.common.attributes import STUDY_IDENTITY, result_of
from search.common.paths import ROOT
from search.costs import bills
from search.costs.factors import CostModel
from search.costs.preflight import bills_of
from search.session.session import read_session
from search.study.load import find_study
from search.workers.warm_start import EarlierTrial, resolved_run
from tests.search.replay import read_trials

KINDS = ("bytes", "train", "eval")
TRANSFER = {"bytes": 0.4, "train": 0.5, "eval": 0.5}
WORTH = 10.0  # trials that the prior's word on the spread counts as
TOLD = 0.9  # of the spread without a trial: a factor that keeps more was not learnt
OWN_TEXT = "own_text"


def recorded(study: Path, home: Path) -> list[EarlierTrial]:
    """The finished trials of a study, oldest first, that this version can still read."""
    session = read_session(find_study(study), home=home, storage=None, environ={})
    identity = session.optuna_study.user_attrs[STUDY_IDENTITY]
    trials = session.optuna_study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    found = [(resolved_run(t, identity), result_of(t), session.study.name) for t in trials]
    return [EarlierTrial(name, run, result) for run, result, name in found if run and result]


def committed() -> list[EarlierTrial]:
    return [EarlierTrial(OWN_TEXT, t.resolved, t.result) for t in read_trials() if t.result is not None]


def cold_models() -> dict[str, CostModel]:
    models = {
        "bytes": bills.byte_model(cold=True),
        "train": bills.second_model(),
        "eval": bills.second_model(),
    }
    for model in models.values():
        model.rows = deque()  # all of them, however many
    return models


def fitted(trials: Iterable[EarlierTrial]) -> dict[str, CostModel]:
    """The models without a prior, after all these trials."""
    models = cold_models()
    for trial in trials:
        for kind, bill, measured in bills_of(trial.resolved, trial.result):
            models[kind].add(bills.from_study(bill, trial.study), measured)
    return models


def told_by(kind: str, model: CostModel) -> dict[str, Any]:
    """One model of the prior's file: name -> [mean, sd] or [mean, sd, centre] of a factor's logarithm."""
    fit = model._solve()  # pyright: ignore[reportPrivateUsage]
    open_sds = 1.0 / np.sqrt(np.diag(np.linalg.inv(fit.covariance)))
    factors: dict[str, list[float]] = {}
    for name, column in sorted(model.columns.items()):
        before = model.prior_sd(name)
        if name.startswith(("study:", "machine")) or open_sds[column] > TOLD * before:
            continue
        sd = min(before, math.hypot(float(open_sds[column]), TRANSFER[kind] * before))
        centre = [round(model.centre[name], 3)] if model.centre[name] else []
        factors[name] = [round(float(fit.mean[column]), 4), round(sd, 4), *centre]
    return {"spread": round(fit.spread, 4), "trials": WORTH, "factors": factors}


def prior_of(trials: Sequence[EarlierTrial]) -> dict[str, Any]:
    return {kind: told_by(kind, model) for kind, model in fitted(trials).items()}


def document_of(trials: Sequence[EarlierTrial]) -> str:
    """prior.json: a factor a line."""
    names = [trial.study for trial in trials]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    head = {
        "about": "Factors of the cost models: [mean, sd] or [mean, sd, centre] of each logarithm",
        "command": "python -m benchmarks.cost_prior --write",
        "studies": {name: names.count(name) for name in dict.fromkeys(names)},
        "commit": commit.stdout.strip(),
        "machine": f"CPU, {platform.machine()}",
    }
    text = json.dumps({**head, "models": prior_of(trials)}, indent=1)
    return re.sub(r"\[\s+([^\[\]]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, action="append", default=[])
    parser.add_argument("--home", type=Path, action="append", default=[])
    parser.add_argument("--write", action="store_true", help=f"to {bills.PRIOR.relative_to(ROOT)}")
    options = parser.parse_args()
    trials = committed()
    for study, home in zip(options.study, options.home, strict=True):
        trials += recorded(study, home)
    text = document_of(trials)
    print(text, end="")
    if options.write:
        bills.PRIOR.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
