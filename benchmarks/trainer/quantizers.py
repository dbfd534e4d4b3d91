"""Bytes and BPB of one trained model under every quantiser: `python -m benchmarks.trainer.quantizers
[--preset laptop] [--json FILE] [name=value …]`.

Trains once; every row then quantises, packs and scores the very same weights. Differences between rows are
the quantisers', without the noise of seeds; that they hold for another model is not said by them. Five bits
for the matrices and six for the embedding unless the settings say otherwise: wide enough to work, narrow
enough to show who rounds better.

`--export pr549 pr1855 [--threads 2] [name=value …]` tells instead where the seconds go when a preset's whole
model is exported: weights are Gaussian, calibration reads CALIBRATED random tokens (its seconds are apart:
they are the forward passes'), and everything behind it is the trainer's own way to `artifact.bin`. A setting
of a technique that is off is left out; `prune=1 prune.target_bytes=N` shows a search for bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import train_gpt
from conformance.lab import QuietLog
from corpus import dataset
from techniques import catalog
from techniques.config import Resolved, read_preset, resolve
from trainer.artifact import ZlibCodec, pack
from trainer.ledger import Ledger
from trainer.seams import Seams

BITS = {"mixed_bits": 1, "mixed_bits.attn_bits": 5, "mixed_bits.mlp_bits": 5, "mixed_bits.embed_bits": 6}
GPTQ = {"gptq": 1, "gptq.calib_batches": 16}
OWN = {"gptq.calibration": "self", "gptq.self_sequences": 16, "gptq.self_tokens": 128}
ROWS: dict[str, dict[str, Any]] = {
    "8 bits, rounding": {"mixed_bits": 0},
    "rounding": {},
    "gptq_lite": {"gptq_lite": 1},
    "gptq": GPTQ,
    "gptq, own sequences": {**GPTQ, **OWN},
    "gptq, embedding too": {**GPTQ, "gptq.embedding": 1},
    "… and awq_lite": {**GPTQ, "gptq.embedding": 1, "awq_lite": 1, "awq_lite.group": 16},
    "… and lqer": {**GPTQ, "gptq.embedding": 1, "lqer": 1, "lqer.group": 32},
    "… and sensitivity_bits": {**GPTQ, "gptq.embedding": 1, "sensitivity_bits": 1},
    "… and prune 5 %": {**GPTQ, "gptq.embedding": 1, "prune": 1, "prune.fraction": 0.05},
}


CALIBRATED = 8192  # tokens: more than the widest matrix has columns
STAGES = ("calibrate", "bits by tensor", "round", "correct")  # a lap of the ledger each, the last two again


class Laps(Ledger):
    """The trainer's ledger, which keeps each lap's seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.wall: list[float] = []
        self.cpu: list[float] = []

    @contextlib.contextmanager
    def lap(self, model: Any) -> Iterator[None]:
        wall = time.perf_counter()
        cpu = time.process_time()
        with super().lap(model):
            yield
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def gaussian(model: Any) -> dict[str, torch.Tensor]:
    """Weights of a trained model's size: matrices of variance 1 over columns, the rest as it was made."""
    g = torch.Generator().manual_seed(0)
    return {
        n: torch.randn(p.shape, generator=g) * p.size(1) ** -0.5 if p.ndim == 2 else p.detach().clone()
        for n, p in model.named_parameters()
    }


def export(preset: str, given: dict[str, str]) -> dict[str, Any]:
    """Wall and CPU seconds by stage of one export, and what it came to."""
    layer = read_preset(preset)
    on = {**layer, **given}
    known = {k: v for k, v in given.items() if "." not in k or on.get(k.partition(".")[0], "0") != "0"}
    fewer = {"train_batch_tokens": 8192, "train_seq_len": 512, "micro_batches": 8, "num_threads": 0}
    resolved = resolve({"preset": layer, "file": fewer, "command line": known}, catalog.runtime())
    model = train_gpt.build_model(resolved)
    weights = gaussian(model)
    seams = Seams(resolved)
    seams.ledger = laps = Laps()
    g = torch.Generator().manual_seed(1)
    calib_batches = resolved.values.get("gptq.calib_batches", 1)
    shape = (calib_batches, CALIBRATED // calib_batches // 512, 512)
    ids = torch.randint(resolved.config.vocab_size, shape, generator=g)
    wall = time.perf_counter()
    cpu = time.process_time()
    packed, _ = train_gpt.quantize(weights, model, seams, ((part, part) for part in ids))
    before = time.perf_counter(), time.process_time()
    artifact = pack(packed, resolved.head(), seams.codec())
    after = time.perf_counter(), time.process_time()
    rows = {name: (w, c) for name, w, c in zip(STAGES, laps.wall, laps.cpu, strict=False)}
    rows |= {"pack": (after[0] - before[0], after[1] - before[1])}
    whole = (after[0] - wall, after[1] - cpu)
    told = sum(w for w, _ in rows.values()), sum(c for _, c in rows.values())
    rows["the audit, and what is tried again"] = (whole[0] - told[0], whole[1] - told[1])
    counted = tuple(a - b for a, b in zip(whole, rows["calibrate"], strict=True))
    rows["all but calibrate"] = (counted[0], counted[1])
    integers = sum(p.q.numel() for p in packed if p.scale is not None)
    facts = {n: f for n, f in seams.audit.report().items() if "packings" in f}
    return {"rows": rows, "integers": integers, "bytes": len(artifact), "facts": facts}


def show_exports(options: argparse.Namespace, given: dict[str, str]) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {}
    for preset in options.export:
        found[preset] = one = export(preset, given)
        title = f"export of {preset}: {one['integers']:,} integers, {one['bytes']:,} bytes of model"
        table = Table(title=f"{title}, {options.threads} threads")
        for column in ("stage", "wall s", "CPU s"):
            table.add_column(column, justify="left" if column == "stage" else "right")
        for stage, seconds in one["rows"].items():
            table.add_row(stage, *(f"{s:.2f}" for s in seconds))
        Console(width=None if sys.stdout.isatty() else 100).print(table)
        for name, facts in one["facts"].items():
            print(f"{name}: {json.dumps(facts)}")
    return found


class Bench:
    """One training run, and what each row makes of its weights."""

    def __init__(self, preset: str, given: dict[str, str]):
        self.preset, self.given = preset, given
        plain = self.resolved({})
        c, shape = plain.config, plain.shape()
        self.world = train_gpt.World(c)
        self.data: Any = dataset.open_dataset(
            c.data_path, tokenizer_path=c.tokenizer_path, vocab_size=c.vocab_size, seq_len=shape.eval_seq_len
        )
        self.trainer = train_gpt.Trainer(Seams(plain), self.world, self.data, QuietLog())  # type: ignore[arg-type]
        self.weights = self.trainer.run().weights

    def resolved(self, settings: dict[str, Any]) -> Resolved:
        on = {k: v for k, v in settings.items() if settings.get(k.partition(".")[0], 1)}
        layers = {"preset": read_preset(self.preset), "file": on, "command line": self.given}
        return resolve(layers, catalog.runtime())

    def row(self, settings: dict[str, Any]) -> dict[str, Any]:
        resolved, start = self.resolved(settings), time.process_time()
        seams = Seams(resolved)
        self.trainer.loader = train_gpt.Loader(resolved.config, self.world, self.data.train_paths)
        batches = train_gpt.calibration(self.trainer)
        packed, _ = train_gpt.quantize(self.weights, self.trainer.model, seams, batches)
        seconds = time.process_time() - start
        artifact = pack(packed, resolved.identity(), ZlibCodec())
        score, _, _ = train_gpt.evaluate(artifact, seams, self.world, self.data)
        told = {name: facts["verdict"] for name, facts in seams.audit.report().items()}
        return {"bytes": len(artifact), "val_bpb": score.val_bpb, "cpu_s": seconds, "activity": told}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="name=value", help="of the trainer")
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--export", nargs="+", metavar="PRESET", help="seconds of exporting whole models")
    parser.add_argument("--threads", type=int, default=2, help="of --export")
    options = parser.parse_args()
    given = dict(word.split("=", 1) for word in options.settings)
    if options.export:
        exports = show_exports(options, given)
        if options.json:
            options.json.write_text(json.dumps(exports, indent=1), encoding="utf-8")
        return 0
    torch.set_num_threads(1)
    bench = Bench(options.preset, given)
    table = Table(title=f"one model of preset {options.preset}, quantised again and again")
    for column in ("quantiser", "model bytes", "val_bpb", "CPU s"):
        table.add_column(column, justify="left" if column == "quantiser" else "right")
    rows: dict[str, dict[str, Any]] = {}
    for label, settings in ROWS.items():
        rows[label] = found = bench.row({**BITS, **settings})
        table.add_row(label, f"{found['bytes']:,}", f"{found['val_bpb']:.4f}", f"{found['cpu_s']:.2f}")
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
