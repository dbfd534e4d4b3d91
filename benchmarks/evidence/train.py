"""Trains every configuration of the table: `python -m benchmarks.evidence.train`.

Each is a run of `train_gpt.py` in this process, which spares the start that a trial pays: some 1.5 s of CPU.
The best within the limit are trained on further seeds. What was trained is kept in `--out` line by line, and
the same command goes on from there; when all is there, it packs benchmarks/evidence/replay.json.xz.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import train_gpt
from benchmarks.evidence.files import ROOT, open_lines, read_lines
from benchmarks.evidence.table import FIGURES, SEED, Table, gathered, write_table
from search.space.space import Space
from techniques import catalog
from techniques.settings import settings_from
from trainer.machine import cpu_name


def machine(table: Table) -> str:
    """What the last bits of a training depend on beside the code: processor, PyTorch, text."""
    resolved = table.space.resolve(next(iter(table.params.values())))
    data = train_gpt.corpus_dataset.open_dataset(
        resolved.config.data_path,
        tokenizer_path=resolved.config.tokenizer_path,
        vocab_size=resolved.config.vocab_size,
        seq_len=resolved.config.train_seq_len,
    )
    return f"{cpu_name()}, torch {torch.__version__}, data {data.data_id}"


@contextlib.contextmanager
def opened_once() -> Iterator[None]:
    """The trainer's data is read and checked by the first of the runs only: 0.8 s of CPU each."""
    dataset: Any = train_gpt.corpus_dataset
    plain = dataset.open_dataset
    dataset.open_dataset = functools.cache(plain)
    try:
        yield
    finally:
        dataset.open_dataset = plain


def train(space: Space, params: Mapping[str, Any], seed: int) -> dict[str, float]:
    """FIGURES of one real run on the CPU; RuntimeError when it fails."""
    with tempfile.TemporaryDirectory(prefix="cell-") as place:
        path = Path(place) / "config.json"
        path.write_text(json.dumps(space.config(params) | {"seed": seed}), encoding="utf-8")
        words = [str(path), f"--out_dir={place}", "--device=cpu"]
        with contextlib.redirect_stdout(io.StringIO()):
            code = train_gpt.Run(settings_from(words, {}, catalog.runtime(), has_gpu=False)).go()
        result = json.loads((Path(place) / "result.json").read_text(encoding="utf-8"))
    if code != 0:
        raise RuntimeError(f"{dict(params)} ended with {code}: {result['reason']}")
    return {name: result[name] for name in FIGURES}


def wanted(table: Table, best: int, more: int) -> Iterator[tuple[str, int]]:
    """(key, seed) of each run: all configurations, then `more` further seeds of the `best`."""
    yield from ((key, SEED) for key in table.params)
    yield from ((key, seed) for seed in range(1, more + 1) for key in table.ranked()[:best])


def make(out: Path, minutes: float, *, best: int, more: int) -> bool:
    """Trains what is missing; whether all is there."""
    table = gathered(read_lines(out))
    begun = time.monotonic()
    spent = time.process_time()
    with open_lines(out) as file, opened_once():
        for count, (key, seed) in enumerate(wanted(table, best, more), 1):
            if seed in table.results.get(key, {}):
                continue
            if time.monotonic() - begun > 60.0 * minutes:
                print("out of time: the same command continues")
                return False
            found = train(table.space, table.params[key], seed)
            file.write(json.dumps({"params": table.params[key], "seed": seed, **found}) + "\n")
            file.flush()
            table.results.setdefault(key, {})[seed] = found
            cpu_s = time.process_time() - spent
            spent += cpu_s
            print(f"{count}: seed {seed}, val_bpb {found['val_bpb']:.4f}, {cpu_s:.1f} s", flush=True)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "replay.jsonl")
    parser.add_argument("--best", type=int, default=30, help="configurations that further seeds are run of")
    parser.add_argument("--seeds", type=int, default=4, help="further ones")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many")
    options = parser.parse_args()
    if make(options.out, options.minutes, best=options.best, more=options.seeds):
        table = gathered(read_lines(options.out))
        write_table(table, machine(table))


if __name__ == "__main__":
    main()
