"""Bytes and BPB of one trained model under every quantiser: `python -m benchmarks.trainer.quantizers
[--preset laptop] [--json FILE] [name=value …]`.

Trains once; every row then quantises, packs and scores the very same weights. Differences between rows are
the quantisers', without the noise of seeds; that they hold for another model is not said by them. Five bits
for the matrices and six for the embedding unless the settings say otherwise: wide enough to work, narrow
enough to show who rounds better.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
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
        artifact = train_gpt.pack(packed, resolved.identity(), train_gpt.ZlibCodec())
        score, _, _ = train_gpt.evaluate(artifact, seams, self.world, self.data)
        told = {name: facts["verdict"] for name, facts in seams.audit.report().items()}
        return {"bytes": len(artifact), "val_bpb": score.val_bpb, "cpu_s": seconds, "activity": told}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="name=value", help="of the trainer")
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.preset, dict(word.split("=", 1) for word in options.settings))
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
