"""Bytes of one trained export under every codec, and how far that is from its entropy: `python -m
benchmarks.trainer.codecs [--preset laptop] [--json FILE] [--artifact FILE] [name=value …]`.

Trains the preset once with the given settings (int6 matrices and an int8 embedding unless they say otherwise)
and packs the very same tensors again and again. `bound` is the order-0 entropy of each tensor's integers plus
what brotli makes of everything else. The last column takes the integers alone, as clean streams of symbols:
bytes over their entropy. `--artifact` takes the tensors of a finished run (artifact.bin) instead.

`--order ROWS` times instead how per_group orders so many random rows of 512 integers of 6 bits, beside the
same chain over PyTorch's pairwise distances; no training.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import brotli  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from search.common.paths import ROOT
from search.trainers.trainer import TRAINER
from techniques import catalog
from techniques.base import claims
from techniques.compression.per_group import SORT_BLOCK, likeness_order
from trainer.artifact import MAGIC, Packed, ZlibCodec, container_streams, pack, read_head

# codec -> the settings that are worth a row; {}: its defaults
ROWS: dict[str, list[dict[str, Any]]] = {
    "zstd": [{"level": 3}, {"level": 22}],
    "lzma_xz": [{"preset": 6}, {"preset": 9, "extreme": True}],
    "brotli_shuffle": [{"stride": 1}, {"stride": 2}],
    "per_group": [{"sort": "never"}, {"sort": "always"}, {"coder": "xz", "sort": "always"}],
    "ans": [{"row_classes": 1, "column_classes": 1}, {"column_classes": 1}, {}],
}
EXPORT = {"mixed_bits": True, "mixed_bits.attn_bits": 6, "mixed_bits.mlp_bits": 6, "mixed_bits.embed_bits": 8}


def trained(preset: str, settings: dict[str, str]) -> bytes:
    """The artifact of one run."""
    with tempfile.TemporaryDirectory() as folder:
        flat = {**{k: str(int(v)) for k, v in EXPORT.items()}, **settings, "out_dir": folder}
        command = [*TRAINER, "--preset", preset, *(f"--{k}={v}" for k, v in flat.items())]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return (Path(folder) / "artifact.bin").read_bytes()


def every_codec() -> list[tuple[str, Any]]:
    """(label, codec) of the baseline and of each codec technique."""
    found: list[tuple[str, Any]] = [("zlib", ZlibCodec())]
    for name, technique in catalog.runtime().items():
        if "codec" in claims(technique):
            for settings in ROWS.get(name, [{}]):
                told = ", ".join(f"{k} {v}" for k, v in settings.items())
                codec = technique(technique.Config(**settings)).codec()
                found.append((f"{name} ({told})" if told else name, codec))
    return found


def container_of(artifact: bytes) -> bytes:
    name, _, body = artifact[len(MAGIC) :].partition(b"\n")
    codec = next(c for _, c in every_codec() if c.name == name.decode())
    return codec.decompress(body)


def entropy_bytes(q: np.ndarray) -> float:
    counts = np.unique(q, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def measure(container: bytes) -> dict[str, Any]:
    """Rows of the table, and what they are measured against."""
    streams = container_streams(container)
    integers = [(name, array) for kind, name, array in streams if kind == "int8"]
    others = b"".join(array.tobytes() for kind, _, array in streams if kind != "int8")
    others = container[: read_head(container)[1]] + others
    entropy = sum(entropy_bytes(q) for _, q in integers)
    bound = entropy + len(brotli.compress(others, quality=11, lgwin=24))
    symbols = sum(q.size for _, q in integers)
    ones = [Packed(n, torch.tensor(q), torch.ones(len(q)).half()) for n, q in integers]
    rows: list[dict[str, Any]] = []
    for label, codec in every_codec():
        start = time.process_time()
        body = codec.compress(container)
        packed_s, start = time.process_time() - start, time.process_time()
        assert codec.decompress(body) == container, label
        read_s = time.process_time() - start
        clean = len(pack(ones, {}, codec))
        rows.append(
            {
                "codec": label,
                "bytes": len(body),
                "over_bound": len(body) / bound,
                "pack_s": packed_s,
                "read_s": read_s,
                "clean_over_entropy": clean / entropy,
            }
        )
    return {
        "container_bytes": len(container),
        "symbols": symbols,
        "entropy_bits_per_symbol": 8 * entropy / symbols,
        "bound_bytes": bound,
        "codecs": sorted(rows, key=lambda row: row["bytes"]),
    }


def chain(q: np.ndarray) -> np.ndarray:
    """As likeness_order, of one block."""
    rows = torch.from_numpy(q.astype(np.float32))
    apart = torch.cdist(rows, rows, p=1.0)
    order = [0]
    while len(order) < len(q):
        apart[:, order[-1]] = torch.inf
        order.append(int(apart[order[-1]].argmin()))
    return np.array(order, np.uint16)


def order_told(rows: int) -> str:
    """CPU seconds of both, whose orders must be equal."""
    if not 0 < rows <= SORT_BLOCK:
        raise SystemExit(f"--order takes 1 to {SORT_BLOCK} rows, one block of them, but got {rows}.")
    q = np.random.default_rng(0).integers(-31, 32, (rows, 512)).astype(np.int8)
    began = time.process_time()
    order = likeness_order(q)
    ours = time.process_time() - began
    assert np.array_equal(order, chain(q))
    plain = time.process_time() - began - ours
    return (
        f"{rows} rows: {ours:.2f} CPU s, PyTorch's distances {plain:.2f}: {ours / plain:.3f}, the same order"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="name=value", help="of the trainer")
    parser.add_argument("--preset", default="laptop")
    parser.add_argument("--artifact", type=Path, help="artifact.bin of a finished run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--order", type=int, metavar="ROWS")
    options = parser.parse_args()
    if options.order is not None:
        torch.set_num_threads(1)
        print(order_told(options.order))
        return 0
    settings = dict(word.split("=", 1) for word in options.settings)
    torch.set_num_threads(1)
    artifact = options.artifact.read_bytes() if options.artifact else trained(options.preset, settings)
    found = measure(container_of(artifact))
    table = Table(
        title=f"{found['symbols']:,} integers of {found['entropy_bits_per_symbol']:.3f} bits; bound "
        f"{found['bound_bytes']:,.0f} bytes of {found['container_bytes']:,}"
    )
    for column in ("codec", "bytes", "over the bound", "pack s", "read s", "clean streams / entropy"):
        table.add_column(column, justify="left" if column == "codec" else "right")
    for row in found["codecs"]:
        figures = [f"{row['over_bound']:.3f}", f"{row['pack_s']:.2f}", f"{row['read_s']:.2f}"]
        table.add_row(row["codec"], f"{row['bytes']:,}", *figures, f"{row['clean_over_entropy']:.3f}")
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
