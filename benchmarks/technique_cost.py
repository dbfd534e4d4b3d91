"""What each technique costs a training step: `python -m benchmarks.technique_cost [NAMES] [--write]`.

At proxy scale (4 layers of 192, sequences of 256, 2,048 tokens a step), with the settings of the technique's
smoke test widened to that size. Steps of the technique and of the plain trainer take turns in one process, in
processor seconds; a row is the median ratio of neighbours. Parameters and artifact bytes are the catalogue's
exact counts. Techniques that work after training alone are left out: validate.py shows what they do.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch

import train_gpt
from conformance import lab, subject, suite
from techniques import catalog
from techniques.base import Technique, claims

SCALE = {
    "num_layers": 4,
    "model_dim": 192,
    "num_heads": 4,
    "num_kv_heads": 2,
    "train_seq_len": 256,
    "train_batch_tokens": 2048,
    "micro_batches": 1,
    "iterations": 40,
    "warmdown_iters": 20,
}
RUN_SEAMS = ("hyper", "hyper_at", "orthogonalize", "weight", "stepper", "averager", "loader", "batch", "muon")
DOC = Path(__file__).resolve().parent.parent / "docs" / "technique_cost.md"


def in_training(cls: type[Technique]) -> bool:
    """Whether the technique has a part in a training step."""
    seams = {*subject.MODEL_SEAMS, *RUN_SEAMS}
    return bool(seams & set(claims(cls)))


def trainer_of(bench: lab.Lab, settings: Mapping[str, object], known: Mapping[str, type[Technique]]):
    resolved = bench.resolve(settings, known, **SCALE)
    audit = train_gpt.Audit(resolved.techniques)
    return train_gpt.Trainer(resolved, bench.world, bench.data, lab.QuietLog(), audit)  # type: ignore[arg-type]


def step_seconds(trainer: train_gpt.Trainer) -> float:
    """Processor seconds of one step at half of the run, when every schedule is under way."""
    begin = time.process_time()
    trainer.train_step(train_gpt.Moment(20, 0.5, trainer.config))
    if trainer.averager is not None:
        trainer.averager.update(trainer.model)
    return time.process_time() - begin


def measured(bench: lab.Lab, name: str, cls: type[Technique], pairs: int) -> tuple[str, int, float, float]:
    """(name, parameters added, ratio of a step, spread of the ratios)."""
    known = {n: suite.load(n) for n in (*cls.requires, name)}
    cls = known[name]
    base = {k: v for n in cls.requires for k, v in lab.smoke_settings(known[n], known).items()}
    off, on = trainer_of(bench, base, known), trainer_of(bench, lab.smoke_settings(cls, known), known)
    ratios: list[float] = []
    for i in range(pairs + 1):
        plain, technique = step_seconds(off), step_seconds(on)
        if i:  # the first steps of both pay for what is made once
            ratios.append(technique / plain)
    added = sum(p.numel() for p in on.model.parameters()) - sum(p.numel() for p in off.model.parameters())
    return name, added, statistics.median(ratios), statistics.stdev(ratios)


def table(rows: list[tuple[str, int, float, float]], skipped: list[str]) -> str:
    lines = [
        "| technique (smoke settings) | parameters | step time | spread of one pair |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {added:+,} | {100 * (ratio - 1):+.0f} % | ±{100 * sd:.0f} % |"
        for name, added, ratio, sd in rows
    ]
    return "\n".join(lines) + (f"\n\nDid not fit this scale: {', '.join(skipped)}.\n" if skipped else "\n")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--write", action="store_true", help=f"write {DOC.name}")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    known = catalog.metadata()
    names = options.names or [n for n in known if in_training(known[n])]
    rows: list[tuple[str, int, float, float]] = []
    skipped: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = lab.Lab(lab.write_corpus(Path(folder)))
        rows.append(measured_nothing(bench, options.pairs))
        for name in names:
            try:
                rows.append(measured(bench, name, known[name], options.pairs))
            except (ValueError, RuntimeError) as error:
                skipped.append(f"{name} ({str(error).splitlines()[0][:80]})")
            print(f"\r{len(rows)} of {len(names)}", end="", file=sys.stderr)
    text = table(rows, skipped)
    print("\n" + text)
    if options.write:
        head = (
            "# What a technique costs a training step\n\n"
            "Written by `python -m benchmarks.technique_cost --write`. "
            f"{' '.join((__doc__ or '').split(chr(10) + chr(10))[1].split())}\n"
            "The row `nothing` is the plain trainer against itself: the noise of this table. Measured on 2 "
            "shared virtual cores, one thread, float32.\n\n"
        )
        DOC.write_text(head + text, encoding="utf-8")
    return 0


def measured_nothing(bench: lab.Lab, pairs: int) -> tuple[str, int, float, float]:
    """The plain trainer against itself."""
    one, two = trainer_of(bench, {}, {}), trainer_of(bench, {}, {})
    ratios = [step_seconds(two) / step_seconds(one) for _ in range(pairs + 1)][1:]
    return "nothing", 0, statistics.median(ratios), statistics.stdev(ratios)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
