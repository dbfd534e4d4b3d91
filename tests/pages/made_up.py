"""A study of made-up trials, without a database: what a report may meet."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.common.paths import Folders
from search.session.session import Session
from search.study.load import find_study
from search.trainers.trainer import trainer_of
from tests.search.fake_studies import write_study

BEGUN = datetime.datetime(2026, 11, 1, 9, 0, 0)
NAMES = ("xsa", "ema", "smear_gate", "bigram_hash", "value_embedding", "gptq", "token_tilt", "swa")
EFFECTS = (-0.08, -0.05, -0.04, -0.09, -0.02, 0.0, 0.03, 0.01)
SPACE: dict[str, BaseDistribution] = {
    **{name: CategoricalDistribution([False, True]) for name in NAMES},
    "matrix_lr": FloatDistribution(0.01, 0.15, log=True),
}
CONFIRMED = {
    "sd": 0.007,
    "seeds": list(range(8)),
    "sound": True,
    "beaten_by": "",
    "against": "baseline",
    "difference_bpb": -0.21,
}


def made_up_trial(number: int, rng: np.random.Generator, at: float) -> tuple[FrozenTrial, float]:
    """(a trial that began `at` seconds, when it ended)."""
    on = rng.random(len(NAMES)) < 0.5
    rate = float(np.exp(rng.uniform(np.log(0.01), np.log(0.15))))
    value = (
        2.84 + float(on @ np.array(EFFECTS)) + 0.03 * abs(np.log(rate / 0.05)) + float(rng.normal(0, 0.007))
    )
    value = float(value - 0.05 * float(on[0] and on[1]))
    bytes_ = 270_000 + 9_000 * int(on.sum())
    train = 8.0 + 0.8 * int(on.sum())
    kind = rng.random()
    lasts = train * (0.6 if kind < 0.15 else 1.0) + 3.0
    reports = [
        [p, value + 0.9 * (1.0 - p) ** 1.5 + float(rng.normal(0, 0.01)), 1.0] for p in (0.25, 0.5, 0.75, 1.0)
    ]
    attrs: dict[str, Any] = {
        "techniques": [n for n, o in zip(NAMES, on, strict=True) if o],
        "worker": f"host:{100 + number % 2}:{number % 2}",
        "legality": "legal" if not on[6] else "token_tilt: legal-if-timed",
        "config": {"matrix_lr": rate},
        "hash": f"{number:016x}",
    }
    limits = {"bytes": bytes_ / 330_000 - 1, "train": train / 14.0 - 1, "eval": -0.4, "run": -1.0}
    attrs["outcome"] = "finished" if kind >= 0.19 else "pruned" if kind < 0.15 else "failed"
    state = TrialState.COMPLETE
    answer = value
    reason = None
    if kind < 0.15:
        state = TrialState.PRUNED
        answer = None
        reports = reports[: int(rng.integers(2, 4))]
        limits |= {"bytes": 0.0, "train": 0.0, "eval": 0.0}
        reason = "given up at 50%: 2.91 is 0.12 above the standard"
    elif kind < 0.19:
        state = TrialState.PRUNED
        answer = None
        reports = reports[:1]
        limits = limits | {"run": 1.0}
        reason = "diverged: train_loss is nan" if number % 2 else "out of memory: 12 GB asked for"
    else:
        figures = {"artifact_bytes": bytes_, "train_seconds": train, "eval_seconds": 2.5, "steps": 100}
        attrs |= {
            **figures,
            "slack_bytes": 330_000 - bytes_,
            "inactive": {"swa": "inactive"} if on[7] else None,
        }
        links = [["weights", value + 0.02], ["ema", value + 0.01], ["packed", value + 0.03], ["ttt", value]]
        attrs |= {"bpb_chain": [link for link in links if on[1] or link[0] != "ema"]}
        attrs |= {"passport": {"device": "a laptop's CPU", "device_type": "cpu"}}
        attrs |= {"findings": ["ledger: 12 tokens <b>unseen</b>"]} if number % 17 == 3 else {}
    attrs |= {"reports": reports, "reason": reason}
    begun = BEGUN + datetime.timedelta(seconds=at)
    trial = create_trial(
        state=state,
        value=answer,
        params={**{n: bool(o) for n, o in zip(NAMES, on, strict=True)}, "matrix_lr": rate},
        distributions=SPACE,
        constraints=limits,
        user_attrs={k: v for k, v in attrs.items() if v is not None},
        intermediate_values={k + 1: r[1] for k, r in enumerate(reports)},
    )
    trial.datetime_start = begun
    trial.datetime_complete = begun + datetime.timedelta(seconds=lasts)
    return trial, at + lasts


def made_up_trials(count: int) -> list[FrozenTrial]:
    """Of two workers; every kind of end is among them."""
    rng = np.random.default_rng(0)
    free = [0.0, 2.0]
    trials: list[FrozenTrial] = []
    for number in range(count):
        trial, free[number % 2] = made_up_trial(number, rng, free[number % 2])
        trials.append(trial)
    return trials


def made_up_answers(home: Path, trial: int) -> None:
    """What `compare` and `ablate` would have left about the study; null where there is no number."""
    told = {"arm": "xsa", "base": "laptop", "mean": -0.08, "low": -0.11, "high": -0.05, "pairs": 5}
    odd = {"arm": "swa", "base": "laptop", "mean": None, "low": None, "high": None, "pairs": 2}
    answers = [told | {"sentence": "xsa helps: <i>very</i>."}, odd | {"sentence": "swa fails."}]
    figures = (("bigram_hash", -0.09), ("xsa", -0.08), ("ema", -0.05), ("token_tilt", 0.03), ("gptq", None))
    effects = [
        {"technique": name, "change": "taken away" if name != "token_tilt" else "added", "mean": mean}
        | {
            "low": mean and mean - 0.02,
            "high": mean and mean + 0.02,
            "p": 0.001,
            "seconds": 0.8,
            "bytes": 9e3,
        }
        | {"verdict": "no evidence" if mean is None else "helps" if mean < 0 else "hurts"}
        for name, mean in figures
    ]
    pair = {"techniques": ["xsa", "ema"], "mean": -0.05, "low": -0.07, "high": -0.03, "verdict": "reinforce"}
    chain = [{"stage": name, "mean": bpb, "sd": 0.007} for name, bpb in (("weights", 2.57), ("packed", 2.59))]
    ablated = {"study": "made_up", "trial": trial, "effects": effects, "pairs": [pair], "chain": chain}
    ablated |= {"score": {"mean": 2.55, "sd": 0.007}, "seeds": [1, 2, 3, 4], "sentences": ["A tilt."]}
    for kind, facts in (("compare", {"answers": answers}), ("ablate", ablated)):
        path = home / "runs" / kind / "abc" / "answer.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(facts))


def made_up_session(folder: Path, count: int, *, confirmed: bool = True) -> Session:
    """`count` trials of two workers; every kind of end is among them."""
    study = find_study(write_study(folder, "made_up"))
    stored = optuna.create_study(study_name="made_up")
    stored.add_trials(made_up_trials(count))
    if count:
        stored.set_user_attr("baseline", {"val_bpb": 2.8377, "hash": "0"})
    done = sorted((t for t in stored.trials if t.state == TrialState.COMPLETE), key=lambda t: t.value or 0.0)
    if confirmed and done:
        best = {
            str(t.number): CONFIRMED | {"bpb": (t.value or 0.0) + 0.012 + 0.004 * k}
            for k, t in enumerate(done[:3])
        }
        stored.set_user_attr("confirmed", best)
    return Session(study, Folders(folder, "made_up"), "", stored, trainer_of(study))
