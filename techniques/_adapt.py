"""What techniques that train while they score declare alike: settings, limits, costs. Needs no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from techniques.base import Choice, Float, Int, Shape, Space, setting

DOCUMENT_TOKENS = 1240  # mean length of the challenge's validation documents at 1024 tokens of vocabulary
ADAPTER_SPACE: Space = {
    "rank": Int(4, 128, log=True),
    "alpha": Float(4.0, 256.0, log=True),
    "lr": Float(1e-5, 1e-2, log=True),
    "chunk": Choice((16, 32, 48, 64, 128, 256)),
    "weight_decay": Float(0.0, 2.0),
}
ADAPTER_ENV = {
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
    "TTT_Q_LORA": "q",
    "TTT_V_LORA": "v",
    "TTT_LOCAL_LR_MULT": "lr_mult",
    "TTT_GRAD_STEPS": "grad_steps",
    "TTT_SHORT_SCORE_FIRST_STEPS": "short_chunks",
}


@dataclass(frozen=True)
class AdapterConfig:
    """Settings of low-rank adapters of a document each (techniques/_lora.py)."""

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
    tail: str = setting(
        "prefix",
        "where a document's last, partial chunk ends for its context: a whole chunk's end, or the document's",
        choices=("prefix", "document"),
    )
    batch_docs: int = setting(64, "documents side by side on a rank", low=1, high=65_536)
    qv: bool = setting(True, "adapters beside Wq and Wv")
    k: bool = setting(False, "adapters beside Wk")
    o: bool = setting(False, "adapters beside the attention")
    mlp: bool = setting(False, "adapters beside the MLP")
    head: bool = setting(True, "an adapter beside the head")
    q: bool = setting(True, "of `qv`: the one beside Wq (off: #1953)")
    v: bool = setting(True, "of `qv`: the one beside Wv (off: #1953)")
    lr_mult: float = setting(1.0, "factor on lr (0.75 in #1953)", low=0.0, high=100.0)
    grad_steps: int = setting(1, "steps on a chunk behind its scores", low=1, high=64)
    short_chunks: str = setting(
        "", 'chunks of batches of short documents: "256:16,2000:32" is 16 up to 256 tokens (#2014)'
    )
    warm_a: bool = setting(False, "a document begins with the A of the row's last one (score-first, too)")


@dataclass(frozen=True)
class TiltedConfig(AdapterConfig):
    """And of a tilt of what they predict (techniques/_windows.py)."""

    tilt: bool = setting(False, "tilt what is written towards hints by counts")
    tilt_scope: str = setting("document", "where occurrences count", choices=("document", "stream"))
    tilt_order: int = setting(16, "order − 1 tokens of context must be the same", low=2, high=64)
    tilt_threshold: float = setting(0.8, "share that the hint must have of what followed", low=1e-6, high=1.0)
    tilt_beta: float = setting(2.625, "β, log-odds of the hint, nats", low=0.0, high=20.0)
    tilt_fade: float = setting(0.0, "γ, β is times (1 − q)^γ", low=0.0, high=8.0)


TILT_ENV = {
    "NGRAM_TILT_ENABLED": "tilt",
    "TOKEN_ORDER": "tilt_order",
    "TOKEN_THRESHOLD": "tilt_threshold",
    "TOKEN_BOOST": "tilt_beta",
    "ADAPTIVE_BOOST_GAMMA": "tilt_fade",
    "ADAPTIVE_NGRAM_GAMMA": "tilt_fade",
}


def with_defaults(cls: type[AdapterConfig], **defaults: Any) -> Any:
    """The same settings with other defaults, as a dataclass."""
    found = [(f, defaults.get(f.name, f.default)) for f in dataclasses.fields(cls)]
    fields = [(f.name, f.type, dataclasses.field(default=d, metadata=f.metadata)) for f, d in found]
    return dataclasses.make_dataclass(cls.__name__, fields, frozen=True)


def check_adapters(name: str, c: AdapterConfig, shape: Shape) -> None:
    """ValueError unless the chunks fit the model's sequences and something adapts."""
    longest, context = max(shape.seq_len, shape.eval_seq_len), c.context or shape.eval_seq_len
    if not c.chunk <= context <= longest:
        raise ValueError(
            f"`{name}` needs chunk <= context <= the longest sequence of the model, but got {c.chunk}, "
            f"{context} and {longest}. Lower {name}.chunk, or set {name}.context within."
        )
    if not ((c.qv and (c.q or c.v)) or c.k or c.o or c.mlp or c.head):
        raise ValueError(f"`{name}` adapts nothing: turn on one of qv, k, o, mlp, head.")
    if any(chunk > context for _, chunk in short_chunks(name, c.short_chunks)):
        raise ValueError(f"`{name}.short_chunks` must be at most the context, {context} tokens.")


def short_chunks(name: str, text: str) -> list[tuple[int, int]]:
    """(longest document, chunk) of each stage, the shortest first. ValueError for another form."""
    pairs = [word.split(":") for word in text.split(",") if word.strip()]
    if any(len(p) != 2 or not all(n.strip().isdecimal() and int(n) > 0 for n in p) for p in pairs):
        raise ValueError(
            f'`{name}.short_chunks` takes lengths and chunks as in "256:16,2000:32", but got {text!r}.'
        )
    return sorted((int(longest), int(chunk)) for longest, chunk in pairs)


def chunk_of(c: AdapterConfig, longest: int) -> int:
    """Positions that are scored before a step, of a batch whose longest document has `longest` tokens."""
    return next((chunk for limit, chunk in short_chunks("", c.short_chunks) if longest <= limit), c.chunk)


def adapter_passes(c: AdapterConfig, shape: Shape) -> float:
    """Forward passes a token beside the plain evaluation's one; a backward is two."""
    behind = min(c.context or shape.eval_seq_len, DOCUMENT_TOKENS) / 2.0
    return (3.0 * c.grad_steps) * (behind + c.chunk) / c.chunk - 1.0


def check_sliding(name: str, c: Any, shape: Shape) -> None:
    """ValueError unless the windows fit the model and `freeze_blocks` its depth."""
    if c.stride > shape.eval_seq_len:
        raise ValueError(
            f"`{name}.stride` must be at most the evaluation sequence, but got {c.stride} and "
            f"{shape.eval_seq_len}."
        )
    if c.freeze_blocks > shape.num_layers:
        raise ValueError(
            f"`{name}.freeze_blocks` must be at most num_layers, but got {c.freeze_blocks} and "
            f"{shape.num_layers}."
        )


def sliding_passes(c: Any, shape: Shape) -> float:
    """Of sliding windows and `epochs` of training, beside the plain evaluation's one pass."""
    return shape.eval_seq_len / c.stride - 1.0 + 3.0 * c.epochs
