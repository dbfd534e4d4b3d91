"""θ ← AdamW(θ, all validation tokens, `epochs` times), then the sliding windows: training on the test set.

lr_t = lr·½(1 + cos(πt/T)), T steps over all epochs; the MLP's second matrices at `proj_mult`, its first at
`fc_mult` of it. A step takes `batch_seqs` sequences side by side, split over the ranks (published: 32 of each
of 8 ranks' own eighth); gradients are summed, then clipped: any world takes the same step.

Source: PR #518 (1.1271 claimed without it -> 1.0814 with 30 epochs, 1.0622 with 50). Illegal: it has been
trained on what it scores, the whole split, several times (issue #402; README FAQ). It is here so that such a
record can be run, labelled. Cost: 3·epochs passes a token beside the sliding windows'. Conflicts: it is
the scorer; another one cannot be on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from techniques._adapt import check_sliding, sliding_passes
from techniques._ttt import element_counts, sequence_step, set_rates, standing_still, ttt_parameters
from techniques._windows import score_sliding, windows
from techniques.base import Cost, Float, Int, Legality, Shape, Technique, Verdict, setting


def pre_eval_groups(model: Any, trained: list[torch.nn.Parameter], config: Any) -> list[dict[str, Any]]:
    """AdamW's groups: each parameter of `trained` once, with its multiple of the rate in `mult`."""
    mults = {id(p): config.proj_mult for block in model.blocks for p in block.mlp.proj.parameters()}
    mults |= {id(p): config.fc_mult for block in model.blocks for p in block.mlp.fc.parameters()}
    of = {mult: [p for p in trained if mults.get(id(p), 1.0) == mult] for mult in {1.0, *mults.values()}}
    return [{"params": params, "mult": mult} for mult, params in sorted(of.items()) if params]


class PreEvalScorer:
    """Leaves the model with the trained weights. `facts` says what was trained."""

    def __init__(self, config: Any):
        self.config = config
        self.facts: dict[str, Any] = {"steps": 0, "adapted": 0}

    def score(self, run: Any) -> None:
        c = self.config
        trained, frozen = ttt_parameters(run.model, c.freeze_blocks, "pre_eval_ttt")
        self.facts |= element_counts(trained, frozen)
        groups = pre_eval_groups(run.model, trained, c)
        optimizer = torch.optim.AdamW(groups, lr=c.lr, weight_decay=c.weight_decay)
        with standing_still(frozen):
            self.train(run, optimizer, trained)
        optimizer.zero_grad(set_to_none=True)
        found = windows(run.num_positions, run.seq_len, c.stride)
        mine = run.world.my_range(len(found))
        score_sliding(run, found[mine.start : mine.stop], run.batch_seqs)

    def train(self, run: Any, optimizer: Any, trained: list[torch.nn.Parameter]) -> None:
        """Every whole sequence, `epochs` times, in the stream's order."""
        c = self.config
        starts = [k * run.seq_len for k in range(run.num_positions // run.seq_len)]
        total = c.epochs * math.ceil(len(starts) / c.batch_seqs)
        for _ in range(c.epochs):
            for at in range(0, len(starts), c.batch_seqs):
                set_rates(optimizer, c.lr, self.facts["steps"] / total)
                sequence_step(run, starts[at : at + c.batch_seqs], optimizer, trained, c.grad_clip)
                self.facts["steps"] += 1
                self.facts["adapted"] += 1


class PreEvalTtt(Technique):
    """Trains on every validation token before the first one is scored. Illegal, and labelled so."""

    name = "pre_eval_ttt"
    reference = "PR #518"
    legality = Legality(Verdict.ILLEGAL, "trains on the validation tokens, then scores them: issue #402")
    stage = "evaluate"
    null = {"lr": 0.0}
    space = {
        "epochs": Int(1, 50, log=True),
        "lr": Float(1e-5, 2e-3, log=True),
        "proj_mult": Float(0.5, 5.0, log=True),
        "fc_mult": Float(0.2, 2.0, log=True),
        "freeze_blocks": Int(0, "num_layers"),
        "stride": Int(16, "eval_seq_len", log=True),
    }
    env = {
        "TTT_ENABLED": "on",
        "TTT_EPOCHS": "epochs",
        "TTT_LR": "lr",
        "TTT_FREEZE_BLOCKS": "freeze_blocks",
        "TTT_GRAD_CLIP": "grad_clip",
    }
    smoke = {"epochs": 2, "lr": 0.005, "batch_seqs": 4, "stride": 32}

    @dataclass(frozen=True)
    class Config:
        epochs: int = setting(50, "passes over all validation tokens", low=1, high=1000)
        lr: float = setting(5e-4, "AdamW rate at the first step", low=0.0, high=1.0)
        proj_mult: float = setting(3.0, "the MLP's second matrices, in lr", low=0.0, high=100.0)
        fc_mult: float = setting(0.5, "the MLP's first matrices, in lr", low=0.0, high=100.0)
        weight_decay: float = setting(0.0, "AdamW's, decoupled", low=0.0, high=10.0)
        freeze_blocks: int = setting(0, "first blocks that stand still", low=0, high=64)
        batch_seqs: int = setting(256, "training sequences per step, over all ranks", low=1, high=65_536)
        grad_clip: float = setting(1.0, "global gradient norm at most", low=1e-6)
        stride: int = setting(64, "tokens between window starts", low=1, high=65_536)

    def check(self, shape: Shape) -> None:
        check_sliding(self.name, self.config, shape)

    def cost(self, shape: Shape) -> Cost:
        return Cost(eval_passes=sliding_passes(self.config, shape))

    def scorer(self) -> PreEvalScorer:
        return PreEvalScorer(self.config)
