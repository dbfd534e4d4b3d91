"""What each technique costs: `python -m benchmarks.trainer.technique_cost [NAMES] [--pairs N] [--write]`.

At proxy scale (4 layers of 192, vocabulary 260, sequences of 256, 2,048 tokens a step), with the settings of
the smoke test, against the same trainer without it (what it needs is on in both). Step time: pairs
of neighbouring steps, one of each, in one process and in processor seconds; who begins alternates; the figure
is the median of the pairs' ratios. Bytes: the packed model after those steps, without code. A technique that
has no part in a training step packs the plain trainer's very weights, and has no step time.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import train_gpt
from conformance import lab, subject, suite
from techniques import catalog
from techniques.base import Technique, claims
from trainer.seams import Seams

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
WIDER = {"score_first_ttt": {"chunk_tokens": 256}}  # a chunk is no shorter than a sequence
RUN_SEAMS = (
    "init",
    "hyper",
    "hyper_at",
    "orthogonalize",
    "lr_scale",
    "stepper",
    "averager",
    "loader",
    "batch",
)
IN_TRAINING = {*subject.MODEL_SEAMS, *RUN_SEAMS, "muon"}
DOC = Path(__file__).resolve().parents[2] / "docs" / "technique_cost.md"


@dataclass
class Row:
    name: str
    stage: str
    params: int = 0
    bytes: int = 0
    ratios: tuple[float, ...] = ()  # of a step, pair by pair; none: it has no part in one
    note: str = ""

    def line(self) -> str:
        if self.note:
            return f"| {self.name} | {self.stage} | {self.note} | | | |"
        step, middle = "–", "–"
        if self.ratios:
            low, median, high = statistics.quantiles(self.ratios, n=4)
            step, middle = percent(median), f"{percent(low)} … {percent(high)}"
        return f"| {self.name} | {self.stage} | {self.params:+,} | {self.bytes:+,} | {step} | {middle} |"


def percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


class Bench:
    """Trainers of the proxy scale; what the plain one needs is measured once."""

    def __init__(self, folder: Path, pairs: int):
        self.lab, self.pairs = lab.Lab(folder), pairs

    def trainer(self, settings: Mapping[str, object], known: Mapping[str, type[Technique]]) -> lab.Finished:
        resolved = self.lab.resolve(settings, known, **SCALE)
        seams, log = Seams(resolved), lab.QuietLog()
        trainer = train_gpt.Trainer(seams, self.lab.world, self.lab.data, log)  # type: ignore[arg-type]
        trainer.averager = seams.slot("averager", lambda *_: None, trainer.model, trainer.config.iterations)
        return lab.Finished(resolved, trainer, {}, [], {})

    def step_seconds(self, run: lab.Finished) -> float:
        """Processor seconds of one step at half of the run, when every schedule is under way."""
        begin, trainer = time.process_time(), run.trainer
        trainer.train_step(train_gpt.Moment(20, 0.5, trainer.config))
        if trainer.averager is not None:
            trainer.averager.update(trainer.model, trainer.scale)
        return time.process_time() - begin

    def ratios(self, off: lab.Finished, on: lab.Finished) -> tuple[float, ...]:
        """Pair by pair; the first steps of both pay for what is made once."""
        found: list[float] = []
        for i in range(self.pairs + 1):
            order = (off, on) if i % 2 else (on, off)
            seconds = {id(run): self.step_seconds(run) for run in order}
            found.append(seconds[id(on)] / seconds[id(off)])
        return tuple(found[1:])

    def packed_bytes(self, run: lab.Finished, weights: dict[str, Tensor] | None = None) -> int:
        run.weights = weights or weights_of(run)
        return len(self.lab.export(run)[1])

    @functools.cache  # noqa: B019
    def plain(self, needed: tuple[str, ...]) -> tuple[int, dict[str, Tensor]]:
        """(bytes, weights) after the same steps of the trainer with only `needed` on."""
        known = {n: suite.load(n) for n in needed}
        run = self.trainer(settings_of(known), known)
        for _ in range(self.pairs + 1):
            self.step_seconds(run)
        return self.packed_bytes(run), run.weights

    def row(self, name: str) -> Row:
        cls = suite.load(name)
        known = {n: suite.load(n) for n in cls.requires}
        needed, weights = self.plain(tuple(known))
        every = {**known, name: cls}
        on = self.trainer(lab.smoke_settings(cls, every, WIDER.get(name, {})), every)
        row = Row(name, cls.stage)
        if IN_TRAINING & set(claims(cls)):
            off = self.trainer(settings_of(known), known)
            row.ratios = self.ratios(off, on)
            row.params = count(on) - count(off)
            row.bytes = self.packed_bytes(on) - needed
        else:
            row.bytes = self.packed_bytes(on, weights) - needed
        return row

    def nothing(self) -> Row:
        """The plain trainer against itself."""
        return Row("nothing", "", ratios=self.ratios(self.trainer({}, {}), self.trainer({}, {})))


def settings_of(known: Mapping[str, type[Technique]]) -> dict[str, object]:
    return {k: v for cls in known.values() for k, v in lab.smoke_settings(cls, known).items()}


def count(run: lab.Finished) -> int:
    return sum(p.numel() for p in run.trainer.model.parameters())


def weights_of(run: lab.Finished) -> dict[str, Tensor]:
    """What the run would export."""
    model, averager = run.trainer.model, run.trainer.averager
    weights = averager.weights() if averager else dict(model.named_parameters())
    return {n: w.detach().to("cpu", torch.float32).clone() for n, w in weights.items()}


def table(rows: list[Row]) -> str:
    head = "| technique | first stage | parameters | model bytes | step time | middle half of the pairs |"
    return "\n".join([head, "|---|---|--:|--:|--:|---|", *(row.line() for row in rows)]) + "\n"


def does_nothing() -> list[str]:
    """Techniques that change first values or rates alone: no work of a step that could be measured."""
    found = {n: IN_TRAINING & set(claims(cls)) for n, cls in catalog.metadata().items()}
    return [n for n, seams in found.items() if seams and seams <= {"init", "lr_scale", "hyper_at"}]


def heading(idle: list[float], pairs: int) -> str:
    """`idle`: the step-time ratios of what does no work in a step."""
    return (
        "# What a technique costs\n\n"
        "Written by `python -m benchmarks.trainer.technique_cost --write`. "
        f"{' '.join((__doc__ or '').split(chr(10) + chr(10))[1].split())}\n\n"
        f"{pairs} pairs a row; 2 shared virtual cores, one thread, float32. `nothing` is the plain trainer "
        f"against itself. It, {', '.join(does_nothing())} do no work in a step that could be measured, and "
        f"read {percent(min(idle))} to {percent(max(idle))}: that is the noise of this table, and a figure "
        "within it is no evidence of a cost. After so few steps weights are near their first values, so the "
        "bytes of averages, quantisers and codecs are not a trained model's, and vary by some tens. A scorer "
        "costs evaluation time, an optimiser's work shrinks beside a larger batch: "
        "[every technique](techniques.md) has estimates at full size.\n\n"
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--write", action="store_true", help=f"write {DOC.name}")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    names = options.names or list(catalog.technique_files())
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(lab.write_corpus(Path(folder)), options.pairs)
        rows = [bench.nothing()]
        for name in names:
            try:
                rows.append(bench.row(name))
            except ValueError as error:  # settings that do not fit this scale, a codec that is not installed
                rows.append(Row(name, "", note=str(error).splitlines()[0]))
            print(f"{len(rows) - 1} of {len(names)} {rows[-1].line()}", file=sys.stderr, flush=True)
    text = table(rows)
    print("\n" + text)
    if options.write:
        idle = [statistics.median(r.ratios) for r in rows if r.name in ("nothing", *does_nothing())]
        DOC.write_text(heading(idle, options.pairs) + text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
