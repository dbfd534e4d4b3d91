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
preset = {preset}
num_reports = 1
[limits]
artifact_bytes = 16_000_000
train_seconds = 600
eval_seconds = 600
[fixed]
data_path = {data}
tokenizer_path = {tokenizer}
device = {device}
iterations = {steps}
val_tokens = {scored}
max_wallclock_seconds = 0
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


def parts_of(options: argparse.Namespace) -> list[Part]:
    """The plan."""
    steps, scored = (4, 8192) if options.toy else (options.steps, 2_097_152)
    python = sys.executable
    data, tokenizer = str(Path(options.data).absolute()), str(tokenizer_of(Path(options.data)).absolute())
    here = {"data_path": data, "tokenizer_path": tokenizer, "max_wallclock_seconds": 0, "val_loss_every": 0}
    here |= {"warmup_steps": 2, "iterations": steps, "val_tokens": scored, "resume": False}
    here |= {"device": "cpu", "num_threads": 1} if options.toy else {"device": "cuda"}

    def ours(name: str, preset: str, *flags: str, **changes: Any) -> Run:
        words = [f"--{k}={v}" for k, v in {**here, "reserve_seconds": 0, **changes}.items()]
        out = f"--out_dir={options.out / name}"
        chosen = "laptop" if options.toy else preset
        return Run(name, (python, "train_gpt.py", f"--preset={chosen}", *words, *flags, out), result_of)

    public = dict(one.split("=", 1) for one in options.public)
    theirs = {"DATA_PATH": data, "TOKENIZER_PATH": tokenizer, "VOCAB_SIZE": "1024", "ITERATIONS": str(steps)}
    theirs |= {
        "VAL_LOSS_EVERY": "0",
        "WARMUP_STEPS": "2",
        "MAX_WALLCLOCK_SECONDS": "0",
        "TRAIN_LOG_EVERY": "5",
    }
    first: list[Run] = []
    for preset in ("naive", "pr549"):
        first.append(ours(preset, preset))
        if preset in public:
            words = tuple(shlex.split(public[preset]))
            first.append(
                Run(f"public {preset}", words, last_step, tuple(theirs.items()), until_last_step=True)
            )
    study, home, trials = options.out / "one_card.toml", options.out / "home", 2 if options.toy else 6
    options.out.mkdir(parents=True, exist_ok=True)
    said = {"preset": "laptop" if options.toy else "naive", "data": data, "tokenizer": tokenizer}
    said = {name: json.dumps(text) for name, text in {**said, "device": here["device"]}.items()}
    study.write_text(STUDY.format(**said, steps=steps, scored=scored), encoding="utf-8")
    search = (python, "search.py", f"--study={study}", f"--trials={trials}", "--workers=2", f"--home={home}")
    newest = {"data_path": str(Path(options.data_8192).absolute())} if options.data_8192 else {}
    if newest:
        newest["tokenizer_path"] = str(tokenizer_of(Path(options.data_8192)).absolute())
    scorers = tuple(ours(f"scorer {s}", "naive", f"--{s}") for s in ("banded", "sliding_window"))
    parts = [Part("steps", 0.35, tuple(first)), Part("search", 0.3, (Run("search", search, last_lines),))]
    if newest or options.toy:
        parts.append(Part("pr1855", 0.15, (ours("pr1855", "pr1855", **newest),)))
    if not options.toy:
        parts.append(Part("attention", 0.05, (Run("attention", (python, "-c", KERNELS), last_lines),)))
    return [*parts, Part("scorers", 0.15, scorers)]


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
    parts = parts_of(options)
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
