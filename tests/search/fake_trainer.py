"""A trainer for the tests: `fake_trainer.py config.json --out_dir=DIR` behaves as the setting `run_id` says.

run_id is `MODE` or `MODE@SECONDS`. It keeps the contract of docs/contracts.md without torch, in milliseconds.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def bpb_of(config: dict[str, Any]) -> float:
    """Smaller for a larger matrix_lr up to 0.05; FAKE_NOISE is the standard deviation of a seed."""
    noise = float(os.environ.get("FAKE_NOISE", "0"))
    lr = float(config.get("matrix_lr", 0.04))
    by_seed = random.Random(f"{config.get('seed')} {lr}").gauss(0.0, noise) if noise else 0.0
    return 2.0 + abs(lr - 0.05) * 10 + by_seed


def result_of(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "status": "finished",
        "reason": "",
        "val_bpb": bpb_of(config),
        "val_loss": 3.0,
        "protocol": "plain",
        "artifact_bytes": int(os.environ.get("FAKE_BYTES", "400000")),
        "code_bytes": 90_000,
        "model_bytes": 310_000,
        "params": 100_000,
        "steps": 10,
        "train_loss": 3.1,
        "train_seconds": 0.2,
        "eval_seconds": 0.1,
        "true_seconds": 0.3,
        "activity": {},
        "legality": {},
        "record_legal": True,
        "hash": "h",
        "code_hash": "c",
        "data_id": "d",
    } | changes


def main(argv: list[str]) -> int:
    config = json.loads(Path(argv[0]).read_text())
    out = Path(argv[1].removeprefix("--out_dir="))
    mode, _, seconds = str(config.get("run_id", "ok")).partition("@")
    duration_s = float(os.environ.get("FAKE_SECONDS", seconds or "0.2"))
    (out / "pid").write_text(str(os.getpid()))
    if mode == "refuse":
        print("some chatter", file=sys.stderr)
        print("error: The corpus must be whole, but shard 3 is cut. Build it again.", file=sys.stderr)
        return 2
    if mode == "disk":
        print("error: [Errno 28] No space left on device", file=sys.stderr)
        return 2
    if "FAKE_FILL" in os.environ:  # of the disk, for real
        with open(out / "ballast", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(out).free)
        (out / "one more").write_text("x" * 100_000)
    if mode == "crash":
        raise RuntimeError("an exception nobody caught")
    if mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "silent":
        return 0
    if mode.startswith("children"):  # one in our group, one that leaves it
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        kinds = (False, True)
        pids = [subprocess.Popen(sleep, start_new_session=new).pid for new in kinds]
        (out / "children").write_text(json.dumps(pids))
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode == "mute":
        time.sleep(duration_s)
    reports = int(config.get("num_reports", 4))
    with open(out / "metrics.jsonl", "w", encoding="utf-8") as metrics:
        if mode == "garbage":
            metrics.write(
                'not json\n{"kind": "report"}\n[1, 2]\n\x00\x00\n{"kind": "report", "progress": NaN}\n'
            )
        for i in range(1, reports):
            time.sleep(duration_s / reports)
            line = json.dumps(
                {"kind": "report", "step": i, "progress": i / reports, "lr_scale": 1.0, "train_loss": 3.0}
                | {"val_bpb": bpb_of(config) + 1.0 - i / reports, "elapsed_s": i * duration_s / reports}
            )
            for part in (line[:11], line[11:] + "\n"):  # in two writes: readers see a partial line
                metrics.write(part)
                metrics.flush()
                time.sleep(0.005)
    if mode in ("hang", "stubborn", "children-hang"):
        time.sleep(600)
    changes: dict[str, Any] = {}
    if mode == "diverged":
        changes = {"status": "failed", "reason": "diverged: train_loss is nan at step 7", "val_bpb": None}
    if mode == "nan":
        changes = {"val_bpb": float("nan")}
    if mode == "big":
        changes = {"artifact_bytes": 90_000_000}
    (out / "result.json").write_text(json.dumps(result_of(config, **changes)))
    return 3 if mode == "diverged" else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
