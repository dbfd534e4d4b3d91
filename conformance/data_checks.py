"""Where a run's tokens and its code come from: blind to validation, counted code, data order."""

from __future__ import annotations

import json
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
    lab = subject.lab
    other = subject.lab.other_val
    lab.open()
    run = lab.train(subject.resolve(**SHORT))
    packed = [lab.export(run)[0]]
    other.open()
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
    packed.append(other.export(again)[0])
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
    """A data order gives runs of neighbouring tokens, none as a target twice in an epoch, whole sequences or
    pieces of them; it goes on from its state, and depends on the seed and on nothing else."""
    if not subject.enters("loader"):
        raise NotApplicable("it is no data order")
    sizes = ((0, 2000), (2000, 1500), (3500, 2500))
    shards = [torch.arange(at, at + size).numpy().astype("uint16") for at, size in sizes]
    told: list[str] = []
    most = 1
    for label, one in subject.variants:
        try:
            found = [probe_order(one, which) for which in (shards, shards[:1])]
        except Violation as error:
            raise Violation(f"{label}{error}") from None
        told.append(f"{label}{found[0]} orders of 6 seeds, {found[1]} of one shard")
        if found[1] < 2 < found[0] and not within_text_order(one, shards[:1]):
            raise Violation(f"{label}its order within a shard is another one, and the same for six seeds")
        most = max(most, found[0])
    if most < 2:
        raise Violation("no setting of it depends on the seed")
    return "; ".join(told)


def within_text_order(subject: Subject, shards: list[Any]) -> bool:
    """Whether a shard's text is read as it stands."""
    first = torch.from_numpy(
        subject.technique.loader(shards, 1, SEQ_LEN).batch(2, 1, SEQ_LEN).astype("int64")
    )
    return int(first[1, 0, 0]) == int(first[0, 0, -1]) + 1


def probe_order(subject: Subject, shards: list[Any]) -> int:
    """How many different first batches six seeds give. Every token of `shards` is another one."""

    def stream(seed: int) -> Any:
        return subject.technique.loader(shards, seed, SEQ_LEN)

    def batch(of: Any, length: int = SEQ_LEN) -> torch.Tensor:
        return torch.from_numpy(of.batch(2, 1, length).astype("int64"))

    for length in (SEQ_LEN, SEQ_LEN // 4):
        first = stream(1)
        count = sum(map(len, shards)) // (2 * length) // 2  # well within one epoch
        batches = torch.stack([batch(first, length) for _ in range(count)])
        jumps = int((batches.diff(dim=-1) != 1).sum())
        if jumps > len(shards):
            raise Violation(f"{jumps} neighbours in its rows are none in the shards")
        if twice := batches[..., 1:].numel() - batches[..., 1:].unique().numel():
            raise Violation(f"{twice} tokens are a target twice within half an epoch, in rows of {length}")
        if not torch.equal(batch(stream(1), length), batches[0]):
            raise Violation("the same seed gives another first batch")
        first = stream(1)
        other = stream(1)
        batch(first, length)
        other.load(json.loads(json.dumps(first.state())))
        if not all(torch.equal(batch(first, length), batch(other, length)) for _ in range(3)):
            raise Violation(f"a stream that goes on from its state gives other batches, in rows of {length}")
    return len({hash_of(batch(stream(seed))) for seed in range(6)})


CHECKS = (
    ("blind", blind),
    ("counted code", counted_code),
    ("order", order),
)
