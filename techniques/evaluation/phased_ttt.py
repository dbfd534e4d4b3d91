"""lora_ttt's adapters by document; after 1/n … n/n of `prefix_docs` documents, SGD on the base with them.

Documents make batches of `batch_docs`, each scored whole. `order = "stream"`: in the split's order. `order =
"longest"` (published): sorted by length and cut from the shortest on; the longest batch comes first, and it
alone may not be full. Left to right then holds inside documents, and a document's place in the queue, so what
was trained before it, depends on where documents end. The first batch behind which `boundary` documents have
scores ends a phase (one phase a batch at most): every rank stops, and SGD moves the model's own weights. It
takes the first `boundary` of all scored documents in their sorted order, each with the BOS behind it, as one
stream; of the stream's C chunks of `global_chunk_tokens` all but the last, of a chunk whole sequences of S
tokens, `global_batch_seqs` a step over all ranks, `global_epochs` times; lr·½(1 + cos(πc/(C−1))) in chunk c.
Attention stays within pieces of one document, at most S tokens each. Then fresh adapters go on. Fewer tokens
than two chunks train nothing: the fact `phases` counts those that did. `warm_a` keeps A from the row's last
document; then scores depend on how documents fall on rows and ranks. `warmup_chunks` w: the rate of the first
w chunks rises linearly from `warmup_lr` instead, and the cosine is over the others. With `respect_documents`
off a chunk's sequences stand as the stream has them, S tokens each. `tilt`: what is written is tilted towards
a hint by counts (token_tilt's `threshold` and `fade`; the steps see the plain nats). `tilt_scope =
"document"` counts within the document; "stream" (published) counts over all that stands before in the split,
also in documents that are scored later in the queue. `asym_cap`: c₊·tanh(z/c₊) above 0 and c₋·tanh(z/c₋)
below cap the logits of the evaluation; both begin at c, and the phases' SGD moves them like any weight
(AsymLogit). Training knows one c, so nothing is stored.

Source: PR #1610, #1626, #1855 (1.0725 -> 1.0599; three phases 0.0008 better than one); no q, v and 0.75·lr
in #1953, short chunks in #2014, the tilt in #2018, #2130 and #2140, AsymLogit in #1923. There ranks take
batches from a queue, and which ones are under way when a boundary is reached depends on time; here a phase
ends behind the same batch whatever the ranks. There a rank's share of a chunk is one packed row: it may begin
inside a document, and a later piece of a document takes smear_gate's token from the piece before.
Cost: lora_ttt's, and 3 passes over the prefix a phase. Legal: a score is fixed before an update that used it.
Conflicts: it is the scorer; another one cannot be on.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from techniques._adapt import (
    ADAPTER_ENV,
    ADAPTER_SPACE,
    TILT_ENV,
    TiltedConfig,
    adapter_passes,
    check_adapters,
    with_defaults,
)
from techniques._lora import (
    LORA_BOS_ID,
    Document,
    DocumentScorer,
    documents,
    phases_of,
    queue_of,
    rows_of,
    stream_of,
)
from techniques._ttt import finish_step, parts_of, rate_at, set_rates, split_cap
from techniques._windows import tilt_by_counts
from techniques.base import (
    Choice,
    Cost,
    Float,
    Int,
    Legality,
    Shape,
    Technique,
    Verdict,
    setting,
)

PHASED_SOURCES = {
    "stream": "scores are fixed before any update that used them: #461, merged #1855",
    "longest": "merged #1855; left to right inside documents, whose order looks at their lengths",
    "tilted": "hints count documents that the queue scores later; #2135 stands on the last board (#2146), "
    "but no ruling speaks of two orders in one score",
}
PHASED_NUMBERS = dict(rank=80, alpha=144.0, beta1=0.0, beta2=0.99, eps=1e-10, weight_decay=0.5, chunk=48)


class PhasedScorer:
    """Leaves the model with the weights of the last phase."""

    def __init__(self, config: Any):
        self.config = config
        self.facts: dict[str, Any] = {"phases": 0, "global_steps": 0, "adapter_steps": 0}

    def score(self, run: Any) -> None:
        with split_cap(run.model) if self.config.asym_cap else nullcontext():
            self.score_phases(run)

    def score_phases(self, run: Any) -> None:
        c = self.config
        found = documents(run.bounds(LORA_BOS_ID))
        tilt = tilt_by_counts(run, found, c) if c.tilt else None
        self.facts |= {"hinted": int((tilt.hints >= 0).sum())} if tilt else {}
        self.facts["documents"] = len(found)
        queue = queue_of(found, c.batch_docs, c.order)
        # how many documents there will be is known where their lengths are (published), and not in a stream
        prefix = c.prefix_docs if c.order == "stream" else min(c.prefix_docs, len(found))
        done = 0
        for end, boundary in [*phases_of(queue, prefix, c.phases), (len(queue), 0)]:
            scorer = DocumentScorer(run, c, tilt)
            for _, batch in queue[done:end][run.world.rank :: run.world.size]:
                scorer.score(batch)
            self.facts["adapter_steps"] += scorer.steps
            done = end
            scored = [document for _, batch in sorted(queue[:done]) for document in batch]
            self.facts["phases"] += self.train_on(run, scored[:boundary])
        self.facts["adapted"] = self.facts["adapter_steps"] + self.facts["global_steps"]

    def train_on(self, run: Any, found: Sequence[Document]) -> bool:
        """SGD on the base weights, with documents that have their scores. Whether there was a step."""
        c, trained, before = self.config, list(run.model.parameters()), self.facts["global_steps"]
        stream = stream_of(run, found)
        optimizer = torch.optim.SGD(trained, lr=c.global_lr, momentum=c.global_momentum)
        last = (stream.numel() - 2) // c.global_chunk_tokens  # the chunk that is not trained on
        sequences = c.global_chunk_tokens // run.seq_len
        for chunk in range(last):
            set_rates(optimizer, *rate_at(c, chunk, last))
            for at in list(range(0, sequences, c.global_batch_seqs)) * c.global_epochs:
                many = min(c.global_batch_seqs, sequences - at)
                begin = chunk * c.global_chunk_tokens + at * run.seq_len
                self.step(run, stream, (begin, begin + many * run.seq_len), optimizer)
                self.facts["global_steps"] += 1
        optimizer.zero_grad(set_to_none=True)
        return self.facts["global_steps"] > before

    def step(self, run: Any, stream: Tensor, span: tuple[int, int], optimizer: torch.optim.Optimizer) -> None:
        """Mean nats of the stream's positions begin … end - 1; the ranks share the documents' pieces."""
        whole = [(at, run.seq_len) for at in range(*span, run.seq_len)]
        pieces = rows_of(stream, *span, run.seq_len) if self.config.respect_documents else whole
        mine = run.world.my_range(len(pieces))
        optimizer.zero_grad(set_to_none=True)
        for part in parts_of(mine, run.seq_len):
            own = [stream[first : first + length + 1] for first, length in (pieces[k] for k in part)]
            width = max(len(piece) for piece in own)
            rows = torch.stack([torch.nn.functional.pad(piece, (0, width - len(piece))) for piece in own])
            lengths = torch.tensor([[len(piece) - 1] for piece in own], device=rows.device)
            inside = torch.arange(width - 1, device=rows.device) < lengths
            with torch.enable_grad():
                nats = run.nats(run.model.hidden(rows[:, :-1]), rows[:, 1:])
                ((nats * inside).sum() / (span[1] - span[0])).backward()
        trained = [p for group in optimizer.param_groups for p in group["params"]]
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
        "tilt": Choice((False, True)),
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
        "GLOBAL_TTT_WARMUP_CHUNKS": "warmup_chunks",
        "GLOBAL_TTT_WARMUP_START_LR": "warmup_lr",
        "GLOBAL_TTT_RESPECT_DOC_BOUNDARIES": "respect_documents",
        **TILT_ENV,
        "ASYM_LOGIT_RESCALE": "asym_cap",
    }
    smoke = {
        "rank": 4,
        "alpha": 8.0,
        "lr": 0.01,
        "chunk": 16,
        "batch_docs": 1,
        "prefix_docs": 20,
        "phases": 2,
        "global_lr": 0.02,
        "global_chunk_tokens": 64,
        "warm_a": False,
        "tilt_order": 2,
        "tilt_threshold": 0.01,
    }

    @dataclass(frozen=True)
    class Config(with_defaults(TiltedConfig, **PHASED_NUMBERS, k=True, o=True, mlp=True)):
        lr: float = setting(1e-4, "the adapters' AdamW rate", low=0.0, high=1.0)
        warm_a: bool = setting(False, "a document begins with the A of the row's last one")
        order: str = setting("stream", "the documents' order", choices=("stream", "longest"))
        prefix_docs: int = setting(2500, "documents before the last phase's end", low=1, high=1 << 30)
        phases: int = setting(1, "boundaries within the prefix", low=1, high=64)
        global_lr: float = setting(0.001, "the base weights' SGD rate at the first chunk", low=0.0, high=1.0)
        global_momentum: float = setting(0.9, "SGD momentum", low=0.0, high=0.999)
        global_epochs: int = setting(1, "steps on the same sequences of a chunk", low=1, high=100)
        global_chunk_tokens: int = setting(
            32_768, "tokens of the prefix that share a rate; the last so many train nothing", low=1
        )
        global_batch_seqs: int = setting(32, "sequences per SGD step, over all ranks", low=1, high=65_536)
        global_grad_clip: float = setting(1.0, "global gradient norm at most", low=1e-6)
        warmup_chunks: int = setting(0, "first chunks over which the SGD rate rises", low=0, high=1 << 20)
        warmup_lr: float = setting(0.0, "SGD rate at the first of them", low=0.0, high=1.0)
        respect_documents: bool = setting(True, "SGD's attention stays within documents")
        asym_cap: bool = setting(False, "two caps of the logits, which the phases learn")

    def check(self, shape: Shape) -> None:
        c = self.config
        check_adapters(self.name, c, shape)
        if c.phases > c.prefix_docs:
            raise ValueError(
                f"`phased_ttt.phases` must be at most prefix_docs, but got {c.phases} and {c.prefix_docs}."
            )
        if c.global_chunk_tokens < shape.eval_seq_len:
            raise ValueError(
                f"`phased_ttt.global_chunk_tokens` must hold a sequence of eval_seq_len, but got "
                f"{c.global_chunk_tokens} and {shape.eval_seq_len}."
            )

    @property
    def scores_by_document(self) -> bool:
        c = self.config
        return c.order != "stream" or c.tail != "prefix" or bool(c.short_chunks)

    def verdict(self) -> Legality:
        c = self.config
        if c.tilt and c.tilt_scope == "stream":
            return Legality(Verdict.CONTESTED, PHASED_SOURCES["tilted"])
        return Legality(Verdict.LEGAL, PHASED_SOURCES[c.order])

    def cost(self, shape: Shape) -> Cost:
        return Cost(eval_passes=adapter_passes(self.config, shape))

    def scorer(self) -> PhasedScorer:
        return PhasedScorer(self.config)
