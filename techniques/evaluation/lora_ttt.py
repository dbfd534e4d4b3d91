"""Each document has low-rank adapters of its own: score a chunk, then one AdamW step; reset at the next.

y + (α/r)·B(Ax) beside Wq, Wv of every block and the head (`qv`, `head`), and, where they are on, Wk (`k`),
the attention and the MLP (`o`, `mlp`: model_dim to model_dim on the normed input). A ~ U(±1/√in), the same
for every document; B = 0. A document is scored in chunks of `chunk` positions, each behind at most `context`
tokens of the same document; the step on a chunk follows its scores, so no score has seen a later token.

Source: rec:LoRA_TTT (rank 8 on q, v, head; Adam 0.01; -0.003 of its -0.037, the rest from documents alone
and shorter strides); #1530 (rank 96, lr 1e-4, chunk 32, k, o and mlp too, β 0/0.999, wd 0.5: about -0.008
nats over strided evaluation). Forms that count the last of several epochs (#525, #713) are illegal and not
built. Cost: a forward and a backward pass of up to `context` tokens per chunk. Legal: score-first within a
document. Conflicts: it is the scorer; another one cannot be on. What we saw: studies/LOG.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from techniques._lora import DocumentScorer, batches_of, documents
from techniques.base import Choice, Cost, Float, Int, Legality, Shape, Technique, Verdict, setting

DOCUMENT_TOKENS = 1240  # mean length of the challenge's validation documents at 1024 tokens of vocabulary


class LoraTttScorer:
    """Ranks take contiguous shares of the batches; the model's own weights stay as they are."""

    def __init__(self, config: Any):
        self.config, self.facts = config, {}

    def score(self, run: Any) -> None:
        found = documents(run.tokens)
        batches = batches_of(found, self.config.batch_docs)
        mine = run.world.my_range(len(batches))
        scorer = DocumentScorer(run, self.config)
        for batch in batches[mine.start : mine.stop]:
            scorer.score(batch)
        self.facts = {
            "documents": len(found),
            "steps": scorer.steps,
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
    space = {
        "rank": Int(4, 128, log=True),
        "alpha": Float(4.0, 256.0, log=True),
        "lr": Float(1e-5, 3e-2, log=True),
        "chunk": Choice((16, 32, 48, 64, 128, 256)),
        "weight_decay": Float(0.0, 2.0),
        "mlp": Choice((False, True)),
    }
    env = {
        "TTT_LORA_RANK": "rank",
        "TTT_LORA_ALPHA": "alpha",
        "TTT_LORA_LR": "lr",
        "TTT_LORA_WD": "weight_decay",
        "TTT_BETA1": "beta1",
        "TTT_BETA2": "beta2",
        "TTT_CHUNK_SIZE": "chunk",
        "TTT_BATCH_SIZE": "batch_docs",
        "TTT_EVAL_SEQ_LEN": "context",
        "TTT_K_LORA": "k",
        "TTT_O_LORA": "o",
        "TTT_MLP_LORA": "mlp",
        "TTT_ENABLED": "on",
    }
    smoke = {"rank": 4, "alpha": 8.0, "lr": 0.02, "chunk": 16, "batch_docs": 1, "k": True, "o": True}

    @dataclass(frozen=True)
    class Config:
        rank: int = setting(8, "r, rank of each adapter", low=1, high=1024)
        alpha: float = setting(8.0, "α, the adapters' output is times α/r", low=0.0, high=10_000.0)
        lr: float = setting(0.01, "AdamW rate", low=0.0, high=1.0)
        beta1: float = setting(0.9, "AdamW's first moment", low=0.0, high=0.9999)
        beta2: float = setting(0.95, "AdamW's second moment", low=0.0, high=0.9999)
        eps: float = setting(1e-10, "AdamW's epsilon", low=0.0, high=1.0)
        weight_decay: float = setting(0.0, "AdamW's, decoupled", low=0.0, high=10.0)
        chunk: int = setting(256, "positions that are scored before a step", low=1, high=65_536)
        context: int = setting(
            0, "tokens of the document before a chunk's end; 0: eval_seq_len", low=0, high=65_536
        )
        batch_docs: int = setting(64, "documents side by side on a rank", low=1, high=65_536)
        qv: bool = setting(True, "adapters beside Wq and Wv")
        k: bool = setting(False, "adapters beside Wk")
        o: bool = setting(False, "adapters beside the attention")
        mlp: bool = setting(False, "adapters beside the MLP")
        head: bool = setting(True, "an adapter beside the head")
        warm_a: bool = setting(False, "a document begins with the A of the row's last one (score-first, too)")

    def check(self, shape: Shape) -> None:
        c, longest = self.config, max(shape.seq_len, shape.eval_seq_len)
        context = c.context or shape.eval_seq_len
        if not c.chunk <= context <= longest:
            raise ValueError(
                f"`lora_ttt` needs chunk <= context <= the longest sequence of the model, but got {c.chunk}, "
                f"{context} and {longest}. Lower lora_ttt.chunk, or set lora_ttt.context within."
            )
        if not (c.qv or c.k or c.o or c.mlp or c.head):
            raise ValueError("`lora_ttt` adapts nothing: turn on one of qv, k, o, mlp, head.")

    @property
    def isolates_documents(self) -> bool:
        return not self.config.warm_a

    def cost(self, shape: Shape) -> Cost:
        c = self.config
        behind = min(c.context or shape.eval_seq_len, DOCUMENT_TOKENS) / 2.0
        return Cost(eval_passes=3.0 * (behind + c.chunk) / c.chunk - 1.0)

    def scorer(self) -> LoraTttScorer:
        return LoraTttScorer(self.config)
