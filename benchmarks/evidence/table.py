"""Every configuration of a small space, trained once for real: `python -m benchmarks.evidence.table --make`.

The space is benchmarks/evidence/replay.toml, a study like any other; 576 configurations. Each is trained
by `train_gpt.py` in this process, which spares the start that a trial pays. The best by val_bpb within the
limit are trained on further seeds. What was trained is kept in `--out` line by line, and the same command
goes on from there; once all of it is there, it is packed into benchmarks/evidence/replay.json.xz.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import json
import lzma
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution

from search.space.native import build_space
from search.space.space import Space
from search.study.load import load_study
from search.study.model import Study
from techniques import catalog
from techniques.config import digest

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
STUDY = FOLDER / "replay.toml"
TABLE = FOLDER / "replay.json.xz"
SEED = 1337  # the trainer's own; every configuration has it
MORE_SEEDS, BEST = (1, 2, 3, 4), 30  # further seeds, and of how many configurations
FIGURES = ("val_bpb", "artifact_bytes", "code_bytes", "train_seconds", "eval_seconds")
Params = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """What was trained: key of a configuration (`key_of`) -> seed -> FIGURES."""

    study: Study
    space: Space
    params: dict[str, dict[str, Any]]  # key -> its parameters
    results: dict[str, dict[int, dict[str, float]]]

    def result(self, params: Params, seed: int = SEED) -> dict[str, float]:
        """FIGURES of a configuration; KeyError when it was not trained on this seed."""
        return self.results[key_of(self.space, params)][seed]

    def feasible(self, key: str) -> bool:
        return self.results[key][SEED]["artifact_bytes"] <= self.study.limits.artifact_bytes

    def ranked(self) -> list[str]:
        """Keys of what keeps the limit, the best first."""
        kept = [k for k in self.results if SEED in self.results[k] and self.feasible(k)]
        return sorted(kept, key=lambda k: self.results[k][SEED]["val_bpb"])


def key_of(space: Space, params: Params) -> str:
    return digest(space.keep_active(params))


def space_of(path: Path = STUDY) -> tuple[Study, Space]:
    known = catalog.metadata()
    study = load_study(path, known)
    return study, build_space(study, known)


def configurations(space: Space) -> dict[str, dict[str, Any]]:
    """key -> active parameters, of every configuration; the space may hold choices only."""
    dists = space.distributions
    assert all(isinstance(d, CategoricalDistribution) for d in dists.values()), dists
    options = [d.choices for d in dists.values() if isinstance(d, CategoricalDistribution)]
    found: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*options):
        params = space.keep_active(dict(zip(dists, values, strict=True)))
        found.setdefault(digest(params), params)
    return found


@functools.cache
def _trainer() -> Any:
    """train_gpt, whose data is opened once."""
    import train_gpt

    opened = functools.cache(train_gpt.corpus_dataset.open_dataset)
    train_gpt.corpus_dataset.open_dataset = opened
    return train_gpt


def train(space: Space, params: Params, seed: int) -> dict[str, float]:
    """FIGURES of one real run: the trainer's own, on this machine."""
    from techniques.settings import settings_from

    with tempfile.TemporaryDirectory(prefix="cell-") as place:
        path = Path(place) / "config.json"
        path.write_text(json.dumps(space.config(params) | {"seed": seed}), encoding="utf-8")
        words = [str(path), f"--out_dir={place}", "--device=cpu"]
        with contextlib.redirect_stdout(io.StringIO()):
            run = _trainer().Run(settings_from(words, {}, catalog.runtime(), has_gpu=False))
            code = run.go()
        result = json.loads((Path(place) / "result.json").read_text(encoding="utf-8"))
    if code != 0:
        raise RuntimeError(f"{dict(params)} ended with {code}: {result['reason']}")
    return {name: result[name] for name in FIGURES}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What was trained so far; a last line that was cut off does not count."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def gathered(lines: list[dict[str, Any]]) -> Table:
    study, space = space_of()
    table = Table(study, space, configurations(space), {})
    for line in lines:
        key = key_of(space, line["params"])
        table.results.setdefault(key, {})[line["seed"]] = {name: line[name] for name in FIGURES}
    return table


def wanted(table: Table) -> Iterator[tuple[str, int]]:
    """(key, seed) of each run: all configurations, shuffled, widest models first; then seeds of the best."""
    keys = list(table.params)
    random.Random(0).shuffle(keys)
    yield from ((key, SEED) for key in sorted(keys, key=lambda k: -table.params[k]["model_dim"]))
    yield from itertools.product(table.ranked()[:BEST], MORE_SEEDS)


def make(out: Path, minutes: float) -> bool:
    """Trains what is missing; whether all is there."""
    table = gathered(read_lines(out))
    begun, spent = time.monotonic(), time.process_time()
    with out.open("a", encoding="utf-8") as file:
        for count, (key, seed) in enumerate(wanted(table)):
            if seed in table.results.get(key, {}):
                continue
            if time.monotonic() - begun > 60.0 * minutes:
                print("out of time: the same command continues")
                return False
            found = train(table.space, table.params[key], seed)
            file.write(json.dumps({"params": table.params[key], "seed": seed, **found}) + "\n")
            file.flush()
            table.results.setdefault(key, {})[seed] = found
            cpu_s, spent = time.process_time() - spent, time.process_time()
            print(f"{count + 1}: seed {seed}, val_bpb {found['val_bpb']:.4f}, {cpu_s:.1f} s", flush=True)
    return True


def write_packed(table: Table, path: Path = TABLE) -> None:
    """Columns of the configurations' values and of each run's figures, compressed."""
    names = list(table.space.distributions)
    rows = [
        [*(table.params[key].get(name) for name in names), seed, *(figures[f] for f in FIGURES)]
        for key, runs in table.results.items()
        for seed, figures in runs.items()
    ]
    content = {"columns": [*names, "seed", *FIGURES], "rows": rows}
    path.write_bytes(lzma.compress(json.dumps(content, separators=(",", ":")).encode(), preset=9))


def load_table(path: Path = TABLE) -> Table:
    """The committed table."""
    content = json.loads(lzma.decompress(path.read_bytes()))
    num_params = len(content["columns"]) - 1 - len(FIGURES)
    lines: list[dict[str, Any]] = []
    for row in content["rows"]:
        told = dict(zip(content["columns"], row, strict=True))
        named = {n: told.pop(n) for n in content["columns"][:num_params]}
        lines.append({"params": {n: v for n, v in named.items() if v is not None}, **told})
    return gathered(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--make", action="store_true", help="train what is missing and pack it")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "replay.jsonl")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    options = parser.parse_args()
    if not options.make:
        table = load_table()
        print(f"{len(table.results)} configurations, {sum(map(table.feasible, table.results))} within limits")
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if make(options.out, options.minutes):
        write_packed(gathered(read_lines(options.out)))


if __name__ == "__main__":
    main()
