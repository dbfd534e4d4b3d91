"""logits + b, b [V] fitted by SGD to each window's context before its last tokens are scored: ETLB.

Windows are those of sliding_window. `steps` SGD steps at `lr` on the mean nats of the window's context, its
positions that earlier windows scored, under the capped logits plus b; then b is clipped to ±`clip`, and the
window's last tokens are scored with it. b goes on from window to window within each of `shares` equal runs of
them, and begins each at 0 (published: a run is what a rank gets of eight); window 0 has no context. Source:
PR #1399 (1.0917 to 1.0898 beside pre-quantisation TTT; lr 0.05, 5 steps, clip 3); the scripts of #1493 and
#1514 have it, off. Illegal by the compliance lists of #1493 and later ("No ETLB", beside SLOT); no maintainer
has ruled. b is fitted to context alone, but a window's logits and targets are all read before its fit, the
scored ones too: nothing but the code's good will keeps them out of it, and the detector of score-first fires.
Cost: the sliding windows one by one, and `steps` passes over the context's logits. Conflicts: it is the
scorer; another one cannot be on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from techniques._windows import Window, window_tensors, windows, write_window_nats
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
        self.facts = {"windows": 0, "adapted": 0}
        for share in run.world.my_range(c.shares):
            self.score_share(
                run, found[len(found) * share // c.shares : len(found) * (share + 1) // c.shares]
            )

    def score_share(self, run: Any, found: Sequence[Window]) -> None:
        """One run of windows, from no bias on."""
        bias = torch.zeros(run.model.tok_emb.size(0), device=run.world.device)
        for window in found:
            with torch.no_grad():
                ids, targets, context = window_tensors(run, [window])
                logits = run.model.logits(run.hidden(ids))[0].float()
            if context:
                bias = fit_bias(bias, logits[:context], targets[0, :context], self.config)
                self.facts["adapted"] += 1
            nats = F.cross_entropy(logits[context:] + bias, targets[0, context:], reduction="none")
            write_window_nats(run, [window], nats[None])
            self.facts["windows"] += 1


class Etlb(Technique):
    """A bias of the logits, fitted to each window's context as the evaluation goes."""

    name = "etlb"
    reference = "PR #1399; off in #1493, #1514"
    legality = Legality(
        Verdict.ILLEGAL, "by the compliance lists of #1493 and later, beside SLOT; no maintainer has ruled"
    )
    stage = "evaluate"
    null = {"lr": 0.0}
    space = {
        "lr": Float(1e-3, 0.5, log=True),
        "steps": Int(1, 16),
        "clip": Float(0.5, 6.0),
        "stride": Int(16, "eval_seq_len", log=True),
    }
    env = {"ETLB_ENABLED": "on", "ETLB_LR": "lr", "ETLB_STEPS": "steps", "ETLB_CLIP": "clip"}
    smoke = {"lr": 0.5, "stride": 16}

    @dataclass(frozen=True)
    class Config:
        lr: float = setting(0.05, "SGD rate of the bias", low=0.0, high=10.0)
        steps: int = setting(5, "SGD steps a window", low=1, high=256)
        clip: float = setting(3.0, "largest bias of a token, nats", low=1e-3, high=100.0)
        shares: int = setting(8, "runs of windows that begin without a bias", low=1, high=65_536)
        stride: int = setting(64, "tokens between window starts", low=1, high=65_536)

    def check(self, shape: Shape) -> None:
        if self.config.stride > shape.eval_seq_len:
            raise ValueError(
                f"`etlb.stride` must be at most the evaluation sequence, but got {self.config.stride} and "
                f"{shape.eval_seq_len}."
            )

    def cost(self, shape: Shape) -> Cost:
        c, s = self.config, shape.eval_seq_len
        head = shape.vocab_size / shape.flops_per_token()  # a bias has one element a logit
        return Cost(eval_passes=s / c.stride - 1.0 + 8.0 * c.steps * head * (s / c.stride - 1.0))

    def scorer(self) -> EtlbScorer:
        return EtlbScorer(self.config)
