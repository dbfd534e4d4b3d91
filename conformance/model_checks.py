"""Checks of the model with a technique in it: parameters, identity, causality, isolation, one graph."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import train_gpt
from conformance.lab import BOS, SEQ_LEN, SHORT, NotApplicable, Violation, perturb
from conformance.subject import MODEL_SEAMS, Subject
from techniques.config import resolve


def parameters(subject: Subject) -> None:
    """cost().tensors are exactly the parameters that it adds: here, and at the challenge's size."""
    for label, one in subject.variants:
        built = one.lab.build(one.resolved)
        _same_tensors(f"{label}", one, one.resolved, one.without(), built)
    full = resolve({"file": {n: True for n in subject.resolved.techniques}}, subject.known)
    others = {n: True for n in subject.resolved.techniques if n != subject.name}
    model = train_gpt.build_model(full, "meta")
    _same_tensors("at full size: ", subject, full, resolve({"file": others}, subject.known), model)


def _same_tensors(label: str, subject: Subject, on: Any, off: Any, model: Any) -> None:
    before = {n: p.shape for n, p in train_gpt.build_model(off, "meta").named_parameters()}
    added = collections.Counter(
        (p.role, tuple(p.shape)) for n, p in model.named_parameters() if before.get(n) != p.shape
    )
    cost = on.techniques[subject.name].cost(on.shape())
    told = collections.Counter((t.role, t.shape) for t in cost.tensors)
    new, old = (collections.Counter((t.role, t.shape) for t in r.shape().tensor_specs()) for r in (on, off))
    told += new - old  # of sizes that it changes
    kept = {n: p.shape for n, p in model.named_parameters()}
    gone = sum(math.prod(shape) for n, shape in before.items() if kept.get(n) != shape)
    if gone != sum(math.prod(shape) * count for (_, shape), count in (old - new).items()):
        raise Violation(f"{label}the model has lost {gone} parameters, and shape() tells others")
    if added != told:
        num_added = sum(math.prod(shape) * count for (_, shape), count in added.items())
        odd = ", ".join(f"{role}{list(shape)}" for role, shape in list((added - told) + (told - added))[:4])
        raise Violation(
            f"{label}cost() tells {cost.params} parameters, the model has {num_added}; differ: {odd}"
        )


@torch.no_grad()
def identity(subject: Subject) -> None:
    """Fresh technique, every other parameter moved: the logits are those without it."""
    if not subject.cls.identity_at_init:
        raise NotApplicable("not claimed")
    plain, model = subject.lab.build(subject.without()), subject.lab.build(subject.resolved)
    shared = {n for n, _ in plain.named_parameters()}
    perturb(plain)
    perturb(model, only=shared)
    ids = subject.lab.ids(2, SEQ_LEN)
    difference = float((model.logits(model.hidden(ids)) - plain.logits(plain.hidden(ids))).abs().max())
    if not difference <= 1e-5:
        raise Violation(f"identity_at_init is claimed, but the logits differ by {difference:.2g} without it")


def gradients(subject: Subject) -> None:
    """Every parameter received a finite gradient, and not only zeros, within the run's steps."""
    run = subject.run()
    dead = [n for n, _ in run.trainer.model.named_parameters() if not run.gradients.get(n)]
    wild = [n for n, g in run.gradients.items() if not math.isfinite(g)]
    if dead:
        raise Violation(f"no gradient in {len(run.losses)} steps: {', '.join(dead[:3])} (a dead module?)")
    if wild:
        raise Violation(f"gradient is not finite: {', '.join(wild[:3])}")


def causality(subject: Subject) -> None:
    """Change token t: nothing before t moves, nor any other row, after every parameter has been moved."""
    subject.require_model_seam()
    for label, one in subject.variants:
        probe_causality(label, one.lab.build(one.resolved), one.lab.ids(2, SEQ_LEN))


@torch.no_grad()
def probe_causality(label: str, model: train_gpt.GPT, ids: Tensor) -> None:
    perturb(model)
    for training in (True, False):
        model.train(training)
        before = model.hidden(ids)
        for t in (1, ids.size(1) // 2, ids.size(1) - 1):
            for token in (BOS, int(ids[0, t]) ^ 2):
                changed = ids.clone()
                changed[0, t] = token
                if bool((changed == ids).all()):
                    continue
                moved = (model.hidden(changed) != before).any(-1)
                _judge_move(label, moved, t)


def _judge_move(label: str, moved: Tensor, t: int) -> None:
    """`moved` [B,T]: where the hidden state changed when token t of row 0 did."""
    if bool(moved[0, :t].any()):
        early = int(moved[0, :t].nonzero()[0])
        raise Violation(f"{label}token {t} changed and position {early} before it moved: it sees the future")
    if bool(moved[1:].any()):
        raise Violation(f"{label}token {t} of one sequence changed and another sequence moved")
    if not bool(moved[0, t:].any()):
        raise Violation(f"{label}token {t} changed and nothing moved: the model does not read it")


@torch.no_grad()
def isolation(subject: Subject) -> None:
    """Change a document: the next one does not move. Attention crosses documents unless a technique claims to
    stop it, so here each position attends to itself alone: what leaks then is the technique."""
    claimed = False
    for label, one in subject.variants:
        if not (one.technique.isolates_documents and one.enters(*MODEL_SEAMS)):
            continue
        claimed = True
        model = one.lab.build(one.resolved)
        perturb(model)
        if not one.enters("attend"):
            for block in model.blocks:
                block.attn.attend.parts = [attend_to_oneself]  # type: ignore[union-attr]
        ids, half = one.lab.ids(1, SEQ_LEN), SEQ_LEN // 2
        ids[0, half] = BOS
        changed = ids.clone()
        changed[0, half - 8 : half] = 2 + (ids[0, half - 8 : half] + 1) % 200
        moved = (model.hidden(changed) != model.hidden(ids)).any(-1)[0, half:]
        if bool(moved.any()):
            raise Violation(
                f"{label}a document changed and the next one moved at its token {int(moved.nonzero()[0])}"
            )
    if not claimed:
        raise NotApplicable("not claimed")


REACH = 0.25  # of the matrices' elements; the published late QAT reached 1 to 2 % of them


def reach(subject: Subject) -> str:
    """A technique that changes weights stands before a fair share of them, not before what is left of a class
    that the model no longer uses."""
    if not subject.enters("weight"):
        raise NotApplicable("it changes no weight")
    linears = [m for m in subject.lab.build(subject.resolved).modules() if isinstance(m, train_gpt.Linear)]
    reached = [m for m in linears if m.stored_as is not None and subject.name in m.stored_as.steps]
    share = sum(m.weight.numel() for m in reached) / sum(m.weight.numel() for m in linears)
    told = (
        f"it stands before {len(reached)} of {len(linears)} matrices, {100 * share:.0f} % of their elements"
    )
    if share < REACH:
        raise Violation(told)
    return told


def attend_to_oneself(q: Tensor, k: Tensor, v: Tensor, _ctx: Any) -> Tensor:
    return v.repeat_interleave(q.size(2) // k.size(2), dim=2)


class Graphs:
    """A torch.compile backend that runs each graph as it was traced, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, module: Any, inputs: Any) -> Callable[..., Any]:
        self.count += 1
        return module.forward


def compiled(subject: Subject) -> None:
    """The training graph traces whole and once, and trains to the eager run's very losses."""
    subject.require_model_seam()
    resolved, graphs = subject.resolve(**SHORT), Graphs()
    losses = subject.lab.train(resolved, graphs).losses
    allowed = len({0.0, *(p for t in resolved.techniques.values() for p in t.phases())})
    if graphs.count != allowed:
        raise Violation(
            f"{graphs.count} graphs were compiled where {allowed} belong: a Python value in the graph changes"
        )
    _same_losses("compiled", losses, subject.short, tolerance=0.0)
    if subject.lab.inductor:
        losses = subject.lab.train(resolved, "inductor").losses
        _same_losses("Inductor's", losses, subject.short, tolerance=5e-3)


def _same_losses(what: str, got: list[float], want: list[float], *, tolerance: float) -> None:
    for step, (a, b) in enumerate(zip(got, want, strict=True), start=1):
        if not abs(a - b) <= tolerance:
            raise Violation(f"the {what} run's loss is {a:.9g} at step {step}, the eager run's {b:.9g}")


CHECKS = (
    ("parameters", parameters),
    ("identity", identity),
    ("gradient", gradients),
    ("causality", causality),
    ("isolation", isolation),
    ("compiled", compiled),
    ("reach", reach),
)
