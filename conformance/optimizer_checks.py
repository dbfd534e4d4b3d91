"""Checks of what moves the weights: seeds, steps against formulas, averages, settings that do nothing."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import train_gpt
from conformance.lab import SHORT, NotApplicable, Violation, hash_of
from conformance.scoring_checks import LENGTH, score
from conformance.subject import Subject
from techniques.base import STAGES, Choice, Float, Int, Technique, claims
from techniques.config import Resolved
from trainer.seams import Seams

SEEN: dict[str, Any] = {**SHORT, "iterations": 4, "warmdown_iters": 3}
DRAWN = 16  # a tensor of more distinct values was drawn; of fewer, it is a pattern
DECAYS = {"attn": "muon", "mlp": "muon", "matrix": "muon", "embed": "embed"}  # role -> whose; others: adam
RATES = {"attn": "matrix_lr", "mlp": "matrix_lr", "matrix": "matrix_lr", "embed": "tied_embed_lr"}
RATES |= {"head": "head_lr", "aux": "head_lr", "scalar": "scalar_lr", "gate": "scalar_lr"}
# The naive baseline's, by its script
PUBLISHED: dict[str, Any] = dict(muon_momentum=0.95, muon_momentum_start=0.85, muon_momentum_warmup_steps=500)
PUBLISHED |= dict(muon_ns_steps=5, muon_weight_decay=0.0, adam_weight_decay=0.0, embed_weight_decay=0.0)
PUBLISHED |= dict(beta1=0.9, beta2=0.95, adam_eps=1e-8, lr_mults=(), lr_mult=1.0)


def seeds(subject: Subject) -> str:
    """A model is the same from the same seed; from another one every tensor that was drawn is another."""
    config = subject.resolved.config
    one = subject.lab.build(subject.resolved)
    same = subject.lab.build(subject.resolved)
    other = dict(subject.lab.build(subject.resolve(seed=config.seed + 1)).named_parameters())
    drawn = 0
    for (name, p), (_, q) in zip(one.named_parameters(), same.named_parameters(), strict=True):
        if not torch.equal(p, q):
            raise Violation(f"{name} begins with other values when the same model is built again")
        if p.unique().numel() > DRAWN:
            drawn += 1
            if torch.equal(p, other[name]):
                raise Violation(
                    f"{name} begins with the same values from seeds {config.seed} and {config.seed + 1}"
                )
    return f"{drawn} drawn tensors"


# -- each step against the formulas ------------------------------------------------------------------------


@dataclasses.dataclass
class Step:
    """One optimiser's step: settings of each group, and (before, gradient, after) of each parameter."""

    groups: list[dict[str, Any]]
    moved: list[list[tuple[str, Tensor, Tensor | None, Tensor]]]


def watch_steps(steps: list[Step], trainer: train_gpt.Trainer) -> None:
    """Every step of the trainer's optimisers from now on."""
    names = {p: n for n, p in trainer.model.named_parameters()}
    for optimizer in trainer.optimizers:
        optimizer.step = functools.partial(_step, optimizer.step, optimizer, steps, names)  # type: ignore[method-assign]


def _step(step: Any, optimizer: Any, steps: list[Step], names: dict[Tensor, str]) -> None:
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    before = [[(names[p], p.detach().clone(), p.grad) for p in g["params"]] for g in optimizer.param_groups]
    before = [[(n, p, g if g is None else g.clone()) for n, p, g in part] for part in before]
    step()
    after = [[p.detach().clone() for p in g["params"]] for g in optimizer.param_groups]
    moved = [[(*b, a) for b, a in zip(*parts, strict=True)] for parts in zip(before, after, strict=True)]
    steps.append(Step(groups, moved))


class BenchHyper(Technique):
    """Every optimiser setting off the baseline: what that leaves at 0, at a default or far away shows."""

    name = "bench_hyper"

    def hyper(self, hyper: Any) -> Any:
        decays = {"muon_weight_decay": 0.2, "adam_weight_decay": 0.1, "embed_weight_decay": 0.05}
        adam = {"beta1": 0.8, "beta2": 0.9, "adam_eps": 1e-6}
        return dataclasses.replace(hyper, **decays, **adam, muon_momentum_warmup_steps=4, muon_ns_steps=4)


def settings_at(resolved: Resolved, step: int, role: str, name: str = "") -> dict[str, float]:
    """lr, weight decay, momentum, betas, eps of a role in a step, by the formulas; seconds are no budget. A
    matrix' name tells its layer."""
    c = resolved.config
    hyper: Any = train_gpt.Hyper(**PUBLISHED)
    for technique in Seams(resolved).entering("hyper"):
        hyper = technique.hyper(hyper)
    warm = min(1.0, step / max(1, hyper.muon_momentum_warmup_steps))
    momentum = hyper.muon_momentum_start + warm * (hyper.muon_momentum - hyper.muon_momentum_start)
    mult = dict(hyper.lr_mults).get(role, 1.0)
    progress = step / c.iterations
    scale = min(1.0, (c.iterations - step) / c.warmdown_iters) if c.warmdown_iters else 1.0
    for technique in Seams(resolved).entering("hyper_at"):
        hyper = technique.hyper_at(hyper, progress)
    if owner := resolved.owner("lr_scale"):
        scale = owner.lr_scale(progress)
    lr = getattr(c, RATES[role] if c.tie_embeddings or role != "embed" else "embed_lr")
    decay = getattr(hyper, f"{DECAYS.get(role, 'adam')}_weight_decay")
    told = {"lr": lr * mult * scale * hyper.lr_mult, "weight_decay": decay}
    if DECAYS.get(role) == "muon":
        split, early, late = hyper.layer_mults
        if name.startswith("blocks."):
            told["lr"] *= early if int(name.split(".")[1]) < split else late
        cautious = float(hyper.cautious_decay)
        return {**told, "momentum": momentum, "ns_steps": hyper.muon_ns_steps, "cautious": cautious}
    return {**told, "beta1": hyper.beta1, "beta2": hyper.beta2, "eps": hyper.adam_eps}


def steps(subject: Subject) -> str:
    """In each step every group has the settings that the formulas give, and every parameter moves as Adam or
    Muon move it under those."""
    found: list[Step] = []
    setters = tuple(name for name, cls in subject.known.items() if "hyper" in claims(cls))
    last = type("Last", (BenchHyper,), {"after": setters})
    known = {**subject.known, last.name: last}
    resolved = subject.lab.resolve({**subject.settings, BenchHyper.name: True}, known, **SHORT)
    run = subject.lab.train(resolved, watch=functools.partial(watch_steps, found))
    roles = {n: p.role for n, p in run.trainer.model.named_parameters()}  # type: ignore[attr-defined]
    orthogonalize = run.trainer.optimizers.matrices.orthogonalize
    states: dict[str, list[Any]] = {}  # parameter -> first moment, second moment, its steps so far
    for at, step in enumerate(found):
        where = f"step {at // 2 + 1}: "
        for group, moved in zip(step.groups, step.moved, strict=True):
            has = {**group, **dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))}
            for name, before, grad, after in moved:
                want = settings_at(resolved, at // 2, roles[name], name)
                for key in want.keys() & has.keys():
                    if not abs(want[key] - has[key]) <= 1e-9 + 1e-6 * abs(want[key]):
                        raise Violation(
                            f"{where}{name} has {key} {has[key]:.6g}, the formula {want[key]:.6g}"
                        )
                if grad is None:
                    continue
                kept = states.setdefault(name, [torch.zeros_like(grad), torch.zeros_like(grad), 0])
                update = muon_update if "momentum" in want else adam_update
                told = update(kept, grad, want, orthogonalize)
                decays = (told * before > 0).to(before.dtype) if want.get("cautious") else 1.0
                expected = before * (1 - want["lr"] * want["weight_decay"] * decays) - want["lr"] * told
                away = float((after - expected).abs().max())
                if not away <= 1e-6 + 1e-3 * float((before - expected).abs().max()):
                    raise Violation(f"{where}{name} moved {away:.2g} away from what the formula gives")
    return f"{len(found) // 2} steps"


def adam_update(kept: list[Any], grad: Tensor, s: dict[str, float], _: Any) -> Tensor:
    """m̂ / (√v̂ + eps)."""
    mean, square = kept[:2]
    kept[2] += 1
    mean.mul_(s["beta1"]).add_((1 - s["beta1"]) * grad)
    square.mul_(s["beta2"]).add_((1 - s["beta2"]) * grad * grad)
    return mean / (1 - s["beta1"] ** kept[2]) / ((square / (1 - s["beta2"] ** kept[2])).sqrt() + s["eps"])


def muon_update(kept: list[Any], grad: Tensor, s: dict[str, float], orthogonalize: Any) -> Tensor:
    """√max(1, rows/columns) · NS(g + μ·buf), buf ← μ·buf + g."""
    kept[0].mul_(s["momentum"]).add_(grad)
    whole = orthogonalize((grad + s["momentum"] * kept[0])[None], int(s["ns_steps"]))[0]
    return whole * max(1.0, grad.size(0) / grad.size(1)) ** 0.5


# -- averages ----------------------------------------------------------------------------------------------


@torch.no_grad()
def average(subject: Subject) -> None:
    """What is exported lies between the weights that there were; of weights that stand still it is those; and
    averaging moves no weight of the model."""
    if not subject.enters("averager"):
        raise NotApplicable("it averages nothing")
    for label, one in subject.variants:
        for moving in (0.0, 0.1):
            model = one.lab.build(one.resolved)
            generator = torch.Generator().manual_seed(5)
            averager = one.technique.averager(model, 12)
            low = {n: p.clone() for n, p in model.named_parameters()}
            high = {n: p.clone() for n, p in low.items()}
            for step in range(12):
                for name, p in model.named_parameters():
                    p.add_((moving * torch.randn(p.shape, generator=generator)).to(p.device))
                    low[name] = torch.minimum(low[name], p)
                    high[name] = torch.maximum(high[name], p)
                before = hash_of(*model.parameters())
                averager.update(model, 1 - step / 12)
                weights = averager.weights()
                if hash_of(*model.parameters()) != before:
                    raise Violation(f"{label}averaging moves the model's own weights")
            for name, w in weights.items():
                if bool((w < low[name] - 1e-6).any() or (w > high[name] + 1e-6).any()):
                    raise Violation(f"{label}{name} is exported outside of the values that it had")


# -- settings that do nothing ------------------------------------------------------------------------------


def settings(subject: Subject) -> str:
    """Every setting that a search may choose changes something under one of the technique's variants: the
    losses, the artifact or the scores. `unseen` names those that no run of this size shows, and no others. A
    variable that has a setting's name sets that one."""
    for variable, field in subject.cls.env.items():
        if variable.lower() in {f.name for f in dataclasses.fields(subject.cls.Config)} - {field}:
            raise Violation(f"the variable {variable} sets `{field}`, but there is a setting of its own name")
    signs: dict[str, str] = {}
    found = [f for f in dataclasses.fields(subject.cls.Config) if f.name in subject.cls.space]
    dead = {f.name for f in found if not any(_is_live(one, f, signs) for _, one in subject.variants)}
    if odd := sorted(dead - set(subject.cls.unseen)):
        raise Violation(f"no other value of {', '.join(odd)} changes the losses, the artifact or a score")
    if odd := sorted(set(subject.cls.unseen) - dead):
        raise Violation(f"`unseen` names {', '.join(odd)}, but this run shows it")
    return f"{len(found) - len(dead)} of {len(found)} settings"


def _is_live(one: Subject, f: Any, signs: dict[str, str]) -> bool:
    key = str(sorted(one.changes.items()))
    if key not in signs:
        signs[key] = sign_of(one)
    for value in other_values(one, f):
        other = Subject(one.lab, one.cls, known=one.known, changes={**one.changes, f.name: value})
        try:
            if sign_of(other) != signs[key]:
                return True
        except ValueError:  # no such combination
            continue
    return False


def other_values(one: Subject, f: Any) -> Iterator[Any]:
    """Other values of a setting, the plausible ones first."""
    now = getattr(one.technique.config, f.name)
    space = one.cls.space.get(f.name)
    found: list[Any] = []
    if isinstance(space, Choice):
        found += space.options
    elif isinstance(space, Float | Int):
        found += [v for v in (space.low, space.high) if not isinstance(v, str)]
    if isinstance(now, bool):
        found.append(not now)
    elif isinstance(now, int):
        found += [now + 1, max(1, now // 2)]
    elif isinstance(now, float):
        found += [now / 2, f.metadata["high"] or 0.5]
    low = f.metadata["low"]
    high = f.metadata["high"]
    for value in found:
        inside = isinstance(value, str) or ((low is None or value >= low) and (high is None or value <= high))
        if inside and value != now:
            yield value


def sign_of(one: Subject) -> str:
    """A hash of what a short run leaves, from the technique's own stage on."""
    if one.cls.stage == "evaluate":
        return hash_of(score(one, one.resolved, one.lab.ids(1, LENGTH + 1)[0]).nll)
    if STAGES.index(one.cls.stage) < STAGES.index("quantize"):
        run = one.lab.train(one.resolve(**SEEN))
        return f"{run.losses} {hash_of(*run.weights.values())}"
    base = one.lab.baseline
    seams = Seams(one.resolved)
    base.trainer.loader = base.trainer.open_loader()
    packed, _ = train_gpt.quantize(
        base.weights, base.trainer.model, seams, train_gpt.calibration(base.trainer)
    )
    return hash_of(torch.frombuffer(bytearray(train_gpt.pack(packed, {}, seams.codec())), dtype=torch.uint8))


CHECKS = (
    ("seeds", seeds),
    ("steps", steps),
    ("average", average),
    ("settings", settings),
)
