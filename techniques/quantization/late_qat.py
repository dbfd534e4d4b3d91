"""w + a·sg(ŵ − w) for each stored matrix, a = 1 once the learning-rate scale is below `threshold`, else 0.

ŵ is what the export would store: s·clip(round(w/s)) with the role's bits, `mode = "hard"`; or, "soft",
s·r(w/s) with r(y) = ⌊y⌋ + ½ + ½·tanh(α(y − ⌊y⌋ − ½))/tanh(α/2), α from 1 to `alpha_end` at the end of the
budget, which the gradient passes through. a and α are 0-D buffers that the trainer fills before every step:
a compiled graph sees them change and compiles once.

Scales: `clip = "quantile"`, the row's 0.9995 quantile (PR #569), or "max", the row's maximum. `published =
1` is the form of #315, #414, #549: maximum, floor 1/qmax, range −qmax − 1 … qmax, which the export does not
share. Source: late QAT from 0.15 in #315, #414, #549, frozen by torch.compile or attached to a class that
the model no longer used: it never ran there, and the name means here that it runs (the audit takes it out
and compares the loss). Soft rounding: #606. Cost: a few passes over the matrices a step, on or not. Against
swa: it leaves the grid (#989).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from techniques.base import Choice, Float, Shape, Technique, setting


def soft_round(y: Tensor, alpha: Tensor) -> Tensor:
    """Between the identity (α → 0) and rounding (α → ∞), exact at integers and halves."""
    low = torch.floor(y)
    return low + 0.5 + 0.5 * torch.tanh(alpha * (y - low - 0.5)) / torch.tanh(alpha / 2)


class FakeQuantizer(nn.Module):
    """w [out,in] as the export would give it back, while training and switched on."""

    def __init__(self, bits: int, config: Any):
        super().__init__()
        self.qmax, self.config = 2 ** (bits - 1) - 1, config
        self.strength: Tensor
        self.alpha: Tensor
        self.register_buffer("strength", torch.zeros(()), persistent=False)
        self.register_buffer("alpha", torch.ones(()), persistent=False)

    def scale(self, w: Tensor) -> Tensor:
        """[out,1]"""
        magnitude = w.detach().abs()
        if self.config.clip == "max" or self.config.published:
            top = magnitude.amax(1, keepdim=True)
        else:
            rank = max(1, round(0.9995 * w.size(1)))
            if rank == w.size(1):
                top = magnitude.amax(1, keepdim=True)
            else:  # kthvalue: quantile refuses large tensors
                top = magnitude.kthvalue(rank, dim=1, keepdim=True).values
        return (top / self.qmax).clamp_min(1.0 / self.qmax if self.config.published else 1e-7)

    def stored(self, w: Tensor) -> Tensor:
        s = self.scale(w)
        low = -self.qmax - 1 if self.config.published else -self.qmax
        y = w / s
        if self.config.mode == "soft":
            return s * soft_round(y, self.alpha).clamp(low, self.qmax)
        return s * torch.round(y).clamp(low, self.qmax)

    def forward(self, w: Tensor) -> Tensor:
        if not self.training:
            return w
        if self.config.mode == "soft":
            return w + self.strength * (self.stored(w) - w)
        return w + self.strength * (self.stored(w) - w).detach()


class LateQat(Technique):
    """Training on quantised weights towards the end."""

    name = "late_qat"
    reference = "PR #315, #414, #569 (quantile), #606 (soft rounding)"
    conflicts = {"swa": "an average of snapshots is off the grid that training aligned to (#989)"}
    space = {
        "threshold": Float(0.05, 1.0),
        "mode": Choice(("hard", "soft")),
        "clip": Choice(("quantile", "max")),
        "alpha_end": Float(4.0, 32.0, log=True),
    }
    env = {"LATE_QAT_THRESHOLD": "threshold"}
    unseen = ("clip",)  # a row of fewer than 1,000 has its quantile at the top
    smoke = {"threshold": 0.9}

    @dataclass(frozen=True)
    class Config:
        threshold: float = setting(
            0.15, "on while the learning-rate scale is below this; above 1: always", low=1e-6, high=2.0
        )
        mode: str = setting("hard", "rounding: hard (straight-through) or soft", choices=("hard", "soft"))
        clip: str = setting(
            "quantile", "a row's largest value, or its 0.9995 quantile", choices=("quantile", "max")
        )
        alpha_end: float = setting(16.0, "steepness of soft rounding at the end", low=1.0, high=1000.0)
        published: bool = setting(False, "scales and range of #315, which differ from the export's")

    def weight(self, shape: Shape, role: str, bits: int):
        return FakeQuantizer(bits, self.config)

    def stepper(self, model: Any) -> Any:
        parts = [m for m in model.modules() if isinstance(m, FakeQuantizer)]
        if not parts:
            raise ValueError("late_qat matches no matrix of this model: all are below `quantize_min_numel`.")
        began: list[float] = []
        filled = {"strength": 0.0, "alpha": 1.0}  # as the parts are made

        def step(progress: float, lr_scale: float) -> None:
            on = lr_scale < self.config.threshold
            if not on:
                began.clear()  # the warm-up's steps do not count
            elif not began:
                began.append(progress)
            done = (progress - began[0]) / max(1e-9, 1.0 - began[0]) if began else 0.0
            soft = self.config.mode == "soft"  # the other mode never reads alpha
            alpha = self.config.alpha_end ** min(1.0, done) if soft else 1.0
            for name, value in (("strength", 1.0 if on else 0.0), ("alpha", alpha)):
                if value != filled[name]:
                    buffers: Any = [getattr(part, name) for part in parts]
                    torch._foreach_zero_(buffers)  # pyright: ignore[reportPrivateImportUsage]
                    torch._foreach_add_(buffers, value)  # pyright: ignore[reportPrivateImportUsage]
                    filled[name] = value

        return step
