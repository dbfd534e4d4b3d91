"""How well σ of trained matrices is told from their settings: `python -m benchmarks.costs.weights HOME …`.

Reads the stored matrices of every finished laptop trial in these homes (runs/laptop/*/artifact.bin), and
tells by kind how far σ of what was stored is from search/costs/bills.py's, and from what `matrix_lr` (or the
embedding's rate) alone would tell: a line fitted to the logarithms. Trials under awq_lite are left out, whose
matrices have columns of zeros. No trainer runs; minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.results import table
from search.costs.bills import Training
from techniques import catalog
from techniques.base import TensorSpec
from techniques.config import Resolved, read_preset, resolve
from trainer.artifact import MAGIC, ZlibCodec, container_streams

KINDS = {
    "embedding": r"tok_emb$",
    "attention, into": r"blocks\.\d+\.attn\.c_[qkv]\.",
    "attention, out of (begins at zero)": r"blocks\.\d+\.attn\.proj\.",
    "MLP, into": r"blocks\.\d+\.mlp\.fc\.",
    "MLP, out of (begins at zero)": r"blocks\.\d+\.mlp\.proj\.",
}


def stored(folder: Path) -> tuple[Resolved, dict[str, np.ndarray]] | None:
    """(run, its matrices that are stored as integers); None for another format."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    preset = read_preset(config.pop("preset"))
    run = resolve({"preset": preset, "file": config}, catalog.runtime())
    name, _, body = (folder / "artifact.bin").read_bytes()[len(MAGIC) :].partition(b"\n")
    owner = run.owner("codec")
    codec = owner.codec() if owner else ZlibCodec()
    if codec.name != name.decode():
        return None
    streams = container_streams(codec.decompress(body))
    scales = {name: array for kind, name, array in streams if kind == "scale"}
    integers = {name: array for kind, name, array in streams if kind == "int8"}
    return run, {n: q * scales[n].astype(np.float64)[:, None] for n, q in integers.items()}


def told(homes: Sequence[Path]) -> Iterator[tuple[str, float, float, float]]:
    """(kind, ln rate, ln σ as predicted, ln σ as stored) of every matrix."""
    for artifact in sorted(path for home in homes for path in home.glob("runs/laptop/*/artifact.bin")):
        found = stored(artifact.parent)
        if found is None or "awq_lite" in found[0].techniques:
            continue
        run, matrices = found
        training = Training(run)
        for name, weights in matrices.items():
            sigma = math.sqrt(float(np.square(weights).mean()))
            kind = next((kind for kind, pattern in KINDS.items() if re.match(pattern, name)), "")
            if not kind or not sigma:
                continue
            layer = int(name.split(".")[1]) if name.startswith("blocks") else -1
            role = "embed" if layer < 0 else "mlp" if "mlp" in kind.lower() else "attn"
            spec = TensorSpec(role, weights.shape, layer, zero="zero" in kind)
            plain = run.config.tied_embed_lr if role == "embed" else run.config.matrix_lr
            yield kind, math.log(plain), math.log(training.sigma(spec)), math.log(sigma)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("homes", type=Path, nargs="+")
    rows: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
    for kind, *numbers in told(parser.parse_args().homes):
        rows[kind].append((numbers[0], numbers[1], numbers[2]))
    lines: list[list[str]] = []
    for kind, found in rows.items():
        rate, predicted, seen = np.array(found).T
        line = np.polyval(np.polyfit(rate, seen, 1), rate)
        error = seen - predicted
        shares = [f"{math.exp(np.median(error)):.2f}", f"{error.std():.2f}", f"{(seen - line).std():.2f}"]
        lines.append([kind, str(len(found)), f"{math.exp(np.median(seen)):.3f}", *shares])
    heads = ("matrices", "number", "median σ", "stored / told, median", "sd of ln", "by the rate alone")
    print(table(heads, lines), end="")


if __name__ == "__main__":
    main()
