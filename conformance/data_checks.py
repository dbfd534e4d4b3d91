"""Where a run's tokens and its code come from: blind to validation, counted code, data order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import train_gpt
from conformance.lab import SEQ_LEN, SHORT, NotApplicable, Violation, hash_of
from conformance.subject import Subject

REPORTS = {"num_reports": 3, "report_tokens": 2 * SEQ_LEN, "val_tokens": 4 * SEQ_LEN, "val_loss_every": 2}
NOT_COUNTED = ("conformance", "tests", ".venv")  # folders of the bench, and of libraries


def blind(subject: Subject) -> str:
    """Other validation shards beside the same training shards, and reports of them while training: the same
    losses, the same weights and the same artifact, byte for byte. The reports score the same tokens each."""
    if subject.cls.stage == "evaluate":
        raise NotApplicable("nothing before the evaluation knows it")
    run, lab, other = subject.short_run, subject.lab, subject.lab.other_val
    again = other.train(other.resolve(subject.settings, subject.known, **{**SHORT, **REPORTS}))
    told = {tuple(report["tokens"]) for report in again.reports}
    if faults := other.world.ledger.findings():
        raise Violation("; ".join(faults))
    if len(again.reports) < 2 or len(told) != 1:
        raise Violation(
            f"{len(again.reports)} early reports scored {len(told)} sets of tokens: {sorted(told)}"
        )
    if again.losses != run.losses:
        raise Violation(f"the losses are {run.losses}, but {again.losses} beside other validation shards")
    if moved := [n for n, w in run.weights.items() if not torch.equal(w, again.weights[n])]:
        raise Violation(f"{moved[0]} is trained to other values beside other validation shards")
    packed = (lab.export(run)[0], other.export(again)[0])
    one, two = (train_gpt.pack(p, run.resolved.identity(), run.seams.codec()) for p in packed)
    if one != two:
        raise Violation("the artifact is another beside other validation shards")
    return f"{len(again.reports)} reports of {again.reports[0]['tokens'][0]} tokens"


def counted_code(subject: Subject) -> str:
    """Every file of ours whose functions the run called is counted among its code bytes, and nothing that is
    off is."""
    subject.run()
    counted = set(train_gpt.source_files(subject.resolved))
    ours = {path for name in subject.files if (path := Path(name)).is_relative_to(train_gpt.ROOT)}
    ran = {p for p in ours if p.relative_to(train_gpt.ROOT).parts[0] not in NOT_COUNTED}
    if missing := sorted(str(p.relative_to(train_gpt.ROOT)) for p in ran - counted):
        raise Violation(f"the run executed {', '.join(missing)}, which its code bytes leave out")
    return f"{len(ran)} of {len(counted)} files"


def order(subject: Subject) -> str:
    """A data order gives runs of neighbouring tokens, none as a target twice before nearly all were one, goes
    on from its state, and depends on the seed and on nothing else."""
    if not subject.enters("loader"):
        raise NotApplicable("it is no data order")
    shards = [
        torch.arange(at, at + size).numpy().astype("uint16")
        for at, size in ((0, 2000), (2000, 1500), (3500, 2500))
    ]
    told, most = list[str](), 0
    for label, one in subject.variants:
        try:
            orders = probe_order(lambda seed, of=one: of.technique.loader(shards, seed, SEQ_LEN), shards)
        except Violation as error:
            raise Violation(f"{label}{error}") from None
        told.append(f"{label}{orders} orders of 6 seeds")
        most = max(most, orders)
    if most < 2:
        raise Violation("no setting of it depends on the seed")
    return "; ".join(told)


def probe_order(stream: Callable[[int], Any], shards: list[Any]) -> int:
    """How many different first batches six seeds give. Every token of `shards` is another one."""
    size = 2, 2, SEQ_LEN

    def batch(of: Any) -> torch.Tensor:
        return torch.from_numpy(of.batch(*size).astype("int64"))

    first = stream(1)
    batches = torch.stack([batch(first) for _ in range(sum(map(len, shards)) // (4 * SEQ_LEN) - 1)])
    jumps = int((batches.diff(dim=-1) != 1).sum())
    if jumps > len(shards):
        raise Violation(f"{jumps} neighbours in its rows are none in the shards")
    seen = batches[..., 1:]
    twice = seen.numel() - seen.unique().numel()
    if twice > len(shards) * SEQ_LEN:
        raise Violation(f"{twice} of {seen.numel()} tokens are a target twice in one epoch")
    if not torch.equal(batch(stream(1)), batches[0]):
        raise Violation("the same seed gives another first batch")
    state, ahead, other = first.state(), [batch(first) for _ in range(3)], stream(1)
    other.load(json.loads(json.dumps(state)))
    if not all(torch.equal(a, batch(other)) for a in ahead):
        raise Violation("a stream that goes on from its state gives other batches")
    return len({hash_of(batch(stream(seed))) for seed in range(6)})


CHECKS = (
    ("blind", blind),
    ("counted code", counted_code),
    ("order", order),
)
