"""For each chunk c of validation tokens: score its windows; then, but for the last, θ ← SGD(θ, c, lr_c).

A window belongs to the chunk of its first scored position, so when chunk c is trained on, all of its targets
have their score. lr_c = lr·½(1 + cos(πc/(C−1))), C chunks. A step takes `batch_seqs` sequences of the chunk,
split over the ranks; gradients are weighted by the share of tokens, summed, then clipped: any world takes the
same step.

Source: test-time training, PR #461 and #549 (about -0.0025 BPB; nothing on #1019). Cost: the sliding windows
plus 3·epochs passes a token. Legal: no score depends on a later token (#461, merged #549; issue #1017,
condition 3). Conflicts: it is the scorer; another one cannot be on. What we saw: studies/LOG.md, "own_text,
200 trials on twelve public-domain books" and "laptop, 200 trials on the embedded corpus".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from techniques._adapt import check_sliding, sliding_passes
from techniques._ttt import element_counts, sequence_step, set_rates, standing_still, ttt_parameters
from techniques._windows import score_sliding, windows
from techniques.base import (
    Choice,
    Cost,
    Float,
    Int,
    Legality,
    Shape,
    Technique,
    Unavailable,
    Verdict,
    setting,
)


def chunks_of(num_positions: int, chunk_tokens: int) -> int:
    """Unavailable if there is only one: the last chunk is never trained on."""
    if num_positions <= chunk_tokens:
        raise Unavailable(
            f"score_first_ttt trains on all chunks but the last, and {num_positions} positions make "
            f"only one chunk of {chunk_tokens}. Lower `score_first_ttt.chunk_tokens`."
        )
    return math.ceil(num_positions / chunk_tokens)


class TttScorer:
    """Leaves the model with the weights of the last trained chunk. `facts` says what was trained."""

    def __init__(self, config: Any):
        self.config = config
        self.facts: dict[str, Any] = {"steps": 0, "trained_chunks": 0, "adapted": 0}

    def score(self, run: Any) -> None:
        c, model = self.config, run.model
        num_chunks = chunks_of(run.num_positions, c.chunk_tokens)
        chunks: list[list[Any]] = [[] for _ in range(num_chunks)]
        for window in windows(run.num_positions, run.seq_len, c.stride):
            chunks[window[1] // c.chunk_tokens].append(window)
        trained, frozen = ttt_parameters(model, c.freeze_blocks, "score_first_ttt")
        self.facts |= {"chunks": num_chunks, **element_counts(trained, frozen)}
        optimizer = torch.optim.SGD(trained, lr=c.lr, momentum=c.momentum)
        with standing_still(frozen):
            for i, found in enumerate(chunks):
                mine = run.world.my_range(len(found))
                score_sliding(run, found[mine.start : mine.stop], run.batch_seqs)
                if i + 1 < num_chunks:
                    set_rates(optimizer, c.lr, i / (num_chunks - 1))
                    self.train_on(run, i, optimizer, trained)
        optimizer.zero_grad(set_to_none=True)

    def train_on(
        self, run: Any, chunk: int, optimizer: torch.optim.SGD, trained: list[torch.nn.Parameter]
    ) -> None:
        """`epochs` passes over a scored chunk's whole sequences; a remainder shorter than S is left out."""
        c, s = self.config, run.seq_len
        first = chunk * c.chunk_tokens
        starts = [first + k * s for k in range(c.chunk_tokens // s)]  # not the last chunk: it is whole
        for _ in range(c.epochs):
            for at in range(0, len(starts), c.batch_seqs):
                sequence_step(run, starts[at : at + c.batch_seqs], optimizer, trained, c.grad_clip)
                self.facts["steps"] += 1
        self.facts["trained_chunks"] += 1
        self.facts["adapted"] += 1


class ScoreFirstTtt(Technique):
    """Test-time training on validation chunks whose scores are already fixed."""

    name = "score_first_ttt"
    reference = "PR #461, #549"
    legality = Legality(
        Verdict.LEGAL, "each score is fixed before any update that used it: #461, merged #549"
    )
    stage = "evaluate"
    space = {
        "epochs": Int(1, 10),
        "lr": Float(1e-4, 2e-2, log=True),
        "chunk_tokens": Choice((8_192, 16_384, 32_768, 65_536, 131_072)),
        "momentum": Float(0.0, 0.95),
        "freeze_blocks": Int(0, "num_layers"),
        "stride": Int(16, "eval_seq_len", log=True),
    }
    env = {
        "TTT_ENABLED": "on",
        "TTT_EPOCHS": "epochs",
        "TTT_LR": "lr",
        "TTT_CHUNK_TOKENS": "chunk_tokens",
        "TTT_MOMENTUM": "momentum",
        "TTT_FREEZE_BLOCKS": "freeze_blocks",
        "TTT_BATCH_SEQS": "batch_seqs",
        "TTT_GRAD_CLIP": "grad_clip",
    }
    smoke = {"epochs": 1, "lr": 0.01, "chunk_tokens": 64, "stride": 16}

    @dataclass(frozen=True)
    class Config:
        epochs: int = setting(3, "passes over a scored chunk", low=1, high=100)
        lr: float = setting(0.002, "SGD rate at the first chunk", low=0.0, high=1.0)
        chunk_tokens: int = setting(32_768, "validation tokens per chunk", low=2)
        momentum: float = setting(0.9, "SGD momentum", low=0.0, high=0.999)
        freeze_blocks: int = setting(0, "first blocks that stand still", low=0, high=64)
        batch_seqs: int = setting(32, "training sequences per step, over all ranks", low=1, high=65_536)
        grad_clip: float = setting(1.0, "global gradient norm at most", low=1e-6)
        stride: int = setting(64, "tokens between window starts", low=1, high=65_536)

    def check(self, shape: Shape) -> None:
        chunk = self.config.chunk_tokens
        if chunk < shape.eval_seq_len:
            raise ValueError(
                f"`{self.name}.chunk_tokens` must be at least the evaluation sequence, but got {chunk} and "
                f"{shape.eval_seq_len}. Raise it, or lower eval_seq_len."
            )
        check_sliding(self.name, self.config, shape)

    def check_data(self, num_positions: int) -> None:
        chunks_of(num_positions, self.config.chunk_tokens)

    def cost(self, shape: Shape) -> Cost:
        return Cost(eval_passes=sliding_passes(self.config, shape))

    def scorer(self) -> TttScorer:
        return TttScorer(self.config)
