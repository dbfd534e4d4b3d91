"""lora_ttt's adapters by document; after 1/n … n/n of `prefix_docs` documents, SGD on the base with them.

At each of the `phases` boundaries every rank stops; one pass of SGD over the documents that are scored by
then moves the model's own weights: pieces of at most S tokens of one document, `global_batch_seqs` a step
over all ranks, lr·½(1 + cos(πc/(C−1))) in the c-th of C chunks of `global_chunk_tokens`; then fresh adapters
go on. `order = "stream"`: documents come in the split's order. `order = "longest"` (published): longest
first, which fills batches well; left to right then holds inside documents, and a document's place in the
queue, so what was trained before it, depends on where documents end. `warm_a` keeps A from the row's last
document; then scores depend on how documents fall on rows and ranks.

Source: PR #1610, #1626, #1855 (1.0725 -> 1.0599; three phases 0.0008 better than one). Whether a phase
trains on all documents so far or on the new ones only is not told in words; here it is all. Cost:
lora_ttt's, and 3 passes over the prefix a phase. Legal: each score is fixed before an update that used it.
Conflicts: it is the scorer; another one cannot be on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from techniques._adapt import (
    ADAPTER_ENV,
    ADAPTER_SPACE,
    AdapterConfig,
    adapter_passes,
    check_adapters,
    with_defaults,
)
from techniques._lora import Document, DocumentScorer, batches_of, documents, padded_windows
from techniques._ttt import finish_step, parts_of, set_rates
from techniques.base import Choice, Cost, Float, Int, Legality, Shape, Technique, Verdict, setting

PHASED_SOURCES = {
    "stream": "scores are fixed before any update that used them: #461, merged #1855",
    "longest": "merged #1855; left to right inside documents, whose order looks at their lengths",
}
PHASED_NUMBERS = dict(rank=80, alpha=144.0, beta1=0.0, beta2=0.99, eps=1e-8, weight_decay=0.5, chunk=48)


class PhasedScorer:
    """Leaves the model with the weights of the last phase."""

    def __init__(self, config: Any):
        self.config = config
        self.facts: dict[str, Any] = {"phases": 0, "global_steps": 0, "adapter_steps": 0}

    def score(self, run: Any) -> None:
        c, queue = self.config, documents(run.tokens)
        if c.order == "longest":
            queue.sort(key=lambda d: -d[1])  # ties in the stream's order
        self.facts["documents"] = len(queue)
        done = 0
        cuts = [min(len(queue), c.prefix_docs * (k + 1) // c.phases) for k in range(c.phases)]
        for cut in [n for n in sorted({*cuts, len(queue)}) if n]:
            scorer = DocumentScorer(run, c)
            batches = batches_of(queue[done:cut], c.batch_docs)
            for batch in batches[run.world.rank :: run.world.size]:
                scorer.score(batch)
            self.facts["adapter_steps"] += scorer.steps
            done = cut
            if cut in cuts and cut < len(queue):
                self.train_on(run, queue[:cut])
                self.facts["phases"] += 1

    def train_on(self, run: Any, found: Sequence[Document]) -> None:
        """SGD on the base weights, with documents that have their scores."""
        c, trained = self.config, list(run.model.parameters())
        pieces = [
            (begin + at, min(run.seq_len, length - at))
            for begin, length in found
            for at in range(0, length, run.seq_len)
        ]
        optimizer = torch.optim.SGD(trained, lr=c.global_lr, momentum=c.global_momentum)
        steps, chunks, seen = batches_of(pieces, c.global_batch_seqs), [], 0
        for step in steps:
            chunks.append(seen // c.global_chunk_tokens)
            seen += sum(length for _, length in step)
        for _ in range(c.global_epochs):
            for step, chunk in zip(steps, chunks, strict=True):
                set_rates(optimizer, c.global_lr, chunk / max(1, chunks[-1]))
                self.step(run, step, optimizer, trained)
                self.facts["global_steps"] += 1
        optimizer.zero_grad(set_to_none=True)

    def step(
        self, run: Any, pieces: Sequence[Document], optimizer: torch.optim.Optimizer, trained: list[Any]
    ) -> None:
        """Mean nats of all the pieces' tokens; the ranks share the pieces."""
        mine = run.world.my_range(len(pieces))
        total = sum(length for _, length in pieces)
        optimizer.zero_grad(set_to_none=True)
        for part in parts_of(mine, run.seq_len):
            own = [pieces[k] for k in part]
            ids, targets = padded_windows(run, own, max(length for _, length in own))
            lengths = torch.tensor([[length] for _, length in own], device=ids.device)
            inside = torch.arange(ids.size(1), device=ids.device) < lengths
            with torch.enable_grad():
                nats = run.nats(run.model.hidden(ids), targets)
                ((nats * inside).sum() / total).backward()
        finish_step(run.world, optimizer, trained, self.config.global_grad_clip)


class PhasedTtt(Technique):
    """Adapters for each document, and the base weights trained in phases on the documents already scored."""

    name = "phased_ttt"
    reference = "PR #1610, #1626, #1855"
    legality = Legality(Verdict.LEGAL, PHASED_SOURCES["stream"])
    stage = "evaluate"
    null = {"lr": 0.0, "global_lr": 0.0}
    space = {
        **ADAPTER_SPACE,
        "order": Choice(("stream", "longest")),
        "prefix_docs": Int(16, 5000, log=True),
        "phases": Int(1, 4),
        "global_lr": Float(1e-4, 1e-2, log=True),
    }
    env = {
        "PHASED_TTT_ENABLED": "on",
        "TTT_ENABLED": "on",
        "PHASED_TTT_PREFIX_DOCS": "prefix_docs",
        "PHASED_TTT_NUM_PHASES": "phases",
        **ADAPTER_ENV,
        "TTT_WEIGHT_DECAY": "weight_decay",
        "TTT_WARM_START_A": "warm_a",
        "GLOBAL_TTT_LR": "global_lr",
        "GLOBAL_TTT_MOMENTUM": "global_momentum",
        "GLOBAL_TTT_EPOCHS": "global_epochs",
        "GLOBAL_TTT_CHUNK_TOKENS": "global_chunk_tokens",
        "GLOBAL_TTT_BATCH_SEQS": "global_batch_seqs",
        "GLOBAL_TTT_GRAD_CLIP": "global_grad_clip",
    }
    smoke = {
        "rank": 4,
        "alpha": 8.0,
        "lr": 0.01,
        "chunk": 16,
        "batch_docs": 1,
        "prefix_docs": 4,
        "phases": 2,
        "global_lr": 0.02,
        "warm_a": False,
    }

    @dataclass(frozen=True)
    class Config(with_defaults(AdapterConfig, **PHASED_NUMBERS, k=True, o=True, mlp=True)):
        lr: float = setting(1e-4, "the adapters' AdamW rate", low=0.0, high=1.0)
        warm_a: bool = setting(False, "a document begins with the A of the row's last one")
        order: str = setting("stream", "the documents' order", choices=("stream", "longest"))
        prefix_docs: int = setting(2500, "documents before the last phase's end", low=1, high=1 << 30)
        phases: int = setting(1, "boundaries within the prefix", low=1, high=64)
        global_lr: float = setting(0.001, "the base weights' SGD rate at the first chunk", low=0.0, high=1.0)
        global_momentum: float = setting(0.9, "SGD momentum", low=0.0, high=0.999)
        global_epochs: int = setting(1, "passes over the documents at each boundary", low=1, high=100)
        global_chunk_tokens: int = setting(32_768, "tokens that share a rate", low=1)
        global_batch_seqs: int = setting(32, "pieces per SGD step, over all ranks", low=1, high=65_536)
        global_grad_clip: float = setting(1.0, "global gradient norm at most", low=1e-6)

    def check(self, shape: Shape) -> None:
        c = self.config
        check_adapters(self.name, c, shape)
        if c.phases > c.prefix_docs:
            raise ValueError(
                f"`phased_ttt.phases` must be at most prefix_docs, but got {c.phases} and {c.prefix_docs}."
            )

    @property
    def scores_by_document(self) -> bool:
        return self.config.order != "stream"

    def verdict(self) -> Legality:
        return Legality(Verdict.LEGAL, PHASED_SOURCES[self.config.order])

    def cost(self, shape: Shape) -> Cost:
        return Cost(eval_passes=adapter_passes(self.config, shape))

    def scorer(self) -> PhasedScorer:
        return PhasedScorer(self.config)
