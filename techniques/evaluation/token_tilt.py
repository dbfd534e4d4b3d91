"""p'(t) = p(t)·e^{β[t = u]} / Z, Z = 1 + p(u)(e^β − 1): one hint u from the text so far, normalised.

The hint at a position is what followed the last earlier occurrence of its last `order` tokens; it stands only
if the last `min_agree` occurrences were followed by the same token. β is `beta`, and `agreement` more if one
occurrence further back agrees, too. Nats: NLL + ln Z − β[y = u], y the target. Hints come from the tokens
before the target alone and are the same whatever the model says; windows are those of sliding_window.

Source: PR #1514 (β = 2.0, +0.1 on agreement; its experts for word starts looked at the target and are off);
#2135 uses such a tilt. Not the banned caches, which score the target alone out of hashed counts and sum to
far more than 1 (#677, #886): this is a distribution over the whole vocabulary, and contexts are compared, not
hashed away (two 64-bit keys that collide would share a hint, still causal). Cost: the sliding windows and one
sort of the split. Conflicts: it is the scorer; another one cannot be on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from techniques._windows import window_batches, window_tensors, windows, write_window_nats
from techniques.base import Cost, Float, Int, Legality, Shape, Technique, Verdict, setting

TILT_FACTOR = 0x5DEECE66D  # odd: multiplication keeps all 64 bits


def context_keys(tokens: Tensor, order: int) -> Tensor:
    """int64 [N]: equal for positions that follow the same `order` tokens, -1 - p where there are fewer."""
    tokens, count = tokens.to(torch.int64), tokens.numel() - 1
    keys = torch.zeros(count, dtype=torch.int64)
    for back in range(order):
        shifted = F.pad(tokens[: count - back], (back, 0)) if back < count else torch.zeros_like(keys)
        keys = keys * TILT_FACTOR + shifted + 1  # wraps around
    few = min(order - 1, count)
    keys[:few] = -1 - torch.arange(few)
    return keys


def tilt_hints(tokens: Tensor, order: int, min_agree: int) -> tuple[Tensor, Tensor]:
    """(hint int64 [N], -1 for none; bool [N]: one occurrence more agrees) for every position of tokens
    [N + 1]. An occurrence at q < p tells tokens[q + 1], which stands at or before p."""
    keys, count = context_keys(tokens, order), tokens.numel() - 1
    sorted_keys, at = torch.sort(keys, stable=True)  # positions with one context, earlier ones first
    followed = tokens[1:].to(torch.int64)[at]
    alike = torch.ones(count, dtype=torch.bool)
    hint, more = torch.full((count,), -1), torch.zeros(count, dtype=torch.bool)
    for back in range(1, min_agree + 2):
        if back >= count:
            alike[:] = False
        else:
            alike[:back] = False
            alike[back:] &= sorted_keys[back:] == sorted_keys[:-back]
            alike[back:] &= followed[: count - back] == followed[back - 1 : count - 1]
        if back == min_agree:
            found = alike.nonzero().flatten()
            hint[at[found]] = followed[found - 1]
    more[at] = alike
    return hint, more


def tilt_nats(logits: Tensor, targets: Tensor, hints: Tensor, strengths: Tensor) -> Tensor:
    """Nats [..] of targets under logits [..,V], tilted by e^strength towards hints (-1: not at all)."""
    log_p = F.log_softmax(logits.float(), -1)
    nats = -log_p.gather(-1, targets[..., None])[..., 0]
    p_hint = log_p.gather(-1, hints.clamp_min(0)[..., None])[..., 0].exp()
    tilted = nats + torch.log1p(p_hint * torch.expm1(strengths)) - strengths * (targets == hints)
    return torch.where(hints >= 0, tilted, nats)


class TiltScorer:
    """The model stays as it is."""

    def __init__(self, config: Any):
        self.config, self.facts = config, {}

    def score(self, run: Any) -> None:
        c = self.config
        with torch.no_grad():
            tokens = run.tokens.cpu()
        hints, more = tilt_hints(tokens, c.order, c.min_agree)
        strengths = c.beta + c.agreement * more.float()
        found = windows(run.num_positions, run.seq_len, c.stride)
        mine = run.world.my_range(len(found))
        with torch.no_grad():
            for batch in window_batches(found[mine.start : mine.stop], run.batch_seqs):
                ids, targets, context = window_tensors(run, batch)
                logits = run.model.logits(run.hidden(ids)[:, context:])
                hint, strength = (
                    torch.stack([x[first:end] for _, first, end in batch]).to(ids.device)
                    for x in (hints, strengths)
                )
                write_window_nats(run, batch, tilt_nats(logits, targets[:, context:], hint, strength))
        hinted = hints >= 0
        right = (hints == tokens[1:].to(torch.int64)) & hinted
        self.facts = {"hinted": int(hinted.sum()), "hinted_right": int(right.sum())}


class TokenTilt(Technique):
    """A normalised tilt of each distribution towards what last followed the same context."""

    name = "token_tilt"
    reference = "PR #1514, #2135"
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
        "stride": Int(16, "eval_seq_len", log=True),
    }
    env = {"NGRAM_TILT_ENABLED": "on", "TOKEN_ORDER": "order", "TOKEN_BOOST": "beta"}
    smoke = {"order": 1, "beta": 1.0, "stride": 16}

    @dataclass(frozen=True)
    class Config:
        order: int = setting(16, "tokens of context that must be the same", low=1, high=64)
        beta: float = setting(2.0, "β, log-odds of the hint, nats", low=0.0, high=20.0)
        agreement: float = setting(0.1, "nats more where one occurrence more agrees", low=0.0, high=20.0)
        min_agree: int = setting(1, "last occurrences that must agree", low=1, high=16)
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
