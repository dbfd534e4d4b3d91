"""The prior of the cost models, learnt from recorded trials:

    python -m benchmarks.costs.prior [--study FILE --home FOLDER] ... [--write]

Reads the sizes of published records (studies/presets), the committed trials (own_text_trials.json and
laptop_trials.json of tests/search) and the finished ones of the given studies, each in its home's private
database; fits each cost model (bytes, seconds of training, of evaluation) to all of them at once, with a
level of its own for every home; and prints what each factor became: its mean and the spread that a new study
or machine should believe. --write: to search/costs/prior.json. --record: the given studies, all of one
preset, become the committed laptop trials.

Studies differ in text, sizes and trainer: in each of them (homes of one study are one) a factor departs from
what all share, by TRANSFER of the spread that it has without any trial. What is printed is what they share.
Its spread has two parts: what the trials leave open given all other factors, 1 / sqrt of the posterior
precision's diagonal (the best fit of independent normals to the posterior), and the departure of the next
study. Factors about which the trials say next to nothing are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import subprocess
import tomllib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import TrialState

from bundle.sizes import expected_bytes
from search.common.attributes import (
    BASELINE,
    CONFIG,
    FIGURES,
    STAGE_SECONDS,
    STUDY_IDENTITY,
    result_of,
)
from search.common.paths import ROOT
from search.costs import bills
from search.costs.factors import Bill, CostModel, Part
from search.costs.preflight import bills_of
from search.session.session import read_session
from search.space.native import build_space
from search.study.load import find_study
from search.workers.warm_start import EarlierTrial, resolved_run
from techniques import catalog
from techniques.config import PRESETS, read_preset, resolve
from tests.search.replay import LAPTOP, read_trials

KINDS = ("bytes", "train", "eval")
TRANSFER = {"bytes": 0.45, "train": 0.5, "eval": 0.5}
WORTH = {"bytes": 4.0, "train": 10.0, "eval": 10.0}  # trials that the prior's word on the spread counts as
TOLD = 0.9  # of the spread without a trial: a factor that keeps more was not learnt
OF_STUDY = "study's "  # before the name of a factor's departure
OWN_TEXT = "own_text"
LAPTOP_STUDY = "laptop"
PUBLISHED = "published"
NAIVE_BYTES = "15,863,489"
RECORDED = (*FIGURES, STAGE_SECONDS)  # of a result


def recorded(study: Path, home: Path) -> list[EarlierTrial]:
    """The finished trials of a study, oldest first, that this version can still read."""
    session = read_session(find_study(study), home=home, storage=None, environ={})
    identity = session.optuna_study.user_attrs[STUDY_IDENTITY]
    trials = session.optuna_study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    found = [(resolved_run(t, identity), result_of(t), session.study.name) for t in trials]
    return [EarlierTrial(name, run, result) for run, result, name in found if run and result]


def committed() -> list[EarlierTrial]:
    told = [(OWN_TEXT, t) for t in read_trials()]
    told += [(f"{LAPTOP_STUDY}/{t.home}", t) for t in read_trials(LAPTOP)] if LAPTOP.exists() else []
    return [EarlierTrial(name, t.resolved, t.result) for name, t in told if t.result is not None]


def published() -> list[EarlierTrial]:
    """Bytes of the records whose settings are presets: what a model of 16 MB takes. Their scripts are about
    as long as ours, a third of a percent."""
    found = list[EarlierTrial]()
    for path in sorted(PRESETS.glob("*.toml")):
        about = tomllib.loads(path.read_text(encoding="utf-8")).get("about", {})
        sizes = re.findall(r"\d\d,\d{3},\d{3}", about.get("artifact_bytes", ""))
        if path.stem == "naive":
            sizes = [NAIVE_BYTES]
        run = resolve({"preset": read_preset(path.stem)}, catalog.metadata())
        code = expected_bytes(run.techniques)
        told = [{"code_bytes": code, "artifact_bytes": int(size.replace(",", ""))} for size in sizes]
        found += [EarlierTrial(PUBLISHED, run, result) for result in told]
    return found


def kept_of(homes: Sequence[tuple[Path, Path]]) -> str:
    """(study, home)s as laptop_trials.json has them: a trial a line, what all have in common once."""
    found: list[dict[str, Any]] = []
    for study, home in homes:
        session = read_session(find_study(study), home=home, storage=None, environ={})
        baseline = session.optuna_study.user_attrs[BASELINE]
        start = build_space(session.study, catalog.metadata()).config({}) | {"num_threads": 1}
        told = [(start, baseline)]
        trials = session.optuna_study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        told += [(t.user_attrs[CONFIG], t.user_attrs) for t in trials]
        for number, (config, attrs) in enumerate(told):
            result = {key: attrs[key] for key in RECORDED if key in attrs}
            found.append({"home": home.name, "number": number, "config": config, "result": result})
    first = found[0]["config"]
    fixed = {k: v for k, v in first.items() if all(t["config"].get(k) == v for t in found)}
    for trial in found:
        trial["config"] = {k: v for k, v in trial["config"].items() if k not in fixed}
    head = json.dumps({"preset": fixed.pop("preset"), "fixed": fixed})[:-1]
    return f'{head}, "trials": [\n' + ",\n".join(json.dumps(rounded(t)) for t in found) + "\n]}\n"


def rounded(told: Any) -> Any:
    """The same with seven digits of each float."""
    if isinstance(told, dict):
        return {key: rounded(value) for key, value in told.items()}  # pyright: ignore
    return float(f"{told:.7g}") if isinstance(told, float) else told


def departing(bill: Bill, home: str) -> Bill:
    """The bill with the level of a home, `STUDY/HOME`, and each factor's departure in its study."""
    study = home.partition("/")[0]

    def both(factors: Mapping[str, float]) -> dict[str, float]:
        own = {n: n.partition(":") for n in factors if not n.startswith(("log ", "machine", "all"))}
        return {**factors, **{f"{OF_STUDY}{f}:{study}:{rest}": factors[n] for n, (f, _, rest) in own.items()}}

    parts = tuple(Part(part.amount, both(part.factors)) for part in bill.parts)
    return bills.from_study(Bill(parts, both(bill.common)), home)


def cold_models() -> dict[str, CostModel]:
    models = {"bytes": bills.byte_model()} | {kind: bills.second_model() for kind in ("train", "eval")}
    for kind, model in models.items():
        model.rows = deque()  # all of them, however many
        model.sds = {**model.sds, **{OF_STUDY + f: TRANSFER[kind] * sd for f, sd in model.sds.items()}}
    return models


def fitted(trials: Iterable[EarlierTrial]) -> dict[str, CostModel]:
    """The models without a prior, after all these trials."""
    models = cold_models()
    for trial in trials:
        for kind, bill, measured in bills_of(trial.resolved, trial.result):
            models[kind].add(departing(bill, trial.study), measured)
    return models


def told_by(kind: str, model: CostModel) -> dict[str, Any]:
    """One model of the prior's file: name -> [mean, sd] or [mean, sd, centre] of a factor's logarithm."""
    fit = model._solve()  # pyright: ignore[reportPrivateUsage]
    open_sds = 1.0 / np.sqrt(np.diag(np.linalg.inv(fit.covariance)))
    factors: dict[str, list[float]] = {}
    for name, column in sorted(model.columns.items()):
        before = model.prior_sd(name)
        if name.startswith(("study:", OF_STUDY, "machine")) or open_sds[column] > TOLD * before:
            continue
        sd = min(before, math.hypot(float(open_sds[column]), TRANSFER[kind] * before))
        centre = [round(model.centre[name], 3)] if model.centre[name] else []
        factors[name] = [round(float(fit.mean[column]), 4), round(sd, 4), *centre]
    return {"spread": round(fit.spread, 4), "trials": WORTH[kind], "factors": factors}


def prior_of(trials: Sequence[EarlierTrial]) -> dict[str, Any]:
    return {kind: told_by(kind, model) for kind, model in fitted(trials).items()}


def document_of(trials: Sequence[EarlierTrial]) -> str:
    """prior.json: a factor a line."""
    names = [trial.study for trial in trials]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    head = {
        "about": "Factors of the cost models: [mean, sd] or [mean, sd, centre] of each logarithm",
        "command": "python -m benchmarks.costs.prior --write",
        "studies": {name: names.count(name) for name in dict.fromkeys(names)},
        "commit": commit.stdout.strip(),
        "machine": f"CPU, {platform.machine()}",
    }
    text = json.dumps({**head, "models": prior_of(trials)}, indent=1)
    return re.sub(r"\[\s+([^\[\]]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", type=Path, action="append", default=[])
    parser.add_argument("--home", type=Path, action="append", default=[])
    parser.add_argument("--record", action="store_true", help=f"to {LAPTOP.relative_to(ROOT)}")
    parser.add_argument("--write", action="store_true", help=f"to {bills.PRIOR.relative_to(ROOT)}")
    options = parser.parse_args()
    homes = list(zip(options.study, options.home, strict=True))
    if options.record:
        LAPTOP.write_text(kept_of(homes), encoding="utf-8")
        homes = []
    trials = published() + committed()
    for study, home in homes:
        trials += recorded(study, home)
    text = document_of(trials)
    print(text, end="")
    if options.write:
        bills.PRIOR.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
