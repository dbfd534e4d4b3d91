"""What every scorer shares: nats of hidden states, one compiled forward, and whether the score is another.

Evaluation is forwards without gradient, mostly of full batches: one graph of one size, compiled on random
tokens while the clock that counts stands still. Batches of fewer rows are padded to it (below the last row,
where nothing can see it) and cut again. Shorter rows, the split's end, go through the model as it is: what a
technique does may depend on a row's length (partial_rope picks its table by it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.parameters import load_weights
from trainer.world import compiled_or_eager, compiles

NATS_AT_ONCE = 1 << 28  # logits that exist at a time, float32: 1 GiB
COMPILE_FROM_TOKENS = 1 << 25  # forward tokens of a rank's evaluation from which on compiling it pays


def nats_of(model: Any, h: Tensor, targets: Tensor) -> Tensor:
    """Nats of `targets` [..] under hidden states h [.., D]; softmax over the whole vocabulary."""
    flat, ys = h.reshape(-1, h.size(-1)), targets.reshape(-1)
    size = max(1, NATS_AT_ONCE // model.tok_emb.size(0))
    parts = [
        F.cross_entropy(model.logits(x), y, reduction="none")
        for x, y in zip(flat.split(size), ys.split(size), strict=True)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(targets.shape)


class CompiledHidden:
    """ids [b,t] -> hidden [b,t,D], compiled for b ≤ rows and t = length."""

    def __init__(self, model: Any, rows: int, length: int):
        self.model, self.rows, self.length = model, rows, length
        self.graph: Any = torch.compile(model.hidden, dynamic=False, fullgraph=True)

    @torch.no_grad()
    def warm_up(self, vocab_size: int) -> None:
        """Compile, on tokens that come from no data."""
        device = self.model.tok_emb.device
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(vocab_size, (self.rows, self.length), generator=generator)
        self(ids.to(device)).sum().item()

    def __call__(self, ids: Tensor) -> Tensor:
        rows, length = ids.shape
        if torch.is_grad_enabled() or rows > self.rows or length != self.length:
            return self.model.hidden(ids)
        return self.graph(F.pad(ids, (0, 0, 0, self.rows - rows)))[:rows]


def compile_scoring(run: Any, resolved: Any, scorer: str | None, clock: Any) -> None:
    """Compile the forward of an evaluation that is long enough, while the clock stands still: like the
    warm-up of the training it reads no data."""
    c = resolved.config
    passes = 1.0 + (resolved.costs[scorer].eval_passes if scorer in resolved.costs else 0.0)
    if not compiles(c, run.world) or passes * run.num_positions < COMPILE_FROM_TOKENS * run.world.size:
        return
    run.hidden = compiled = CompiledHidden(run.model, run.batch_seqs, run.seq_len)
    compiled.graph = compiled_or_eager(compiled.graph, run.model.hidden, c, run.world)
    clock.stop()
    compiled.warm_up(c.vocab_size)
    clock.start()


@torch.no_grad()
def score_changed(weights: Mapping[str, Tensor], run: Any) -> bool:
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
    return run.world.max(float(changed)) > 0
