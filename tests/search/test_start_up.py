"""`resolve` looks fields up in tables; here it is held against the slow obvious way."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.common.numeric import draw
from search.space.space import distribution
from techniques import catalog
from techniques.base import Int, Technique, check_value, parse_value
from techniques.config import LAYERS, TRAINER_FIELDS, Config, Resolved, flatten, resolve
from tests.conftest import ROOT

KNOWN = catalog.metadata()
Layers = Mapping[str, Mapping[str, Any]]


def slowly(layers: Layers, known: Mapping[str, type[Technique]]) -> dict[str, Any]:
    """`resolve` word by word: every field looked up by its name, every technique by all that is given."""
    given: dict[str, tuple[Any, str]] = {}
    for origin in LAYERS:
        for name, value in flatten(layers.get(origin, {})).items():
            owner, _, inner = name.partition(".")
            if name in known:
                on = value if isinstance(value, bool) else str(value).strip().lower() not in ("0", "false")
                if not on:
                    given = {k: v for k, v in given.items() if not k.startswith(name + ".")}
                given[name] = (on, origin)
                continue
            found = dataclasses.fields(known[owner].Config) if inner else dataclasses.fields(Config)
            like = {f.name: f for f in found}[inner or name]
            value = parse_value(name, value, like)
            check_value(name, value, like)
            given[name] = (value, origin)
    on_now: dict[str, Technique] = {}
    for name, cls in known.items():
        settings = {k.split(".", 1)[1]: v for k, (v, _) in given.items() if k.startswith(name + ".")}
        if given.get(name, (False, ""))[0]:
            on_now[name] = cls(cls.Config(**settings))
        elif settings:
            raise ValueError(f"`{name}.{next(iter(settings))}` was set, but {name} is off.")
    catalog.check_together(on_now)
    techniques = {t.name: t for t in catalog.order(on_now)}
    config = Config(**{n: given[n][0] for n in TRAINER_FIELDS if n in given})
    config.check()
    shape = config.shape()
    for technique in techniques.values():
        if "sizes" in catalog.claims(technique):
            technique.check(shape)
            shape = technique.sizes(shape)
    for technique in techniques.values():
        if "plan" in catalog.claims(technique):
            technique.check(shape)
            shape = dataclasses.replace(shape, plan=tuple(technique.plan(shape)(1.0)))
    for name, technique in techniques.items():
        technique.check(shape)
        for field in technique.overrides:
            if field in given and given[field][1] != "preset":
                raise ValueError(
                    f"`{field}` was set by the {given[field][1]}, but nothing reads it while {name}"
                )
    values: dict[str, Any] = dataclasses.asdict(config)
    for name in known:
        values[name] = name in techniques
        if name in techniques:
            values |= {f"{name}.{k}": v for k, v in dataclasses.asdict(techniques[name].config).items()}
    return {
        "config": config,
        "techniques": {name: technique.config for name, technique in techniques.items()},
        "values": values,
        "origins": {k: origin for k, (_, origin) in given.items()},
        "shape": shape,
        "costs": {name: technique.cost(shape) for name, technique in techniques.items()},
    }


def facts_of(resolved: Resolved) -> dict[str, Any]:
    return {
        "config": resolved.config,
        "techniques": {name: technique.config for name, technique in resolved.techniques.items()},
        "values": resolved.values,
        "origins": resolved.origins,
        "shape": resolved.shape(),
        "costs": resolved.costs,
    }


def outcome(way: Any, layers: Layers) -> tuple[dict[str, Any] | None, str]:
    """(what came out, or the beginning of the error)."""
    try:
        found = way(layers, KNOWN)
    except ValueError as error:
        return None, str(error).partition("off.")[0].partition(" is on.")[0][:60]
    return (found if isinstance(found, dict) else facts_of(found)), ""


def drawn_layer(rng: np.random.Generator, share: float) -> dict[str, Any]:
    """Gates and settings at random, of techniques that are off too, in a random order."""
    layer: dict[str, Any] = {}
    for name, technique in KNOWN.items():
        if rng.random() < share:
            layer[name] = bool(rng.random() < 0.6) if rng.random() < 0.8 else str(int(rng.integers(2)))
        for setting, domain in technique.space.items():
            fixed = domain
            if isinstance(domain, Int) and isinstance(domain.high, str):
                fixed = dataclasses.replace(domain, high=domain.low + 3)
            if (rng.random() < 0.7 and layer.get(name) not in (False, "0", None)) or rng.random() < 0.001:
                layer[f"{name}.{setting}"] = draw(distribution(fixed), rng)
    names = list(layer)
    rng.shuffle(names)
    return {name: layer[name] for name in names}


@pytest.mark.parametrize("seed", range(4))
def test_resolved_from_tables_as_by_hand(seed: int):
    rng, good, bad = np.random.default_rng(seed), 0, 0
    for k in range(60):
        share = float(rng.choice([0.01, 0.03, 0.1]))
        layers = {"preset": drawn_layer(rng, share), "file": drawn_layer(rng, share)}
        layers["file"] |= {"num_layers": int(rng.integers(1, 12)), "matrix_lr": float(rng.uniform(0, 1))}
        if k % 5 == 0:
            layers["file"]["num_kv_heads"] = int(rng.integers(1, 9))
        expected = outcome(slowly, layers)
        assert outcome(resolve, layers) == expected
        good, bad = good + (expected[0] is not None), bad + (expected[0] is None)
    assert good >= 10 and bad >= 5


def test_what_is_read_without_torch_is_kept_compiled_until_its_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = tmp_path / "xsa.py"
    text = (ROOT / "techniques" / "attention" / "xsa.py").read_text()
    path.write_text(text)
    load = catalog._load_metadata  # pyright: ignore[reportPrivateUsage]
    first = load("xsa", path)
    kept = list((tmp_path / "__pycache__").iterdir())
    assert len(kept) == 1
    assert ".light-" in kept[0].name
    assert load("xsa", path).reference == first.reference
    path.write_text(text.replace("arXiv:2603.09078", "arXiv:2603.09078v2"))
    assert load("xsa", path).reference == first.reference.replace("09078", "09078v2")
