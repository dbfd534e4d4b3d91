"""Twelve minutes of one GPU, the most valuable first: `python -m benchmarks.trainer.one_card --data DATASET`.

Parts, in order: `steps` (naive and pr549 at full size; --public pr549='COMMAND' runs the public script of the
same stack behind them, on the same card and tokens, until its last step), `search` (six trials on two workers
that share the compiler's caches), `pr1855` (FlexAttention compiled), `attention` (each kernel that is
installed), `scorers` (banded against sliding windows). A part gets its share of --minutes and what those
before it left; OUT/results.json and a line are written after each, so that a lost machine costs one part.
--plan tells the commands and starts nothing. --toy: the same on a CPU, of a tiny model, in a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import write_json

ROOT = Path(__file__).resolve().parents[2]
STEP = re.compile(r"step:(\d+)/(\d+) .*step_avg:([\d.]+)ms")
STUDY = """[study]
name = "one_card"
preset = "{preset}"
num_reports = 1
[limits]
artifact_bytes = 16_000_000
train_seconds = 600
eval_seconds = 600
[fixed]
{fixed}
num_threads = 1
[techniques]
others = "off"
xsa = "free"
leaky_relu2 = "free"
gptq_lite = "free"
[space]
matrix_lr = {{low = 0.02, high = 0.08, log = true}}
"""
KERNELS = (
    "from benchmarks.trainer.gpu import attention_rows\nfor row in attention_rows(): print(row, flush=True)"
)


@dataclass(frozen=True)
class Run:
    """A command of a part."""

    name: str
    words: tuple[str, ...]
    read: Callable[[Path, str], dict[str, Any]]  # facts, of the run's folder and of what it printed
    environ: tuple[tuple[str, str], ...] = ()
    until_last_step: bool = False  # it is ended behind its last step: what follows takes minutes


@dataclass(frozen=True)
class Part:
    name: str
    share: float  # of the minutes
    runs: tuple[Run, ...]


def result_of(folder: Path, printed: str) -> dict[str, Any]:
    """Of a run of train_gpt.py."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    timed = result["stage_seconds"]["train"]["timed"]
    named = ("val_bpb", "protocol", "eval_seconds", "artifact_bytes", "attention")
    return {"ms_per_step": 1000 * timed / max(1, result["steps"]), **{n: result[n] for n in named}}


def last_step(folder: Path, printed: str) -> dict[str, Any]:
    """Of a public script's log. ValueError without a step."""
    steps = STEP.findall(printed)
    if not steps:
        raise ValueError("no line with step_avg")
    return {"ms_per_step": float(steps[-1][2]), "steps": int(steps[-1][0])}


def last_lines(folder: Path, printed: str) -> dict[str, Any]:
    return {"said": [line for line in printed.splitlines() if line.strip()][-12:]}


class Plan:
    """The parts, and what their runs share."""

    def __init__(self, options: argparse.Namespace):
        self.out: Path = options.out
        self.toy: bool = options.toy
        self.public = dict(one.split("=", 1) for one in options.public)
        self.newest: dict[str, str] = place_of(options.data_8192) if options.data_8192 else {}
        self.settings = {
            **place_of(options.data),
            "device": "cpu" if self.toy else "cuda",
            "iterations": 4 if self.toy else options.steps,
            "val_tokens": 8192 if self.toy else 2_097_152,
            "max_wallclock_seconds": 0,
            "val_loss_every": 0,
        }

    def parts(self) -> list[Part]:
        steps: list[Run] = []
        for preset in ("naive", "pr549"):
            steps.append(self.ours(preset, preset))
            if preset in self.public:
                steps.append(self.theirs(preset))
        found = [Part("steps", 0.35, tuple(steps)), Part("search", 0.3, (self.search(),))]
        if self.newest or self.toy:
            found.append(Part("pr1855", 0.15, (self.ours("pr1855", "pr1855", **self.newest),)))
        if not self.toy:
            kernels = Run("attention", (sys.executable, "-c", KERNELS), last_lines)
            found.append(Part("attention", 0.05, (kernels,)))
        scorers = [self.ours(f"scorer {s}", "naive", **{s: True}) for s in ("banded", "sliding_window")]
        return [*found, Part("scorers", 0.15, tuple(scorers))]

    def ours(self, name: str, preset: str, **changes: Any) -> Run:
        more = {"warmup_steps": 2, "reserve_seconds": 0, "resume": False, "out_dir": self.out / name}
        words = [f"--{k}={v}" for k, v in {**self.settings, **more, **changes}.items()]
        chosen = "laptop" if self.toy else preset
        return Run(name, (sys.executable, "train_gpt.py", f"--preset={chosen}", *words), result_of)

    def theirs(self, preset: str) -> Run:
        """The public script, set by the challenge's variables."""
        told = {name.upper(): str(value) for name, value in self.settings.items() if name != "device"}
        told |= {"VOCAB_SIZE": "1024", "WARMUP_STEPS": "2", "TRAIN_LOG_EVERY": "5"}
        words = tuple(shlex.split(self.public[preset]))
        return Run(f"public {preset}", words, last_step, tuple(told.items()), until_last_step=True)

    def search(self) -> Run:
        trials = 2 if self.toy else 6
        words = [f"--study={self.study}", f"--trials={trials}", "--workers=2", f"--home={self.out / 'home'}"]
        return Run("search", (sys.executable, "search.py", *words), last_lines)

    @property
    def study(self) -> Path:
        return self.out / "one_card.toml"

    def write_study(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        fixed = "\n".join(f"{name} = {json.dumps(value)}" for name, value in self.settings.items())
        preset = "laptop" if self.toy else "naive"
        self.study.write_text(STUDY.format(preset=preset, fixed=fixed), encoding="utf-8")


def place_of(data: str) -> dict[str, str]:
    folder = Path(data).absolute()
    return {"data_path": str(folder), "tokenizer_path": str(tokenizer_of(folder))}


def tokenizer_of(data: Path) -> Path:
    """As `python -m corpus build` names it."""
    name = data.name.replace("_sp", "_")
    name = name.replace("_caseops", "_caseops_bpe") if "caseops" in name else f"{name}_bpe"
    return data.parent.parent / "tokenizers" / f"{name}.model"


def ran(run: Run, folder: Path, seconds: float) -> dict[str, Any]:
    """What a run gave within these seconds, or how it ended."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    log = folder / "console.log"
    environ = {**os.environ, **dict(run.environ)}
    why = ""
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            run.words, cwd=ROOT, env=environ, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        while process.poll() is None:
            steps = STEP.findall(log.read_text(encoding="utf-8", errors="replace"))
            if run.until_last_step and steps and steps[-1][0] == steps[-1][1]:
                break
            if time.monotonic() - start > seconds:
                why = f"not done after {seconds:.0f} s"
                break
            time.sleep(0.2)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    facts: dict[str, Any] = {"wall_s": round(time.monotonic() - start, 1)}
    printed = log.read_text(encoding="utf-8", errors="replace")
    try:
        facts |= run.read(folder, printed) if not why else {"failed": why}
    except (OSError, KeyError, ValueError) as error:
        last = (printed.strip().splitlines() or ["nothing said"])[-1][:200]
        facts["failed"] = f"exit status {process.returncode}: {last} ({error})"
    return facts


def told(name: str, facts: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    """Lines of what a run gave; a public script's step beside ours."""
    if "failed" in facts:
        yield f"{name:22} {facts['wall_s']:6.1f} s  {facts['failed']}"
        return
    shown = {
        k: f"{v:.4g}" if isinstance(v, float) else v for k, v in facts.items() if k not in ("wall_s", "said")
    }
    yield f"{name:22} {facts['wall_s']:6.1f} s  " + ", ".join(f"{k} {v}" for k, v in shown.items())
    yield from (f"    {line}" for line in facts.get("said", ()))
    own = found.get(name.removeprefix("public "), {}).get("ms_per_step")
    if name.startswith("public ") and own:
        yield f"    ours / public: {own / facts['ms_per_step']:.3f} of a step"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", required=True, help="dataset folder of 1,024 tokens of vocabulary")
    parser.add_argument("--data-8192", default="", help="CaseOps dataset of 8,192; without it no pr1855")
    parser.add_argument("--public", action="append", default=[], metavar="PRESET=COMMAND")
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("runs/one_card"))
    parser.add_argument("--plan", action="store_true", help="tell the commands, start nothing")
    parser.add_argument("--toy", action="store_true", help="on a CPU, of a tiny model")
    options = parser.parse_args(argv)
    options.out = options.out.absolute()
    plan = Plan(options)
    parts = plan.parts()
    if not options.plan:
        plan.write_study()
    end = time.monotonic() + 60 * options.minutes
    whole = sum(part.share for part in parts)
    found: dict[str, Any] = {}
    for k, part in enumerate(parts):
        left = end - time.monotonic()
        share = left * part.share / (whole if options.plan else sum(p.share for p in parts[k:]))
        print(f"{part.name}: at most {share:.0f} s", flush=True)
        until = time.monotonic() + share
        for run in part.runs:
            if options.plan:
                print("    " + shlex.join([*(f"{n}={v}" for n, v in run.environ), *run.words]))
                continue
            found[run.name] = ran(run, options.out / run.name, max(1.0, until - time.monotonic()))
            write_json(options.out / "results.json", found)
            print("\n".join(told(run.name, found[run.name], found)), flush=True)
    return 0 if options.plan or not any("failed" in facts for facts in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
