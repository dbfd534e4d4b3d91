"""logits + b, b [V] fitted by SGD to each window's context before its last tokens are scored: ETLB.

Windows are those of sliding_window. `steps` SGD steps at `lr` on the mean nats of the window's context, its
positions that earlier windows scored, under the capped logits plus b; then b is clipped to ±`clip`, and the
window's last tokens are scored with it. b goes on from window to window (a rank's own: it begins at 0 on
each, so scores depend on the number of ranks); window 0 has no context. Source: PR #1399 (1.0917 to 1.0898
with pre-quantisation TTT, lr 0.05, 5 steps, clip 3); #1493's and #1514's scripts have it, off. Illegal by its
neighbours' lists ("No ETLB", beside SLOT, in #1493's and later compliance tables): b is fitted to tokens that
are scored already, and they are each fitted again in every window that they are context of; no maintainer has
ruled. It does keep to the strict prefix, as the detectors find: the label `contested` says so here, and the
record track refuses it. Cost: the sliding windows, and `steps` passes over the context's logits. Conflicts:
it is the scorer; another one cannot be on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from techniques._windows import window_tensors, windows, write_window_nats
from techniques.base import Cost, Float, Int, Legality, Shape, Technique, Verdict, setting


def fit_bias(bias: Tensor, logits: Tensor, targets: Tensor, config: Any) -> Tensor:
    """b [V] after SGD on the mean nats of targets [n] under logits [n,V] + b, clipped."""
    b = bias.clone().requires_grad_()
    optimizer = torch.optim.SGD([b], lr=config.lr)
    with torch.enable_grad():
        for _ in range(config.steps):
            optimizer.zero_grad()
            F.cross_entropy(logits + b, targets).backward()
            optimizer.step()
    return b.detach().clamp(-config.clip, config.clip)


class EtlbScorer:
    """The model's own weights stay as they are."""

    def __init__(self, config: Any):
        self.config, self.facts = config, {}

    def score(self, run: Any) -> None:
        c = self.config
        found = windows(run.num_positions, run.seq_len, c.stride)
        mine = run.world.my_range(len(found))
        bias = torch.zeros(run.model.tok_emb.size(0), device=run.world.device)
        fitted = 0
        for window in found[mine.start : mine.stop]:
            with torch.no_grad():
                ids, targets, context = window_tensors(run, [window])
                logits = run.model.logits(run.hidden(ids))[0].float()
            if context:
                bias = fit_bias(bias, logits[:context], targets[0, :context], c)
                fitted += 1
            nats = F.cross_entropy(logits[context:] + bias, targets[0, context:], reduction="none")
            write_window_nats(run, [window], nats[None])
        self.facts = {"windows": len(mine), "adapted": fitted}


class Etlb(Technique):
    """A bias of the logits, fitted to each window's context as the evaluation goes."""

    name = "etlb"
    reference = "PR #1399; off in #1493, #1514"
    legality = Legality(Verdict.CONTESTED, "illegal by the compliance lists of #1493 and later; no ruling")
    stage = "evaluate"
    null = {"lr": 0.0}
    space = {
        "lr": Float(1e-3, 0.5, log=True),
        "steps": Int(1, 16),
        "clip": Float(0.5, 6.0),
        "stride": Int(16, "eval_seq_len", log=True),
    }
    unseen = ("clip",)  # no bias gets so far in a short run
    env = {"ETLB_ENABLED": "on", "ETLB_LR": "lr", "ETLB_STEPS": "steps", "ETLB_CLIP": "clip"}
    smoke = {"lr": 0.5, "stride": 16}

    @dataclass(frozen=True)
    class Config:
        lr: float = setting(0.05, "SGD rate of the bias", low=0.0, high=10.0)
        steps: int = setting(5, "SGD steps a window", low=1, high=256)
        clip: float = setting(3.0, "largest bias of a token, nats", low=1e-3, high=100.0)
        stride: int = setting(64, "tokens between window starts", low=1, high=65_536)

    def check(self, shape: Shape) -> None:
        if self.config.stride > shape.eval_seq_len:
            raise ValueError(
                f"`etlb.stride` must be at most the evaluation sequence, but got {self.config.stride} and "
                f"{shape.eval_seq_len}."
            )

    @property
    def strict_prefix(self) -> bool:
        return True

    def cost(self, shape: Shape) -> Cost:
        c, s = self.config, shape.eval_seq_len
        head = shape.vocab_size / shape.flops_per_token()  # a bias has one element a logit
        return Cost(eval_passes=s / c.stride - 1.0 + 8.0 * c.steps * head * (s / c.stride - 1.0))

    def scorer(self) -> EtlbScorer:
        return EtlbScorer(self.config)
