"""Two gloo ranks = one process: the same losses, the same artifact on every rank, the same score.

`python -m torch.distributed.run --standalone --nproc_per_node=2 -m conformance.ranks FOLDER OUT DEVICE NAME…`
runs a few steps of every technique in one process group, and writes one JSON line a technique: what `trace`
tells.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import train_gpt
from conformance.lab import CRASHES, Lab, Violation, smoke_settings
from techniques.base import Technique
from techniques.catalog import load

STEPS: dict[str, Any] = {"iterations": 4, "warmdown_iters": 2, "warmup_steps": 0}
LOSS_TOLERANCE = 1e-4  # nats: sums over ranks are taken in another order
BPB_TOLERANCE = 5e-3  # a weight beside a rounding border may fall to its other side


def trace(lab: Lab, *, cls: type[Technique], known: Mapping[str, type[Technique]]) -> dict[str, Any]:
    """A short run through every stage on the lab's ranks: its losses and its score."""
    on = {**known, cls.name: cls}
    resolved = lab.resolve(smoke_settings(cls, on), on, **STEPS)
    run = lab.train(resolved)
    run.packed, run.artifact = lab.export(run)
    return {"losses": run.losses, "val_bpb": lab.evaluate(run).val_bpb}


def start(names: list[str], *, folder: Path, out: Path, device: str) -> subprocess.Popen[str]:
    """The two ranks, in a process group of their own, for all `names`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "conformance.ranks", str(folder), str(out), device, *names]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(train_gpt.ROOT)}
    return subprocess.Popen(
        command,
        cwd=train_gpt.ROOT,
        env=environ,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=errors_of(out).open("w", encoding="utf-8"),
    )


def errors_of(out: Path) -> Path:
    return out.with_suffix(".stderr")


def finish(process: subprocess.Popen[str], out: Path, *, timeout_s: float) -> dict[str, dict[str, Any]]:
    """name -> what two ranks told of it; key "" says how they ended when they hung or died."""
    try:
        process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    told = {record["name"]: record for record in map(json.loads, lines)}
    if process.returncode:
        said = [s for s in errors_of(out).read_text(encoding="utf-8").splitlines() if "Error: " in s]
        told[""] = {"error": f"they ended with status {process.returncode}: {(said or ['no error told'])[0]}"}
    return told


def compare(one: Mapping[str, Any], two: Mapping[str, Any] | None) -> None:
    """Violation unless the two ranks' run is the one process' run."""
    if two is None:
        raise Violation("the two ranks hung or died before this technique was done")
    if "error" in two:
        raise Violation(f"on two ranks: {two['error']}")
    for step, (a, b) in enumerate(zip(one["losses"], two["losses"], strict=True), start=1):
        if not abs(a - b) <= LOSS_TOLERANCE:
            raise Violation(f"loss at step {step} is {a:.6f} in one process, {b:.6f} on two ranks")
    if not abs(one["val_bpb"] - two["val_bpb"]) <= BPB_TOLERANCE:
        raise Violation(f"score is {one['val_bpb']:.5f} in one process, {two['val_bpb']:.5f} on two ranks")


def main(folder: str, out: str, device: str, *names: str) -> None:
    torch.set_num_threads(1)
    lab = Lab(Path(folder), device)
    for name in names:
        try:
            cls = load(name)
            record = trace(lab, cls=cls, known={n: load(n) for n in cls.requires})
        except (Violation, *CRASHES) as error:
            record = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        if lab.world.rank == 0:
            with open(out, "a", encoding="utf-8") as f:
                print(json.dumps({"name": name, **record}), file=f)
    lab.world.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
