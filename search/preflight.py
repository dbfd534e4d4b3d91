"""Preflight: what a configuration will cost, before a second is spent on it, and whether it can be
admitted.

Bytes are exact elements × entropy of their integers × overhead of the codec, plus the code; seconds are
exact FLOPs × what finished trials took per FLOP. Each prediction is corrected by a Bayesian linear model of
log(measured / predicted) over the techniques that are on and a few sizes, refitted as trials finish.
`spread` is what stays unexplained between equal runs; `doubt` is what the model has not seen enough of, and
is huge before the first trial. A limit rejects a configuration whose prediction, less its doubt, breaks it:
what was never tried is tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search.calibration import Correction, Estimate
from search.study import Study
from techniques import catalog
from techniques.base import SLOTS, Shape, Technique, Tensor, claims
from techniques.config import Resolved

ROOT = Path(__file__).resolve().parent.parent
SPREADS = 2.0  # standard deviations between a prediction and its upper bound
BACKWARD = 3.0  # FLOPs of a training token over those of a forward one
ROW_SCALE_BYTES = 1.8  # one fp16 scale a row, after the codec (they differ little)
# bits per symbol over the entropy, measured on exports (proxy.md, Bytes): by entropy, then codec
ENTROPIES = (2.10, 2.75, 3.33, 3.90, 4.97, 8.0)
OVERHEAD = {
    "zlib": (1.195, 1.170, 1.157, 1.144, 1.075, 1.02),
    "zstd": (1.057, 1.021, 1.017, 1.013, 1.012, 1.005),
    "lzma": (1.113, 1.104, 1.069, 1.047, 1.028, 1.02),
    "brotli": (1.054, 1.018, 1.014, 1.009, 1.008, 1.005),
    # one class of rows and columns (more are a gain); brotli, less what sorted rows save: benchmarks.codecs
    "ans": (1.003, 1.003, 1.003, 1.003, 1.003, 1.003),
    "per_group": (1.048, 1.012, 1.008, 1.003, 1.002, 1.000),
}


@dataclass(frozen=True)
class Prediction:
    """What a configuration is predicted to cost; None where no finished trial tells."""

    params: int
    artifact_bytes: int
    artifact_bytes_upper: int
    train_seconds: float | None
    eval_seconds: float | None
    eval_seconds_upper: float | None


class Preflight:
    """Predicts and admits; one a worker, taught by `learn` with the trials that finish anywhere."""

    def __init__(self, study: Study, *, root: Path = ROOT):
        self.study = study
        self.root = root
        self.model_bytes = Correction(intercept_sd=0.08, technique_sd=0.03, slope_sd=0.05, spread=0.01)
        self.eval_seconds = Correction(intercept_sd=12.0, technique_sd=0.5, slope_sd=0.3, spread=0.1)
        self.train_seconds = Correction(intercept_sd=12.0, technique_sd=0.15, slope_sd=0.3, spread=0.1)
        self._known_code: dict[tuple[str, ...], int] = {}  # techniques -> code bytes that a result told
        self._file_sizes: dict[str, int] = {}
        self._learnt: set[tuple[str, Any]] = set()

    # -- what it says

    def predict(self, resolved: Resolved) -> Prediction:
        """The cost of a configuration, seconds only once a trial has finished."""
        size, code = self._bytes(resolved), self.code_bytes(resolved)
        train, evaluation = self._train(resolved), self._eval(resolved)
        return Prediction(
            params=sum(t.numel for t in all_tensors(resolved)),
            artifact_bytes=round(size.at(0, 0)) + code,
            artifact_bytes_upper=round(size.at(SPREADS, 0)) + code,
            train_seconds=train.at(0, 0) if train else None,
            eval_seconds=evaluation.at(0, 0) if evaluation else None,
            eval_seconds_upper=evaluation.at(SPREADS, 0) if evaluation else None,
        )

    def rejection(self, resolved: Resolved) -> str | None:
        """Why a configuration is not worth a trial, `what: facts`; None when it is."""
        for name, technique in resolved.techniques.items():
            law, track = technique.verdict(), self.study.track
            if not law.admitted(track):
                return f"legality: {name} is {law.verdict.value} on the track {track} ({law.source})"
        limits, size, code = self.study.limits, self._bytes(resolved), self.code_bytes(resolved)
        if size.at(SPREADS, -1) + code > limits.artifact_bytes:
            upper = round(size.at(SPREADS, 0)) + code
            return f"bytes: up to {upper:,} predicted, {limits.artifact_bytes:,} allowed"
        for what, estimate, limit in (
            ("train", self._train(resolved), limits.train_seconds),
            ("eval", self._eval(resolved), limits.eval_seconds),
        ):
            if estimate and estimate.at(0, -1) > limit:
                return f"{what}: {estimate.at(0, 0):.4g} s predicted, {limit:g} s allowed"
        return None

    def learn(self, results: Iterable[tuple[Resolved, Mapping[str, Any]]]) -> None:
        """Calibrate from finished trials; one seen before is skipped, a missing figure teaches nothing."""
        for resolved, result in results:
            key = (resolved.hash(), result.get("train_seconds"))
            if key in self._learnt:
                continue
            self._learnt.add(key)
            features = Correction.features(resolved)
            code, artifact = _positive(result, "code_bytes"), _positive(result, "artifact_bytes")
            if code and artifact and artifact > code:
                self._known_code[tuple(sorted(resolved.techniques))] = int(code)
                self.model_bytes.add(features, math.log((artifact - code) / model_bytes(resolved)))
            if seconds := _positive(result, "eval_seconds"):
                self.eval_seconds.add(features, math.log(seconds / eval_flops(resolved)))
            seconds = _positive(result, "train_seconds")
            if seconds and not resolved.config.max_wallclock_seconds:
                self.train_seconds.add(features, math.log(seconds / train_flops(resolved)))

    # -- how it knows

    def _bytes(self, resolved: Resolved) -> Estimate:
        return self.model_bytes.estimate(math.log(model_bytes(resolved)), Correction.features(resolved))

    def _train(self, resolved: Resolved) -> Estimate | None:
        if resolved.config.max_wallclock_seconds:  # the budget is the prediction
            return Estimate(math.log(resolved.config.max_wallclock_seconds), 0.0, 0.0)
        if not self.train_seconds.rows:
            return None
        return self.train_seconds.estimate(math.log(train_flops(resolved)), Correction.features(resolved))

    def _eval(self, resolved: Resolved) -> Estimate | None:
        if not self.eval_seconds.rows:
            return None
        return self.eval_seconds.estimate(math.log(eval_flops(resolved)), Correction.features(resolved))

    def code_bytes(self, resolved: Resolved) -> int:
        """Bytes of code that the artifact counts: told by a like result, else those of the files."""
        names = tuple(sorted(resolved.techniques))
        if names in self._known_code:
            return self._known_code[names]
        if not self._file_sizes:
            self._file_sizes = self._measure_files()
        sizes = self._file_sizes
        own = sizes[""] + sum(sizes.get(name, 0) for name in names)
        if not self._known_code:
            return own
        known, told = next(iter(self._known_code.items()))
        return max(0, own + told - sizes[""] - sum(sizes.get(name, 0) for name in known))

    def _measure_files(self) -> dict[str, int]:
        """technique -> bytes of its file; "" -> bytes of what every run executes."""
        shared = [
            self.root / "train_gpt.py",
            *self.root.glob("corpus/*.py"),
            *self.root.glob("techniques/*.py"),
        ]
        sizes = {name: path.stat().st_size for name, path in catalog.technique_files().items()}
        return {**sizes, "": sum(path.stat().st_size for path in shared if path.is_file())}


def _positive(result: Mapping[str, Any], key: str) -> float:
    """The figure when it is a positive finite number, else 0."""
    value = result.get(key)
    return float(value) if isinstance(value, int | float) and 0 < value < math.inf else 0.0


def owner_of(resolved: Resolved, slot: str) -> Technique | None:
    """The technique that fills a slot in this configuration."""
    assert slot in SLOTS
    return next((t for t in resolved.techniques.values() if slot in claims(t)), None)


def all_tensors(resolved: Resolved) -> list[Tensor]:
    """Every parameter of the run, exactly."""
    shape = resolved.shape()
    extra = [t for technique in resolved.techniques.values() for t in technique.cost(shape).tensors]
    return [*shape.tensors(), *extra]


def entropy_bits(bits: int, columns: int) -> float:
    """Entropy of a Gaussian row's integers when its largest weight, E max |w| / σ, is the largest one."""
    root = math.sqrt(2.0 * math.log(2.0 * max(4, columns)))
    largest = root - (math.log(math.log(2.0 * max(4, columns))) + math.log(4.0 * math.pi) - 1.154) / (
        2.0 * root
    )
    sigma = (2 ** (bits - 1) - 1) / largest
    return max(0.5, min(float(bits), math.log2(sigma * math.sqrt(2.0 * math.pi * math.e))))


def model_bytes(resolved: Resolved) -> float:
    """Predicted bytes of the packed weights, before any correction."""
    bits_owner, codec_owner = owner_of(resolved, "bits"), owner_of(resolved, "codec")
    codec = next((c for c in OVERHEAD if codec_owner and c in codec_owner.name), "zlib")
    total = 2_000.0  # the head
    for tensor in all_tensors(resolved):
        if tensor.role == "aux":
            continue  # of the training loss, not stored
        if tensor.role == "scalar":
            total += 3.6 * tensor.numel
        elif len(tensor.shape) != 2 or tensor.numel < resolved.config.quantize_min_numel:
            total += 1.85 * tensor.numel
        else:
            bits = (bits_owner.bits(tensor.role) if bits_owner else None) or 8
            entropy = entropy_bits(bits, tensor.shape[1])
            overhead = float(np.interp(entropy, ENTROPIES, OVERHEAD[codec]))
            total += tensor.numel * entropy * overhead / 8.0 + ROW_SCALE_BYTES * tensor.shape[0]
    shape = resolved.shape()
    return total + sum(t.cost(shape).artifact_bytes for t in resolved.techniques.values())


def _forward_flops(resolved: Resolved, shape: Shape) -> float:
    return shape.flops_per_token() + sum(t.cost(shape).flops_per_token for t in resolved.techniques.values())


def eval_flops(resolved: Resolved) -> float:
    """FLOPs of the evaluation; with `val_tokens` 0 (all) per validation token: as good to calibrate."""
    shape, tokens = resolved.shape(), resolved.config.val_tokens or 1
    passes = 1.0 + sum(t.cost(shape).eval_passes for t in resolved.techniques.values())
    return passes * tokens * _forward_flops(resolved, shape)


def train_flops(resolved: Resolved) -> float:
    """FLOPs of the timed training: every step, and the calibration batches."""
    config, shape = resolved.config, resolved.shape()
    passes = sum(t.cost(shape).calibration_passes for t in resolved.techniques.values())
    return (
        config.train_batch_tokens * _forward_flops(resolved, shape) * (BACKWARD * config.iterations + passes)
    )
