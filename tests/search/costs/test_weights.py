"""σ of trained weights: the rates are the trainer's own."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

import train_gpt
from search.costs.bills import Training, pulled, sourced_tensors
from techniques import catalog
from techniques.base import Hyper, claims
from techniques.config import read_preset, resolve
from trainer.seams import Seams
from trainer.world import World

SEAMS = ("hyper", "hyper_at", "lr_scale")


def run_of(known: dict[str, Any], **settings: Any) -> Any:
    told = {name.replace("__", "."): value for name, value in settings.items()}
    return resolve({"preset": read_preset("laptop"), "file": told}, known)


def test_rates_need_no_torch() -> None:
    """Every technique that moves a rate tells so without its whole module."""
    light = catalog.metadata()
    whole = catalog.runtime()
    moving = [n for n, t in light.items() if set(claims(t)) & set(SEAMS)]
    assert {"warmdown", "batch_schedule", "adam_groups", "layer_rates", "muon_details"} <= set(moving)
    for name in moving:
        settings = dict.fromkeys((name, *light[name].requires), True)
        settings |= {f"{name}.{k}": v for k, v in light[name].smoke.items()}
        ours = Training(resolve({"file": settings}, light))
        theirs = Training(resolve({"file": settings}, whole))
        assert (ours.scale, ours.hyper) == (theirs.scale, theirs.hyper), name


def test_each_matrix_has_the_rate_of_its_group() -> None:
    settings = {"adam_groups": True, "adam_groups__attn_lr_mult": 0.5, "adam_groups__embed_lr_mult": 3.0}
    settings |= {"layer_rates": True, "layer_rates__early": 2.0, "layer_rates__late": 0.7}
    settings |= {"layer_rates__split": 1, "bigram_hash": True, "value_embedding": True}
    run = run_of(catalog.runtime(), **settings)
    training = Training(run)
    seams = Seams(run)
    model = train_gpt.build_model(run, seams=seams)
    hyper = seams.chain("hyper", Hyper())
    optimizers = train_gpt.build_optimizers(model, run.config, hyper, World(run.config))
    groups = [g for o in optimizers for g in o.param_groups]
    found = Counter((tuple(p.shape), round(g["lr"], 9)) for g in groups for p in g["params"] if p.ndim == 2)
    told = [(t.shape, round(training.rate(t), 9)) for _, t in sourced_tensors(run) if len(t.shape) == 2]
    matrices = Counter(one for one in told if min(one[0]) > 8)
    assert matrices and all(found[one] == count for one, count in matrices.items())


def test_a_way_is_the_sum_of_the_rates() -> None:
    known = catalog.metadata()
    plain = Training(run_of(known))
    assert plain.scale == pytest.approx(100 * (0.6 + 0.4 / 2), rel=0.01)  # a warm-down over the last 40 steps
    half = Training(run_of(known, warmdown=True, warmdown__frac=1.0, warmdown__min_lr=0.0))
    assert half.scale == pytest.approx(50.0, rel=0.01)
    few = {"start_frac": 0.25, "num_stages": 1, "full_at": 0.5, "lr_power": 0.5}
    slow = Training(run_of(known, batch_schedule=True, **{f"batch_schedule__{k}": v for k, v in few.items()}))
    assert slow.scale == pytest.approx(100 * (0.5 * 0.5 + 0.1 + 0.2), rel=0.01)
    assert pulled(3.0, 0.0) == 3.0 and pulled(3.0, 1e-6) == pytest.approx(3.0, rel=1e-5)
    assert pulled(1e9, 0.1) == pytest.approx(10.0)


def test_matrices_grow_from_where_they_begin() -> None:
    known = catalog.metadata()
    still = Training(run_of(known, matrix_lr=1e-9))
    fast = Training(run_of(known, matrix_lr=0.1))
    specs = [t for _, t in sourced_tensors(still.resolved) if t.role in ("attn", "mlp")]
    assert {t.layer for t in specs} == {0, 1, 2} and sum(t.zero for t in specs) == 6
    for tensor in specs:
        began = 0.0 if tensor.zero else 1.0 / math.sqrt(3.0 * tensor.shape[1])
        assert still.sigma(tensor) == pytest.approx(began, abs=2e-4)
        assert fast.sigma(tensor) * math.sqrt(tensor.shape[1]) > 2.0
