"""Runs and evidence that nobody trained, for the tests of a submission's texts and refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundle.one_file import resolve_layer
from claims.runs import OUTCOME, Runner, write_json
from submission.clean import Clean, Launch
from submission.evidence import RULE, About, Evidence, SeedRun, standard_log
from submission.texts import Shipped
from submission.tracks import CHALLENGE

SCRIPT = b"print('a script that nobody packed')\n"
LAYER = {
    "preset": "laptop",
    "num_heads": 2,
    "num_threads": 1,
    "xsa": True,
    "xsa.last_n": 2,
    "sliding_window": True,
}
LOG = """all the sources
{rule}
Running Python 3.11.7, PyTorch 2.13.0
train_batch_tokens:1024 max_wallclock_seconds:0.000
seed:{seed}
step:100/100 train_loss:2.5000 train_time:9800ms step_avg:98.00ms
Serialized model zlib: {model_bytes} bytes
Code size: {code_bytes} bytes
Total submission size zlib: {artifact_bytes} bytes
final_int8_zlib_roundtrip val_loss:{val_loss:.4f} val_bpb:{val_bpb:.4f} eval_time:4200ms
final_int8_zlib_roundtrip_exact val_loss:{val_loss:.8f} val_bpb:{val_bpb:.8f}
"""


def result_of(seed: int, bpb: float, **changes: Any) -> dict[str, Any]:
    """result.json of a run of LAYER: 2.5 bytes a token."""
    found: dict[str, Any] = {
        "status": "finished",
        "val_bpb": bpb,
        "val_loss": bpb * 2.5 * 0.6931471805599453,
        "val_tokens": 32_768,
        "val_bytes": 81_920,
        "protocol": "sliding_window",
        "proxy": True,
        "model_bytes": 250_000,
        "code_bytes": len(SCRIPT),
        "artifact_bytes": 250_000 + len(SCRIPT),
        "train_seconds": 9.8,
        "eval_seconds": 4.2,
        "steps": 100,
        "params": 150_000,
        "activity": {"xsa": {"verdict": "active"}, "sliding_window": {"verdict": "active"}},
        "bpb_chain": [["weights", bpb + 0.05], ["packed", bpb + 0.06], ["sliding_window", bpb]],
        "record_legal": True,
        "findings": [],
        "reads": [
            {"stage": "train", "reader": "steps", "split": "train", "tokens": 102_400},
            {"stage": "evaluate", "reader": "sliding_window", "split": "val", "tokens": 32_769},
            {"stage": "evaluate", "reader": "audit", "split": "val", "tokens": 2_048},
        ],
        "sha256": f"{seed:064x}",
        "device_type": "cpu",
        "torch": "2.13.0",
        "data_id": "d",
        "code_hash": "c",
    }
    return found | changes


def log_of(seed: int, result: Mapping[str, Any]) -> str:
    return LOG.format(rule=RULE, seed=seed, **result)


def run_of(seed: int, bpb: float, **changes: Any) -> SeedRun:
    result = result_of(seed, bpb, **changes)
    return SeedRun(seed, "", result, standard_log(log_of(seed, result), result))


def clean_of(run: SeedRun, **changes: Any) -> Clean:
    """A clean process that gave the same."""
    r = run.result
    found = Clean(
        seed=run.seed,
        val_bpb=round(r["val_bpb"], 8),
        val_loss=round(r["val_loss"], 8),
        script_bytes=len(SCRIPT),
        model_bytes=r["model_bytes"],
        sha256=r["sha256"],
        train_seconds=9.0,
        eval_seconds=4.0,
        log=log_of(run.seed, r),
    )
    return replace(found, **changes)


def about_of(**changes: Any) -> About:
    found = About(
        name="Tiny but honest",
        author="A. Author",
        github_id="author",
        date="2026-11-29",
        track="record",
        preset="laptop",
        where="trial 7 of study laptop",
        plan="0123456789abcdef",
        limits=CHALLENGE,
        hardware="Some CPU, 2 cores, 1 thread",
        ranks=1,
        threads=1,
    )
    return replace(found, **changes)


def evidence_of(runs: Sequence[SeedRun] | None = None, **changes: Any) -> Evidence:
    """Three seeds about 2.70 BPB."""
    runs = runs or [run_of(101, 2.70), run_of(102, 2.71), run_of(103, 2.69)]
    about = about_of(**{k: changes.pop(k) for k in [*changes] if k in About.__dataclass_fields__})
    given: dict[str, Any] = {"clean": [clean_of(runs[0])]} | changes
    return Evidence(about=about, resolved=resolve_layer(LAYER), runs=runs, script=SCRIPT, **given)


def shipped_of(**changes: Any) -> Shipped:
    launch = Launch(Path("somewhere/embedded_sp1024"), "embedded_1024_bpe.model")
    return replace(Shipped(launch, {"train_gpt.py": "the script"}), **changes)


def lay_down(runner: Runner, label: str, runs: Sequence[SeedRun]) -> None:
    """The folders that these runs would have left."""
    for run in runs:
        folder = runner.folder(label, run.seed)
        folder.mkdir(parents=True)
        figures = {} if run.reason else {n: run.result[n] for n in ("val_bpb", "val_loss")}
        write_json(folder / OUTCOME, {"seed": run.seed, "reason": run.reason, "figures": figures})
        config = runner.arms[label].config(run.seed)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "result.json").write_text(json.dumps(run.result))
        (folder / "train.log").write_text(log_of(run.seed, run.result))
