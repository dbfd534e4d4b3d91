"""Windows start at w = 0, r, 2r, … while w + S - r < N; window 0 scores all S positions, others their last r.

N positions, S tokens a window, r stride. Every position is scored exactly once, behind window 0 from at least
S - r + 1 tokens; only the last window may be cut, at N. Every scorer that slides uses these same windows.

And a tilt of whatever a scorer predicts, p'(t) ∝ p(t)·e^{β[t = u]} with one hint u a position, read from
the tokens so far.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.attention import blocked

Window = tuple[int, int, int]  # start, first scored position, end (excluded)


def windows(num_positions: int, seq_len: int, stride: int) -> list[Window]:
    """Every window of a sliding evaluation. ValueError unless 1 <= stride <= seq_len."""
    if not 1 <= stride <= seq_len:
        raise ValueError(f"The stride must lie in 1 .. seq_len = {seq_len}, but got {stride}.")
    starts = range(
        0, max(1, num_positions - seq_len + stride), stride
    )  # one at least: N may be less than S - r
    return [(w, w + seq_len - stride if w else 0, min(w + seq_len, num_positions)) for w in starts]


def window_batches(found: Sequence[Window], size: int) -> Iterator[list[Window]]:
    """Neighbours of one form (same length, same number of unscored tokens), at most `size` together."""
    batch: list[Window] = []
    for window in found:
        start, first, end = window
        if batch:
            s, f, e = batch[0]
            if len(batch) == size or (end - start, first - start) != (e - s, f - s):
                yield batch
                batch = []
        batch.append(window)
    if batch:
        yield batch


def window_tensors(run: Any, batch: Sequence[Window]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(inputs [b,T], targets [b,T], context): the first `context` positions of each window are not scored."""
    start, first, end = batch[0]
    ids, targets = run.windows([w[0] for w in batch], end - start)
    return ids, targets, first - start


def write_window_nats(run: Any, batch: Sequence[Window], nll: torch.Tensor) -> None:
    """Nats [b, scored] into the ledger; one copy from the device a batch."""
    for (_, first, _), row in zip(batch, nll.detach().float().cpu(), strict=True):
        run.write(first, row)


def last_block(model: Any) -> Any:
    """The block that runs last, where `score_last` may stand for it; None where a technique there wants all
    positions, or attends in its own way, or the layer runs twice."""
    layer = model.order[-1]
    block = model.blocks[layer]
    if block.attn is None or block.attn.attend.steps or block.residual.steps or model.visits[-1]:
        return None
    places = (block.norm, block.attn.attn_out, block.feed, block.mlp.activation, model.block_out[layer])
    entered = [model.techniques[name] for place in (*places, model.block_out[-1]) for name in place.steps]
    return block if all(technique.positionwise for technique in entered) else None


def score_last(context: int, block: Any, x: Tensor, x0: Tensor, ctx: dict[str, Any]) -> Tensor:
    """The baseline's block [b,T,D] -> [b,T - context,D]: keys and values of all positions, the rest of those
    behind the first `context`."""
    attn = block.attn
    b, t, _ = x.shape
    x = block.mix(x, x0)
    n = block.norm(F.rms_norm(x, x.shape[2:]), ctx, "attn")
    x = x[:, context:]
    own = n[:, context:]
    ctx["queries"] = q = attn.c_q(own).view(b, t - context, attn.num_heads, -1)
    k, v = (linear(n).view(b, t, attn.num_kv_heads, -1) for linear in (attn.c_k, attn.c_v))
    ctx["values"] = v
    v = attn.values(v, ctx)
    q, k = (F.rms_norm(each, each.shape[3:]) for each in (q, k))
    q, k = attn.rope(F.pad(q, (0, 0, 0, 0, context, 0)), k)
    q = q[:, context:] * attn.q_gain.to(q.dtype)[:, None]
    y = attn.attn_out(blocked(q, k, v), v[:, context:], own, ctx)
    x = x + block.attn_scale.to(x.dtype) * attn.proj(y.reshape(b, t - context, -1))
    return x + block.feed_forward(x, ctx)


def scored_hidden(run: Any, ids: Tensor, context: int) -> Tensor:
    """Final hidden states [b, T - context, D] behind the first `context` positions of ids [b,T]. On a CPU the
    last block does no more than they need, unless the forward is compiled whole."""
    if ids.device.type == "cpu" and context and run.hidden == run.model.hidden:
        block = last_block(run.model)
        if block is not None:
            slot = block.residual
            slot.parts.insert(0, functools.partial(score_last, context))
            try:
                return run.hidden(ids)
            finally:
                slot.parts.pop(0)
    return run.hidden(ids)[:, context:]


def score_sliding(run: Any, found: Sequence[Window], batch_seqs: int) -> None:
    """Score these windows as the model stands, without gradient; the head sees scored positions only."""
    with torch.no_grad():
        for batch in window_batches(found, batch_seqs):
            ids, targets, context = window_tensors(run, batch)
            h = scored_hidden(run, ids, context)
            write_window_nats(run, batch, run.nats(h, targets[:, context:]))


# ---- a tilt ----------------------------------------------------------------------------------------------

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


def last_hints(tokens: Tensor, order: int, min_agree: int) -> tuple[Tensor, Tensor]:
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


def share_hints(tokens: Tensor, order: int, threshold: float, begins: Tensor | None = None) -> Tensor:
    """hint int64 [N], -1 for none: the token that most often followed the same order - 1 tokens so far, the
    first of several to get there, if it followed at least `threshold` of the occurrences (#1145). With
    `begins` [N], the first position of each one's document, occurrences in other documents do not count."""
    keys, count = context_keys(tokens, max(1, order - 1)), tokens.numel() - 1
    if begins is not None:
        keys = keys * TILT_FACTOR + begins
        few = torch.arange(count) - begins < order - 2  # the context would reach into the document before
        keys[few] = -1 - few.nonzero().flatten()
    sorted_keys, at = torch.sort(keys, stable=True)
    followed = tokens[1:].to(torch.int64)[at]
    places = torch.arange(count)
    group = torch.cumsum(F.pad((sorted_keys[1:] != sorted_keys[:-1]).long(), (1, 0)), 0)
    pairs = torch.sort(followed, stable=True).indices
    pairs = pairs[torch.sort(group[pairs], stable=True).indices]  # by context, token, position
    same = (group[pairs][1:] == group[pairs][:-1]) & (followed[pairs][1:] == followed[pairs][:-1])
    times = torch.empty_like(places)
    times[pairs] = places - torch.cummax(places * F.pad(~same, (1, 0), value=True), 0).values + 1
    most = torch.cummax(group * (count + 1) + times, 0).values  # later contexts count from higher up
    rises = F.pad(most[1:] > most[:-1], (1, 0), value=True)
    leader = torch.cummax(places * rises, 0).values
    first = torch.cummax(places * F.pad(group[1:] != group[:-1], (1, 0), value=True), 0).values
    hint = torch.full((count,), -1)
    p = (places > first).nonzero().flatten()  # what stood one before it: the same context, so far
    share = (most[p - 1] - group[p] * (count + 1)).double() / (p - first[p])
    kept = p[share >= threshold]
    hint[at[kept]] = followed[leader[kept - 1]]
    return hint


def tilt_nats(logits: Tensor, targets: Tensor, hints: Tensor, strengths: Tensor, fade: float = 0.0) -> Tensor:
    """Nats [..] of targets under logits [..,V], tilted by e^strength towards hints (-1: not at all); the
    strength is times (1 - q)^fade, q the probability that the hint has by the logits alone."""
    log_p = F.log_softmax(logits.float(), -1)
    nats = -log_p.gather(-1, targets[..., None])[..., 0]
    q = log_p.gather(-1, hints.clamp_min(0)[..., None])[..., 0].exp()
    if fade:
        strengths = strengths * (1.0 - q).clamp_min(0.0) ** fade
    tilted = nats + torch.log1p(q * torch.expm1(strengths)) - strengths * (targets == hints)
    return torch.where(hints >= 0, tilted, nats)


@dataclass(frozen=True)
class Tilt:
    """A hint for every position [N], -1 for none, and how strong."""

    hints: Tensor
    beta: float
    fade: float

    def nats(self, logits: Tensor, targets: Tensor, at: Tensor) -> Tensor:
        """Nats of targets [..] at positions `at` [..] (any behind the last one) under logits [..,V]."""
        hints = self.hints[at.clamp_max(len(self.hints) - 1)].to(targets.device)
        return tilt_nats(
            logits, targets, hints, torch.full(hints.shape, self.beta).to(hints.device), self.fade
        )


def tilt_by_counts(run: Any, found: Sequence[tuple[int, int]], config: Any) -> Tilt:
    """Of the documents (first position, positions) of a split; no step looks at a hint."""
    with torch.no_grad(), run.ledger.apart():
        tokens = run.tokens.cpu()
    begins = None
    if config.tilt_scope == "document":
        first, length = torch.tensor(found).unbind(1)
        begins = first.repeat_interleave(length)
    hints = share_hints(tokens, config.tilt_order, config.tilt_threshold, begins)
    return Tilt(hints, config.tilt_beta, config.tilt_fade)
