"""A stage is a function of its key: equal training keys train equal weights, and a quantiser sees the same
model whether the weights were trained in this process or came from a file. For every technique there is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import train_gpt
from conformance.lab import Lab, QuietLog, smoke_settings, write_corpus
from techniques import catalog
from techniques.base import STAGES
from techniques.config import Resolved, stage_keys
from trainer.seams import Seams

KNOWN = catalog.runtime()
FAST: dict[str, Any] = {
    "iterations": 4,
    "warmdown_iters": 2,
    "warmup_steps": 0,
    "train_batch_tokens": 128,
    "num_layers": 2,
    "model_dim": 32,
    "num_heads": 2,
    "num_kv_heads": 1,
}
LATE = [n for n, t in KNOWN.items() if STAGES.index(t.stage) > STAGES.index("average")]
EARLY = [n for n in KNOWN if n not in LATE]
READS_LATER = [n for n in EARLY if {"weight", "bits"} & set(catalog.claims(KNOWN[n]))]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    torch.set_num_threads(1)
    return Lab(write_corpus(tmp_path_factory.mktemp("corpus")))


def resolved_with(lab: Lab, *names: str) -> Resolved:
    """ValueError for techniques that cannot be on together."""
    settings: dict[str, Any] = {}
    for name in names:
        settings |= smoke_settings(KNOWN[name], KNOWN)
    return lab.resolve(settings, KNOWN, **FAST)


def trainer_of(lab: Lab, resolved: Resolved) -> train_gpt.Trainer:
    return train_gpt.Trainer(Seams(resolved), lab.world, lab.data, QuietLog())  # type: ignore[arg-type]


def key(resolved: Resolved, stage: str = "average") -> str:
    return stage_keys(resolved, {}, "")[stage]


@pytest.mark.parametrize("early", ["", *READS_LATER])
def test_equal_training_keys_train_equal_weights(lab: Lab, early: str) -> None:
    names = [early] if early else []
    plain = resolved_with(lab, *names)
    expected = trainer_of(lab, plain).run().weights
    same = 0
    for late in LATE:
        try:
            resolved = resolved_with(lab, *names, late)
        except ValueError:
            continue
        if key(resolved) == key(plain):
            same += 1
            weights = trainer_of(lab, resolved).run().weights
            assert all(torch.equal(weights[n], w) for n, w in expected.items()), f"{late} beside {names}"
    assert same > len(LATE) // 2


def straight_and_resumed(lab: Lab, resolved: Resolved) -> list[bytes]:
    """The artifact of one training, quantised by the trainer that ran and by one that never did."""
    ran = trainer_of(lab, resolved)
    trained = ran.run()
    out: list[bytes] = []
    for trainer in (ran, trainer_of(lab, resolved)):
        if trainer is not ran:
            trainer.loader.stream.load(trained.facts["stream"])
        torch.manual_seed(resolved.config.seed)
        batches = train_gpt.calibration(trainer, 0.0)
        packed, _ = train_gpt.quantize(trained.weights, trainer.model, trainer.seams, batches)
        out.append(train_gpt.pack(packed, resolved.head(), train_gpt.ZlibCodec()))
    return out


@pytest.mark.parametrize("name", EARLY)
def test_a_quantiser_sees_the_same_model_behind_a_resume(lab: Lab, name: str) -> None:
    straight, resumed = straight_and_resumed(lab, resolved_with(lab, name, "gptq"))
    assert straight == resumed


@pytest.mark.parametrize("name", LATE)
def test_a_late_stage_does_not_depend_on_who_trained(lab: Lab, name: str) -> None:
    straight, resumed = straight_and_resumed(lab, resolved_with(lab, name))
    assert straight == resumed
