"""logits = c·tanh(((h + δ)Eᵀ + β)/c), δ [b,1,D] and β [b,1,V] fitted per window by AdamW to a mask's nats.

`mask = "scored"` (published) fits δ and β to the very targets that are scored next: it leaks, every position
sees its own target (#1240: +0.24 nats with a shared δ, +0.73 per window). `mask = "context"` fits them to the
window's earlier positions only, whose tokens are a strict prefix of what is scored; window 0 has none and is
scored plainly. lr_t = lr_min + ½(lr − lr_min)(1 + cos(πt/steps)); weight decay 0.01 (torch's default). The
loss is the sum over windows of each one's mean, so that a window's fit does not depend on the batch it is in.
All in float32.

Source: PR #1263 (1.1264 -> 0.9354, mask = scored), arXiv:2505.12392 (fits the prompt only). Cost: the sliding
windows plus `steps` passes over the logits of the mask; hEᵀ is computed once. Contested for both masks: no
maintainer ruling (#1240, #1336). Conflicts: it is the scorer; another one cannot be on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from techniques._windows import window_batches, window_tensors, windows, write_window_nats
from techniques.base import Choice, Cost, Float, Int, Legality, Shape, Technique, Verdict, setting

SLOT_SOURCES = {
    "scored": "fits the targets that it scores; no ruling: #1240, #1336",
    "context": "fits the strict prefix only; no ruling either: #1240, #1336",
}


def slot_nats(model: Any, z: Tensor, targets: Tensor) -> Tensor:
    """Nats of targets [b,n] under uncapped logits z [b,n,V]."""
    logits = model.cap(z)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def slot_shift(model: Any, h: Tensor, targets: Tensor, config: Any) -> Tensor:
    """The shift [b,1,V] of the uncapped logits, δEᵀ + β, fitted to `targets` [b,n] under h [b,n,D]."""
    delta = torch.zeros_like(h[:, :1], requires_grad=True)
    with torch.no_grad():
        z = model.project(h)
    beta = torch.zeros_like(z[:, :1], requires_grad=True)
    fitted = [p for p, used in ((delta, config.use_delta), (beta, config.use_bias)) if used]
    optimizer = torch.optim.AdamW(fitted, lr=config.lr)
    with torch.enable_grad():
        for t in range(config.steps):
            cosine = 0.5 * (1.0 + math.cos(math.pi * t / config.steps))
            optimizer.param_groups[0]["lr"] = config.lr_min + (config.lr - config.lr_min) * cosine
            shift = model.project(delta) + beta
            loss = slot_nats(model, z + shift, targets).mean(1).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward(inputs=fitted)
            optimizer.step()
    with torch.no_grad():
        return model.project(delta) + beta


class SlotScorer:
    """The model's own weights stay as they are."""

    def __init__(self, config: Any):
        self.config, self.facts = config, {}

    def score(self, run: Any) -> None:
        c = self.config
        found = windows(run.num_positions, run.seq_len, c.stride)
        mine = run.world.my_range(len(found))
        fitted = 0
        for batch in window_batches(found[mine.start : mine.stop], c.batch_seqs):
            with torch.no_grad(), run.ledger.apart():  # a window's steps are on its own shift alone
                ids, targets, context = window_tensors(run, batch)
                h = run.hidden(ids).float()
                z = run.model.project(h[:, context:])
            part = range(context, ids.size(1)) if c.mask == "scored" else range(context)
            if part:
                leaks = c.mask == "scored"  # fitted before it is scored: for the ledger
                with torch.set_grad_enabled(leaks), run.ledger.apart():
                    _, fit = run.windows([w[0] + part.start for w in batch], len(part))
                z = z + slot_shift(run.model, h[:, part.start : part.stop], fit, c)
                fitted += len(batch)
            with torch.no_grad():
                write_window_nats(run, batch, slot_nats(run.model, z, targets[:, context:]))
        self.facts = {"windows": len(mine), "fitted_windows": fitted, "adapted": fitted}


class SlotTuning(Technique):
    """Fits a shift of the last hidden state and of the logits to each window before scoring it."""

    name = "slot"
    reference = "PR #1263; arXiv:2505.12392"
    legality = Legality(Verdict.CONTESTED, SLOT_SOURCES["scored"])
    stage = "evaluate"
    space = {
        "steps": Int(1, 64),
        "lr": Float(1e-3, 5e-2, log=True),
        "lr_min": Float(1e-5, 1e-3, log=True),
        "mask": Choice(("scored", "context")),
        "use_delta": Choice((True, False)),
        "use_bias": Choice((True, False)),
        "stride": Int(16, "eval_seq_len", log=True),
    }
    env = {"SLOT_ENABLED": "on", "SLOT_STEPS": "steps", "SLOT_LR": "lr", "SLOT_LR_MIN": "lr_min"}
    smoke = {"steps": 2, "lr": 0.02, "stride": 16, "mask": "context"}
    batching = ("batch_seqs",)

    @dataclass(frozen=True)
    class Config:
        steps: int = setting(16, "AdamW steps per window", low=1, high=256)
        lr: float = setting(0.008, "AdamW rate at the first step", low=0.0, high=1.0)
        lr_min: float = setting(0.0008, "AdamW rate that the cosine falls to", low=0.0, high=1.0)
        mask: str = setting(
            "scored", "positions that are fitted: scored (leaks), context", choices=("scored", "context")
        )
        use_delta: bool = setting(True, "fit a shift of the hidden state")
        use_bias: bool = setting(True, "fit a shift of the logits")
        stride: int = setting(64, "tokens between window starts", low=1, high=65_536)
        batch_seqs: int = setting(32, "windows per batch and rank", low=1, high=65_536)

    def check(self, shape: Shape) -> None:
        c = self.config
        if c.stride > shape.eval_seq_len:
            raise ValueError(
                f"`slot.stride` must be at most the evaluation sequence, but got {c.stride} and "
                f"{shape.eval_seq_len}."
            )
        if not (c.use_delta or c.use_bias):
            raise ValueError("`slot` fits nothing without use_delta and use_bias. Turn one on, or slot off.")
        if c.lr_min > c.lr:
            raise ValueError(f"`slot.lr_min` must be at most `slot.lr`, but got {c.lr_min} and {c.lr}.")

    @property
    def strict_prefix(self) -> bool:
        return self.config.mask == "context"

    def verdict(self) -> Legality:
        return Legality(Verdict.CONTESTED, SLOT_SOURCES[self.config.mask])

    def cost(self, shape: Shape) -> Cost:
        c, s = self.config, shape.eval_seq_len
        fitted = 1.0 if c.mask == "scored" else s / c.stride - 1.0  # positions per token
        head = 2.0 * shape.vocab_size * shape.model_dim / shape.flops_per_token()
        return Cost(eval_passes=s / c.stride - 1.0 + 3.0 * c.steps * fitted * head)

    def scorer(self) -> SlotScorer:
        return SlotScorer(self.config)
