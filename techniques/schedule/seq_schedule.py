"""T(p) = T/2^(h − i) in the i-th of h early stages, T = train_seq_len from `full_at` on: short ones first.

The stages share [0, full_at) evenly; `lengths` names other ones ("1024,2048" before 3072). The tokens of a
step stay as they are, so a shorter T means more sequences (rounded to whole ones in every micro-batch). Each
border is a phase: another graph, run in the warm-up. Learning rates stay; evaluation uses eval_seq_len, or
the full T, throughout.
Source: progressive context growth up to 3k, #2014 and #1953 (a part of -0.001 to -0.003 BPB); before them
sequence-length warm-up, arXiv:2108.06084. Cost: less attention early on, so more steps a second. With
shuffled_loader and coprime_loader every length must divide T: short sequences are pieces of their long ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from techniques.base import Batch, Float, Int, Shape, Technique, setting


class SeqSchedule(Technique):
    """Shorter training sequences at first."""

    name = "seq_schedule"
    reference = "PR #1953, #2014; arXiv:2108.06084"
    space = {"halvings": Int(1, 4), "full_at": Float(0.1, 0.8)}
    smoke = {"halvings": 2, "full_at": 0.5}

    @dataclass(frozen=True)
    class Config:
        halvings: int = setting(2, "h: the first sequences are train_seq_len / 2^h", low=1, high=12)
        lengths: str = setting("", 'stages by their tokens ("1024,2048"); empty: halvings')
        full_at: float = setting(0.4, "progress from which sequences are full", low=0.01, high=0.95)

    def early(self, longest: int) -> list[int]:
        """The length of each stage before the full one. ValueError for what is no length below `longest`."""
        c = self.config
        if not c.lengths:
            found = [longest >> (c.halvings - i) for i in range(c.halvings)]
            fits = longest % (1 << c.halvings) == 0
        else:
            words = [w.strip() for w in c.lengths.split(",")]
            found = [int(w) for w in words if w.isdecimal()]
            fits = len(found) == len(words)
        if not fits or not all(2 <= n < longest for n in found):
            raise ValueError(
                f"`seq_schedule` takes sequences of 2 to {longest - 1} whole tokens, below train_seq_len = "
                f"{longest}, but got halvings = {c.halvings} and lengths = {c.lengths!r}."
            )
        return found

    def check(self, shape: Shape) -> None:
        self.early(shape.seq_len)

    def phases(self) -> tuple[float, ...]:
        n = len(self.config.lengths.split(",")) if self.config.lengths else self.config.halvings
        return tuple(round((i + 1) * self.config.full_at / n, 9) for i in range(n))

    def batch(self, batch: Batch, phase: float) -> Batch:
        stage = sum(at <= phase for at in self.phases())
        return batch._replace(seq_len=[*self.early(batch.seq_len), batch.seq_len][stage])
