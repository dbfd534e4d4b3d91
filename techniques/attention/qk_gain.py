"""q_h ← γ_h·q_h with γ = `init` at the start: how sharp attention begins (scores γ·q·k/√Dh of normed q, k).

Source: 1.5 in the baseline to #1019; 4.0 in #1218/#1263; 5.0 in #1413/#1855; 5.25 in #1493; "monotonic 4 →
5.25" there.
Cost: none, the baseline's γ [H] of every layer is only filled. Identity at init: no (1.5 is the baseline).
What we saw: studies/LOG.md, "laptop, 200 trials on the embedded corpus".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from techniques.base import Float, Technique, setting


class QkGain(Technique):
    """The first value of the per-head query gain."""

    name = "qk_gain"
    reference = "PR #1218, #1413, #1493, #1855"
    space = {"init": Float(1.0, 8.0)}
    env = {"QK_GAIN_INIT": "init"}
    smoke = {"init": 4.0}

    @dataclass(frozen=True)
    class Config:
        init: float = setting(5.0, "first gain of every query head", low=0.01, high=100.0)

    def init(self, model: Any) -> None:
        for block in (b for b in model.blocks if b.attn is not None):
            block.attn.q_gain.fill_(self.config.init)
