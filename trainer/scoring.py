"""What every scorer shares: nats of hidden states, and whether a scorer changed the score at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.parameters import load_weights

NATS_AT_ONCE = 1 << 28  # logits that exist at a time, float32: 1 GiB


def nats_of(model: Any, h: Tensor, targets: Tensor) -> Tensor:
    """Nats of `targets` [..] under hidden states h [.., D]; softmax over the whole vocabulary."""
    flat, ys = h.reshape(-1, h.size(-1)), targets.reshape(-1)
    size = max(1, NATS_AT_ONCE // model.tok_emb.size(0))
    parts = [
        F.cross_entropy(model.logits(x), y, reduction="none")
        for x, y in zip(flat.split(size), ys.split(size), strict=True)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(targets.shape)


@torch.no_grad()
def audit_scorer(name: str, weights: Mapping[str, Tensor], run: Any, audit: Any) -> None:
    """Does the scorer's result differ from the plain protocol's over the last sequences of this rank's
    share?"""
    load_weights(run.model, weights)
    t, changed = run.seq_len, 0
    for start in range(max(0, run.num_positions - 4 * t), run.num_positions, t):
        ids, targets = run.windows([start], min(t, run.num_positions - start))
        plain = run.nats(run.hidden(ids), targets)[0].cpu()
        noise = 0.0  # on a GPU a batch of another size has other last bits
        if ids.is_cuda:
            beside = run.nats(run.model.hidden(ids.expand(3, -1)), targets.expand(3, -1))[0].cpu()
            noise = 8 * float((beside - plain).abs().max())
        mine = run.written[start : start + len(plain)].bool()
        changed += int((run.nll[start : start + len(plain)] - plain)[mine].abs().gt(1e-6 + noise).sum())
    audit.changed(name, "score", run.world.max(float(changed)) > 0)
