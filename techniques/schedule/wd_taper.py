"""wd(f) = wd·(1 − (1 − end)·max(0, f − start)/(1 − start)): every weight decay falls linearly behind `start`.

Source: PR #1729 (full until 0.70 of the budget, then linear to half). f is steps or timed seconds, whichever
is further. It needs a weight decay: without one (`muon_details.weight_decay`) it changes nothing, and the
activity audit says so. Cost: none.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from techniques.base import Float, Technique, setting


class WdTaper(Technique):
    """Weight decays fall over the last part of the budget."""

    name = "wd_taper"
    reference = "PR #1729"
    requires = ("muon_details",)
    space = {"start": Float(0.0, 0.95), "end_mult": Float(0.0, 1.0)}
    env = {"WD_TAPER_START_FRAC": "start", "WD_TAPER_FINAL_MULT": "end_mult"}
    smoke = {"start": 0.3, "end_mult": 0.5}

    @dataclass(frozen=True)
    class Config:
        start: float = setting(0.70, "share of the budget with full decay", low=0.0, high=0.999)
        end_mult: float = setting(0.5, "factor on the decays at the end", low=0.0, high=10.0)

    def factor(self, progress: float) -> float:
        c = self.config
        return 1.0 - (1.0 - c.end_mult) * max(0.0, progress - c.start) / (1.0 - c.start)

    def hyper_at(self, hyper: Any, progress: float) -> Any:
        fields = ("muon_weight_decay", "adam_weight_decay", "embed_weight_decay")
        factor = self.factor(progress)
        return dataclasses.replace(hyper, **{f: getattr(hyper, f) * factor for f in fields})
