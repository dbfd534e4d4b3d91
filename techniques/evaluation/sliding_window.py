"""Windows of S tokens every r: each position scored once, from at least S - r + 1 tokens (window 0: fewer).

Source: rec:2026-03-19_SlidingWindowEval and every later record; exact window rule of #1218 and #569 (earlier
ones score the last tokens repeatedly). With r = 64 about -0.032 BPB at S = 1024, -0.023 at S = 2048, against
sequences side by side. Cost: S/r forward passes a token; the head sees scored positions only. Legal: the
model stays as it is. What we saw: studies/LOG.md, "own_text, 200 trials on twelve public-domain books".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from techniques._windows import score_sliding, windows
from techniques.base import LEGAL, Cost, Int, Legality, Shape, Technique, setting


class SlidingWindowScorer:
    """Ranks take contiguous shares of the windows."""

    def __init__(self, config: Any):
        self.config, self.facts = config, {}

    def score(self, run: Any) -> None:
        found = windows(run.num_positions, run.seq_len, self.config.stride)
        mine = run.world.my_range(len(found))
        score_sliding(run, found[mine.start : mine.stop], self.config.batch_seqs or run.batch_seqs)
        self.facts = {"windows": len(found)}


class SlidingWindow(Technique):
    """Overlapping evaluation windows, each position scored once with a long context."""

    name = "sliding_window"
    reference = "rec:2026-03-19_SlidingWindowEval; exact windows of PR #1218"
    legality = Legality(LEGAL.verdict, "a frozen model under a strict prefix: issue #1017, track A")
    stage = "evaluate"
    space = {"stride": Int(16, "eval_seq_len", log=True)}
    env = {"EVAL_STRIDE": "stride"}
    smoke = {"stride": 8}
    batching = ("batch_seqs",)

    @dataclass(frozen=True)
    class Config:
        stride: int = setting(64, "tokens between window starts", low=1, high=65_536)
        batch_seqs: int = setting(0, "windows per batch and rank; 0: the trainer's", low=0, high=65_536)

    def check(self, shape: Shape) -> None:
        if self.config.stride > shape.eval_seq_len:
            raise ValueError(
                f"`sliding_window.stride` must be at most the evaluation sequence, but got "
                f"{self.config.stride} and {shape.eval_seq_len}."
            )

    def cost(self, shape: Shape) -> Cost:
        return Cost(eval_passes=shape.eval_seq_len / self.config.stride - 1.0)

    def scorer(self) -> SlidingWindowScorer:
        return SlidingWindowScorer(self.config)
