"""p'(t) = p(t)·e^{β[t = u]} / Z, Z = 1 + p(u)(e^β − 1): one hint u from the text so far, normalised.

With `threshold` 0 the hint is what followed the last earlier occurrence of the last `order` tokens; it stands
only if the last `min_agree` occurrences were followed by the same token. β is `beta`, and `agreement` more if
one occurrence further back agrees, too. With a threshold (published: 0.8) it is the token that most often
followed the last order − 1 tokens so far, if it is at least this share of all that did; β is `beta`. With
`fade` γ, β is times (1 − q)^γ, q = p(u): little where the model knows by itself (#2129: 1.05900 to 1.05874
at γ = 1, one seed). Nats: NLL + ln Z − β[y = u], y the target. Hints come from the tokens before the target
alone; windows are those of sliding_window.

Source: PR #1145 (the counts; order 16, 0.8, β 2.625), #1514 (β = 2.0, +0.1 on agreement; its experts for word
starts looked at the target and are off), #2018 and #2135 (the counts alone). Not the banned caches, which
score the target alone out of hashed counts and sum to far more than 1 (#677, #886): this is a distribution
over the whole vocabulary, and contexts are compared, not hashed away (two 64-bit keys that collide would
share a hint, still causal). Cost: the sliding windows and one sort of the split (by counts: three).
Conflicts: it is the scorer; another one cannot be on. phased_ttt tilts by itself (`phased_ttt.tilt`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from techniques._windows import (
    last_hints,
    scored_hidden,
    share_hints,
    tilt_nats,
    window_batches,
    window_tensors,
    windows,
    write_window_nats,
)
from techniques.base import Cost, Float, Int, Legality, Shape, Technique, Verdict, setting


class TiltScorer:
    """The model stays as it is."""

    def __init__(self, config: Any):
        self.config, self.facts = config, {}

    def score(self, run: Any) -> None:
        c = self.config
        with torch.no_grad():
            tokens = run.tokens.cpu()
        if c.threshold:
            hints, strengths = (
                share_hints(tokens, c.order, c.threshold),
                torch.full((len(tokens) - 1,), c.beta),
            )
        else:
            hints, more = last_hints(tokens, c.order, c.min_agree)
            strengths = c.beta + c.agreement * more.float()
        found = windows(run.num_positions, run.seq_len, c.stride)
        mine = run.world.my_range(len(found))
        with torch.no_grad():
            for batch in window_batches(found[mine.start : mine.stop], run.batch_seqs):
                ids, targets, context = window_tensors(run, batch)
                logits = run.model.logits(scored_hidden(run, ids, context))
                hint, strength = (
                    torch.stack([x[first:end] for _, first, end in batch]).to(ids.device)
                    for x in (hints, strengths)
                )
                nats = tilt_nats(logits, targets[:, context:], hint, strength, c.fade)
                write_window_nats(run, batch, nats)
        hinted = hints >= 0
        right = (hints == tokens[1:].to(torch.int64)) & hinted
        self.facts = {"hinted": int(hinted.sum()), "hinted_right": int(right.sum())}


class TokenTilt(Technique):
    """A normalised tilt of each distribution towards what last followed the same context."""

    name = "token_tilt"
    reference = "PR #1145, #1514, #2018, #2129 (γ), #2135"
    legality = Legality(
        Verdict.LEGAL, "normalised, one token, the strict prefix only: rows of #1514 and #2135"
    )
    stage = "evaluate"
    null = {"beta": 0.0, "agreement": 0.0}
    space = {
        "order": Int(1, 24),
        "beta": Float(0.1, 4.0),
        "agreement": Float(0.0, 1.0),
        "min_agree": Int(1, 4),
        "fade": Float(0.0, 2.0),
        "stride": Int(16, "eval_seq_len", log=True),
    }
    env = {
        "NGRAM_TILT_ENABLED": "on",
        "TOKEN_ORDER": "order",
        "TOKEN_BOOST": "beta",
        "TOKEN_THRESHOLD": "threshold",
        "ADAPTIVE_BOOST_GAMMA": "fade",
        "ADAPTIVE_NGRAM_GAMMA": "fade",
    }
    smoke = {"order": 1, "beta": 1.0, "stride": 16}

    @dataclass(frozen=True)
    class Config:
        order: int = setting(16, "tokens of context that must be the same", low=1, high=64)
        beta: float = setting(2.0, "β, log-odds of the hint, nats", low=0.0, high=20.0)
        agreement: float = setting(0.1, "nats more where one occurrence more agrees", low=0.0, high=20.0)
        min_agree: int = setting(1, "last occurrences that must agree", low=1, high=16)
        threshold: float = setting(
            0.0,
            "share that the hint must have of what followed; 0: by the last occurrences",
            low=0.0,
            high=1.0,
        )
        fade: float = setting(0.0, "γ, β is times (1 − q)^γ", low=0.0, high=8.0)
        stride: int = setting(64, "tokens between window starts", low=1, high=65_536)

    def check(self, shape: Shape) -> None:
        c = self.config
        if c.stride > shape.eval_seq_len:
            raise ValueError(
                f"`token_tilt.stride` must be at most the evaluation sequence, but got {c.stride} and "
                f"{shape.eval_seq_len}."
            )

    def cost(self, shape: Shape) -> Cost:
        return Cost(eval_passes=shape.eval_seq_len / self.config.stride - 1.0)

    def scorer(self) -> TiltScorer:
        return TiltScorer(self.config)
