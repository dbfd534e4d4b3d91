"""How large trained weights are: σ of a matrix, from how far its optimiser moves it.

Muon's update of a matrix [r,c] has the root mean square lr/√c, whatever the gradient. Updates that agree by
a share κ add up to κ·T/√c, with T = Σ lr over the steps: exact arithmetic of rates and schedules. A weight
decay λ pulls back: T becomes (1 − exp(−λT))/λ. Adam's weights grow by a power of T below one. κ, its growth
with momentum, and that power were fitted to trained laptop models; what is left is learnt
(search/costs/bills.py, factors `sigma` and `weights`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from techniques.base import TensorSpec, claims
from techniques.config import Resolved

POINTS = 20  # of the budget at which rates are read
AGREEMENT = 0.35  # κ at a momentum of 0.9
OF_MOMENTUM = 0.5  # κ ∝ (1 − momentum)^−this
ADAM, OF_ADAM = 0.157, 0.6  # σ = ADAM·T^OF_ADAM
KAIMING = 1.0 / math.sqrt(3.0)  # σ·√c of a matrix that does not begin at zero
LEAST = 1e-3  # σ·√c of a matrix that hardly moves
RATES = {"embed": "tied_embed_lr", "head": "head_lr", "gate": "scalar_lr"}  # of a role; else matrix_lr


@dataclass(frozen=True)
class Hyper:
    """trainer.muon.Hyper, without torch: what techniques change at the seams `hyper` and `hyper_at`."""

    muon_momentum: float = 0.95
    muon_momentum_start: float = 0.85
    muon_momentum_warmup_steps: int = 500
    muon_ns_steps: int = 5
    muon_weight_decay: float = 0.0
    adam_weight_decay: float = 0.0
    embed_weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    adam_eps: float = 1e-8
    lr_mults: tuple[tuple[str, float], ...] = ()
    layer_mults: tuple[int, float, float] = (0, 1.0, 1.0)
    cautious_decay: bool = False
    lr_mult: float = 1.0


class Training:
    """One run's rates: σ of any of its matrices."""

    def __init__(self, resolved: Resolved):
        self.resolved = resolved
        hyper: Any = Hyper()
        entered = [(t, claims(t)) for t in resolved.techniques.values()]
        for technique in (t for t, seams in entered if "hyper" in seams):
            hyper = technique.hyper(hyper)
        self.hyper: Hyper = hyper
        self.mults = dict(self.hyper.lr_mults)
        self.schedules = [t.lr_scale for t, seams in entered if "lr_scale" in seams]
        self.moving = [t.hyper_at for t, seams in entered if "hyper_at" in seams]
        shares = [(k + 0.5) / POINTS for k in range(POINTS)]
        steps = resolved.config.iterations
        self.scale = steps * sum(map(self._scale, shares)) / POINTS  # Σ of the scales of the rates
        risen = [min(1.0, share * steps / max(1, hyper.muon_momentum_warmup_steps)) for share in shares]
        rise = hyper.muon_momentum - hyper.muon_momentum_start
        self.momentum = hyper.muon_momentum_start + rise * sum(risen) / POINTS

    def _scale(self, progress: float) -> float:
        """Of every learning rate at this share of the budget."""
        config, scale, hyper = self.resolved.config, 1.0, self.hyper
        if config.warmdown_iters:
            scale = min(1.0, (1.0 - progress) * config.iterations / config.warmdown_iters)
        for lr_scale in self.schedules:
            scale = lr_scale(progress) or 0.0
        for hyper_at in self.moving:
            hyper = hyper_at(hyper, progress)
        return scale * hyper.lr_mult

    def rate(self, tensor: TensorSpec) -> float:
        name = RATES.get(tensor.role, "matrix_lr")
        if tensor.role == "embed" and not self.resolved.config.tie_embeddings:
            name = "embed_lr"
        rate = float(self.resolved.values[name]) * self.mults.get(tensor.role, 1.0)
        split, early, late = self.hyper.layer_mults
        if tensor.layer < 0 or tensor.role in RATES:
            return rate
        return rate * (early if tensor.layer < split else late)

    def sigma(self, tensor: TensorSpec) -> float:
        """Root mean square of the trained elements."""
        moved = self.rate(tensor) * self.scale
        if tensor.role in RATES:
            decay = self.hyper.embed_weight_decay if tensor.role == "embed" else self.hyper.adam_weight_decay
            return ADAM * max(LEAST, pulled(moved, decay)) ** OF_ADAM
        agreement = AGREEMENT * (10.0 * max(1e-3, 1.0 - self.momentum)) ** -OF_MOMENTUM
        travelled = agreement * pulled(moved, self.hyper.muon_weight_decay)
        began = LEAST if tensor.zero else KAIMING
        return math.hypot(began, travelled) / math.sqrt(tensor.shape[-1])


def pulled(moved: float, decay: float) -> float:
    """What is left of a way under a decoupled weight decay."""
    return -math.expm1(-decay * moved) / decay if decay else moved
