"""Each document has low-rank adapters of its own: score a chunk, then one AdamW step; reset at the next.

y + (α/r)·B(Ax) beside Wq, Wv of every block and the head (`qv`, `head`), and, where they are on, Wk (`k`),
the attention and the MLP (`o`, `mlp`: model_dim to model_dim on the normed input). A ~ U(±1/√in), the same
for every document; B = 0. A document is scored in chunks of `chunk` positions, each behind at most `context`
tokens of the same document; the step on a chunk follows its scores, so no score has seen a later token. With
`tail` = document (published) the context of a document's last chunk is counted from the document's end: there
is more of it, but in documents longer than `context` it looks at where the document will end.

Source: rec:LoRA_TTT (rank 8 on q, v, head; Adam 0.01; -0.003 of its -0.037, the rest from documents alone
and shorter strides); #1530 (rank 96, lr 1e-4, chunk 32, k, o and mlp too, β 0/0.999, wd 0.5: about -0.008
nats over strided evaluation). Forms that count the last of several epochs (#525, #713) are illegal and not
built. Cost: a forward and a backward pass of up to `context` tokens per chunk. Legal: score-first within a
document. Conflicts: it is the scorer; another one cannot be on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from techniques._adapt import ADAPTER_ENV, ADAPTER_SPACE, AdapterConfig, adapter_passes, check_adapters
from techniques._lora import LORA_BOS_ID, DocumentScorer, batches_of, documents
from techniques.base import Choice, Cost, Float, Legality, Shape, Technique, Verdict


class LoraTttScorer:
    """Ranks take contiguous shares of the batches; the model's own weights stay as they are."""

    def __init__(self, config: Any):
        self.config, self.facts = config, {}

    def score(self, run: Any) -> None:
        found = documents(run.bounds(LORA_BOS_ID))
        batches = batches_of(found, self.config.batch_docs)
        mine = run.world.my_range(len(batches))
        scorer = DocumentScorer(run, self.config)
        for batch in batches[mine.start : mine.stop]:
            scorer.score(batch)
        self.facts = {
            "documents": len(found),
            "steps": scorer.steps,
            "adapted": scorer.steps,
            "adapter_elements": sum(p[0].numel() for p in scorer.adapters.parameters),
        }


class LoraTtt(Technique):
    """Test-time training of small adapters, one set a document, after each chunk's scores are fixed."""

    name = "lora_ttt"
    reference = "rec:LoRA_TTT; PR #1530"
    legality = Legality(
        Verdict.LEGAL, "scores are fixed before any update that used them: #461, #1530 merged"
    )
    stage = "evaluate"
    null = {"lr": 0.0}
    space = {**ADAPTER_SPACE, "lr": Float(1e-5, 3e-2, log=True), "mlp": Choice((False, True))}
    env = {**ADAPTER_ENV, "TTT_ENABLED": "on"}
    smoke = {"rank": 4, "alpha": 8.0, "lr": 0.02, "chunk": 16, "batch_docs": 1, "k": True, "o": True}
    batching = ("batch_docs",)

    @dataclass(frozen=True)
    class Config(AdapterConfig):
        """The adapters' settings, as they are."""

    def check(self, shape: Shape) -> None:
        check_adapters(self.name, self.config, shape)

    @property
    def isolates_documents(self) -> bool:
        return not (self.config.warm_a or self.config.short_chunks)

    @property
    def scores_by_document(self) -> bool:
        return self.config.tail != "prefix" or bool(self.config.short_chunks)

    def cost(self, shape: Shape) -> Cost:
        return Cost(eval_passes=adapter_passes(self.config, shape))

    def scorer(self) -> LoraTttScorer:
        return LoraTttScorer(self.config)
