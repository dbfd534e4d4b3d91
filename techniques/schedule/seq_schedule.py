"""T(p) = T/2^(h − i) in the i-th of h early stages, T = train_seq_len from `full_at` on: short ones first.

The stages share [0, full_at) evenly; `lengths` names other ones ("1024,2048" before 3072), or each with the
progress where it ends ("1024@0.1,2048@0.7,3072@1", #2014). The tokens of a step stay as they are, so a
shorter T means more sequences (rounded to whole ones in every micro-batch). Each border is a phase: another
graph, run in the warm-up. Behind a border learning rates rise again from 0 over `rewarm` of the budget
(#2014: 32 steps); 0: they stay. Evaluation uses eval_seq_len, or the full T, throughout. Source: progressive
context growth up to 3k, #2014 and #1953 (a part of -0.001 to -0.003 BPB); before them sequence-length
warm-up, arXiv:2108.06084. Cost: less attention early on, so more steps a second. With shuffled_loader and
coprime_loader short sequences are pieces of longer blocks, of the least common multiple of all lengths while
that is at most 4 T; other lengths must divide T.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

from techniques.base import Batch, Float, Int, Shape, Technique, setting


class SeqSchedule(Technique):
    """Shorter training sequences at first."""

    name = "seq_schedule"
    reference = "PR #1953, #2014; arXiv:2108.06084"
    space = {"halvings": Int(1, 4), "full_at": Float(0.1, 0.8)}
    env = {"TRAIN_SEQ_SCHEDULE": "lengths"}
    smoke = {"halvings": 2, "full_at": 0.5}

    @dataclass(frozen=True)
    class Config:
        halvings: int = setting(2, "h: the first sequences are train_seq_len / 2^h", low=1, high=12)
        lengths: str = setting(
            "", 'stages by their tokens ("1024,2048" or "1024@0.1,2048@0.7"); empty: halvings'
        )
        full_at: float = setting(0.4, "progress from which sequences are full", low=0.01, high=0.95)
        rewarm: float = setting(0.0, "share of the budget of a new warm-up of the rates", low=0.0, high=0.5)

    def stages(self) -> list[tuple[str, float]]:
        """(tokens, progress at its end) of each early stage that `lengths` names."""
        words = [w.strip() for w in self.config.lengths.split(",")] if self.config.lengths else []
        if not any("@" in w for w in words):
            return [(w, round((i + 1) * self.config.full_at / len(words), 9)) for i, w in enumerate(words)]
        pairs = [w.partition("@")[::2] for w in words]
        try:
            found = [(tokens, float(end)) for tokens, end in pairs]
        except ValueError:
            found = [("", 0.0)]
        ends = [0.0, *(end for _, end in found)]
        if any(a >= b for a, b in itertools.pairwise(ends)) or ends[-1] > 1.0:
            raise ValueError(
                f"`seq_schedule.lengths` takes ends that rise to 1 at most, as in 1024@0.1,2048@0.7, but got "
                f"{self.config.lengths!r}."
            )
        return found

    def early(self, longest: int) -> list[int]:
        """The length of each stage before the full one. ValueError for what is no length below `longest`."""
        c = self.config
        if not c.lengths:
            found = [longest >> (c.halvings - i) for i in range(c.halvings)]
            fits = longest % (1 << c.halvings) == 0
        else:
            stages = self.stages()
            last = [w for w, end in stages if end == 1.0]
            words = [w for w, end in stages if end < 1.0]
            found = [int(w) for w in words if w.isdecimal()]
            fits = len(found) == len(words) and last in ([], [str(longest)])
        if not fits or not all(2 <= n < longest for n in found):
            raise ValueError(
                f"`seq_schedule` takes sequences of 2 to {longest - 1} whole tokens, below train_seq_len = "
                f"{longest}, but got halvings = {c.halvings} and lengths = {c.lengths!r}."
            )
        return found

    def check(self, shape: Shape) -> None:
        self.early(shape.seq_len)

    def phases(self) -> tuple[float, ...]:
        if self.config.lengths:
            return tuple(end for _, end in self.stages() if end < 1.0)
        n = self.config.halvings
        return tuple(round((i + 1) * self.config.full_at / n, 9) for i in range(n))

    def hyper_at(self, hyper: Any, progress: float) -> Any:
        begun = [at for at in self.phases() if at <= progress]
        if not (self.config.rewarm and begun):
            return hyper
        risen = min(1.0, (progress - begun[-1]) / self.config.rewarm)
        return dataclasses.replace(hyper, lr_mult=hyper.lr_mult * risen)

    def batch(self, batch: Batch, phase: float) -> Batch:
        stage = sum(at <= phase for at in self.phases())
        return batch._replace(seq_len=[*self.early(batch.seq_len), batch.seq_len][stage])
