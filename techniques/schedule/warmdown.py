"""lr scale(f) = min(1, max((1−f)/frac, min_lr)) at the share f of the budget: warm-down by fraction.

Source: frac 0.667 in #1218, 0.72 and 0.75 after it, 0.85 in #1855; min_lr 0.10 in #1787/#1855. Linear (#569's
README says cosine; its code is linear). f is steps or timed seconds, whichever is further: a validation does
not move it.
Cost: none. It replaces the trainer's `warmdown_iters`. What we saw: studies/LOG.md, "laptop, 200 trials on
the embedded corpus".
"""

from __future__ import annotations

from dataclasses import dataclass

from techniques.base import Float, Technique, setting


class Warmdown(Technique):
    """Learning rates fall linearly over the last fraction of the budget, to a floor."""

    name = "warmdown"
    reference = "PR #1218, #1787, #1855"
    overrides = ("warmdown_iters",)
    space = {"frac": Float(0.2, 1.0), "min_lr": Float(0.0, 0.2)}
    env = {"WARMDOWN_FRAC": "frac", "MIN_LR": "min_lr"}
    smoke = {"frac": 0.75, "min_lr": 0.1}

    @dataclass(frozen=True)
    class Config:
        frac: float = setting(0.72, "share of the budget over which learning rates fall", low=0.001, high=1.0)
        min_lr: float = setting(0.0, "floor of the scale, in base learning rates", low=0.0, high=1.0)

    def lr_scale(self, progress: float) -> float:
        return min(1.0, max((1.0 - progress) / self.config.frac, self.config.min_lr))
