"""Two gloo ranks = one process: the same losses, the same weights and artifact on every rank, the same score,
and every sequence that one process trained or calibrated on read by one of the ranks.

`python -m torch.distributed.run --standalone --nproc_per_node=2 -m conformance.ranks FOLDER OUT DEVICE NAME…`
runs a few steps of every technique in one process group, and writes one JSON line a technique: what `trace`
tells.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import train_gpt
from conformance.lab import CRASHES, Lab, Violation, hash_of, smoke_settings
from techniques.base import Technique
from techniques.catalog import load

STEPS: dict[str, Any] = {"iterations": 4, "warmdown_iters": 2, "warmup_steps": 0, "grad_clip_norm": 0.2}
LOSS_TOLERANCE = 1e-4  # nats: sums over ranks are taken in another order
BPB_TOLERANCE = 5e-3  # a weight beside a rounding border may fall to its other side
TENSOR_TOLERANCE = 2e-2  # the same of a stored tensor, in its norm


def trace(lab: Lab, *, cls: type[Technique], known: Mapping[str, type[Technique]]) -> dict[str, Any]:
    """A short run through every stage on the lab's ranks: its losses and its score."""
    on = {**known, cls.name: cls}
    resolved = lab.resolve(smoke_settings(cls, on), on, **STEPS)
    read: dict[str, list[str]] = {"train": [], "quantize": []}
    run = lab.train(resolved, watch=functools.partial(note_inputs, read))
    run.packed, run.artifact = lab.export(run)
    held = hash_of(*run.weights.values()), hashlib.sha256(run.artifact).hexdigest()
    ranks = of_all_ranks((read, held), lab.world.size)
    return {
        "losses": run.losses,
        "val_bpb": lab.evaluate(run).val_bpb,
        "read": [told for told, _ in ranks],
        "held": len({alike for _, alike in ranks}),
        "tensors": {item.name: probes(item.name, item.dequantized()) for item in run.packed},
    }


def note_inputs(read: dict[str, list[str]], trainer: train_gpt.Trainer) -> None:
    """From now on the hash of each sequence that the model is given, in training steps and in the export."""
    hidden = trainer.model.hidden
    ledger = trainer.world.ledger

    def noted(ids: Tensor) -> Tensor:
        if ledger.stage == "quantize" or ledger.reader == "steps":
            read[ledger.stage] += map(hash_of, ids)
        return hidden(ids)

    trainer.model.hidden = noted  # type: ignore[method-assign]


def of_all_ranks(mine: Any, size: int) -> list[Any]:
    if size == 1:
        return [mine]
    box = [None] * size
    dist.all_gather_object(box, mine)
    return box


def probes(name: str, tensor: Tensor) -> list[float]:
    """Projections of a tensor on a few fixed random directions, in its norm: near for near tensors."""
    generator = torch.Generator().manual_seed(train_gpt.seam_seed(3, name))
    directions = torch.randn(4, tensor.numel(), generator=generator)
    return (directions @ tensor.flatten() / tensor.norm().clamp_min(1e-9)).tolist()


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
    if two["held"] != 1:
        raise Violation("the two ranks hold different weights, or different artifacts")
    for stage, (rank0, rank1) in ((s, (r[s] for r in two["read"])) for s in two["read"][0]):
        if twice := set(rank0) & set(rank1):
            raise Violation(f"{stage}: both ranks read the same {len(twice)} of {len(rank0)} sequences")
        if sorted(rank0 + rank1) != sorted(one["read"][0][stage]):
            raise Violation(
                f"{stage}: the ranks read {len(rank0)} + {len(rank1)} sequences, and not the one process' "
                f"{len(one['read'][0][stage])}"
            )
    for name, values in one["tensors"].items():
        away = max(abs(a - b) for a, b in zip(values, two["tensors"][name], strict=True))
        if not away <= TENSOR_TOLERANCE:
            raise Violation(f"{name} is stored {away:.2g} of its norm away from what one process stores")
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
