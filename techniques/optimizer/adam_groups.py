"""Adam's β₁, β₂ and eps, and a factor on the learning rate of each role (Muon's roles too).

Source: (0.9, 0.95) in the baseline and the 11-layer records, β₂ 0.99 in PR #1855; embedding, scalar and
matrix rates apart in all of them. The base rates are the trainer's `tied_embed_lr`, `embed_lr`, `head_lr`,
`scalar_lr`, `matrix_lr`; the factors let a role leave its base: attention and MLP matrices, say, which share
matrix_lr. Cost: none. The defaults are the baseline's; with no setting at all it does nothing, and the
activity audit says so.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from techniques.base import Float, Technique, setting

MULT_ROLES = ("embed", "head", "attn", "mlp", "matrix", "scalar", "gate")


class AdamGroups(Technique):
    """Adam's constants, and learning rates by role."""

    name = "adam_groups"
    reference = "PR #549, #1855 (β₂ 0.99)"
    space = {
        "beta1": Float(0.8, 0.95),
        "beta2": Float(0.9, 0.999),
        **{f"{role}_lr_mult": Float(0.25, 4.0, log=True) for role in ("attn", "mlp", "matrix", "gate")},
    }
    env = {"BETA1": "beta1", "BETA2": "beta2", "ADAM_EPS": "eps"}
    unseen = ("matrix_lr_mult", "gate_lr_mult")  # no such parameters without other techniques
    smoke = {"beta2": 0.99, "mlp_lr_mult": 0.5}

    @dataclass(frozen=True)
    class Config:
        beta1: float = setting(0.9, "decay of Adam's first moment", low=0.0, high=0.9999)
        beta2: float = setting(0.95, "decay of Adam's second moment", low=0.0, high=0.99999)
        eps: float = setting(1e-8, "added to Adam's denominator", low=1e-16, high=1e-1)
        embed_lr_mult: float = setting(1.0, "factor on the embedding tables' rate", low=0.0, high=100.0)
        head_lr_mult: float = setting(1.0, "factor on an untied head's rate", low=0.0, high=100.0)
        attn_lr_mult: float = setting(1.0, "factor on matrix_lr, attention", low=0.0, high=100.0)
        mlp_lr_mult: float = setting(1.0, "factor on matrix_lr, MLP", low=0.0, high=100.0)
        matrix_lr_mult: float = setting(
            1.0, "factor on matrix_lr, matrices that techniques add", low=0.0, high=100.0
        )
        scalar_lr_mult: float = setting(1.0, "factor on scalar_lr", low=0.0, high=100.0)
        gate_lr_mult: float = setting(1.0, "factor on scalar_lr, gates", low=0.0, high=100.0)

    def hyper(self, hyper: Any) -> Any:
        c = self.config
        mults = [(role, getattr(c, f"{role}_lr_mult")) for role in MULT_ROLES]
        return dataclasses.replace(
            hyper,
            beta1=c.beta1,
            beta2=c.beta2,
            adam_eps=c.eps,
            lr_mults=tuple((role, mult) for role, mult in mults if mult != 1.0),
        )
