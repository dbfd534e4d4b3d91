"""buf ← μ·buf + g; p ← p·(1 − lr·wd) − lr·√max(1, rows/cols)·NS_n(g + μ·buf): Muon's μ, wd and n.

Source: Muon, K. Jordan et al. Momentum 0.99 from 0.92 over 1500 steps with wd 0.04 in #414/#549/#1019; 0.97
in #1514 and #1855; wd 0.085 in #1218, 0.095 in #1493/#1855. Decay also shrinks the packed bytes: 1.5–2 MB per
0.01 (#375), R² ≈ 0.99 between the matrices' RMS and the compression ratio (#1218).
The defaults are the baseline's values: one setting, or one variable of the environment, changes that one
thing. With no setting at all the technique does nothing, and the activity audit says so.
Cost: none; n iterations are about n/5 of the baseline's optimiser time. What we saw: studies/LOG.md,
"laptop, 200 trials on the embedded corpus".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from techniques.base import Float, Int, Technique, setting


class MuonDetails(Technique):
    """Settings of Muon beyond its learning rate, and the decoupled weight decays."""

    name = "muon_details"
    reference = "Muon (Jordan et al.); PR #375, #414, #1218, #1514, #1855"
    space = {
        "momentum": Float(0.9, 0.99),
        "momentum_start": Float(0.8, 0.95),
        "momentum_warmup_steps": Int(10, 2000, log=True),
        "ns_steps": Int(3, 7),
        "weight_decay": Float(0.0, 0.15),
        "adam_weight_decay": Float(0.0, 0.1),
        "embed_weight_decay": Float(0.0, 0.1),
    }
    env = {
        "MUON_MOMENTUM": "momentum",
        "MUON_MOMENTUM_WARMUP_START": "momentum_start",
        "MUON_MOMENTUM_WARMUP_STEPS": "momentum_warmup_steps",
        "MUON_BACKEND_STEPS": "ns_steps",
        "MUON_WD": "weight_decay",
        "ADAM_WD": "adam_weight_decay",
        "EMBED_WD": "embed_weight_decay",
    }
    smoke = {"momentum": 0.97, "momentum_warmup_steps": 2, "weight_decay": 0.1, "adam_weight_decay": 0.02}

    @dataclass(frozen=True)
    class Config:
        momentum: float = setting(0.95, "μ of Muon after its warm-up", low=0.0, high=0.9999)
        momentum_start: float = setting(0.85, "μ at step 0", low=0.0, high=0.9999)
        momentum_warmup_steps: int = setting(500, "steps over which μ rises linearly", low=0, high=100_000)
        ns_steps: int = setting(5, "Newton–Schulz iterations of an update", low=1, high=12)
        weight_decay: float = setting(
            0.0, "decoupled decay of Muon's matrices, per unit of lr", low=0.0, high=10.0
        )
        adam_weight_decay: float = setting(
            0.0, "the same for scalars, vectors and an untied head", low=0.0, high=10.0
        )
        embed_weight_decay: float = setting(0.0, "the same for embedding tables", low=0.0, high=10.0)

    def hyper(self, hyper: Any) -> Any:
        c = self.config
        return dataclasses.replace(
            hyper,
            muon_momentum=c.momentum,
            muon_momentum_start=c.momentum_start,
            muon_momentum_warmup_steps=c.momentum_warmup_steps,
            muon_ns_steps=c.ns_steps,
            muon_weight_decay=c.weight_decay,
            adam_weight_decay=c.adam_weight_decay,
            embed_weight_decay=c.embed_weight_decay,
        )
