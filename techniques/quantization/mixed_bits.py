"""bits(w) = b[role of w]: q in ±(2^(b-1) - 1), b apart for attention, MLP, embedding, other matrices.

`embed_bits = 16` keeps the embedding (and a head) as float16: rec:FP16Embed of 18 March, FP16_EMBED_EXPORT
(0.007 to 0.0005 of quantisation loss, about half a megabyte at 1,024 tokens of vocabulary).

Source: mixed int5/int6/int8 of the 10- and 11-layer records (PR #414, #549, #606); int6 matrices with an int8
embedding are their default. Cost: none at run time; integers stay in int8 containers, the codec takes the
unused bits back (about 0.58 bytes per parameter at int6, 0.46 at int5). The field's MATRIX_BITS means
attention and MLP together and is not answered to: `matrix_bits` here is the matrices that techniques add.
What we saw: studies/LOG.md, "own_text, 200 trials on twelve public-domain books".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from techniques.base import Choice, Technique, setting

BIT_CHOICES = (4, 5, 6, 7, 8)
EMBED_CHOICES = (*BIT_CHOICES, 16)


class MixedBits(Technique):
    """Bits per weight by role: attention, MLP, embedding and head, other matrices."""

    name = "mixed_bits"
    reference = "PR #414, #549, #606 (int6 matrices, int8 embedding); #1204 (int5 and int6 by tensor)"
    stage = "quantize"
    space = {
        "attn_bits": Choice(BIT_CHOICES),
        "mlp_bits": Choice(BIT_CHOICES),
        "embed_bits": Choice(EMBED_CHOICES),
        "matrix_bits": Choice(BIT_CHOICES),
    }
    env = {"ATTN_BITS": "attn_bits", "MLP_BITS": "mlp_bits", "EMBED_BITS": "embed_bits"}
    unseen = ("matrix_bits",)  # only techniques add such matrices
    smoke = {"attn_bits": 6, "mlp_bits": 5}

    @dataclass(frozen=True)
    class Config:
        attn_bits: int = setting(6, "bits, attention matrices", choices=BIT_CHOICES)
        mlp_bits: int = setting(6, "bits, MLP matrices", choices=BIT_CHOICES)
        embed_bits: int = setting(8, "bits, embedding and head; 16: float16", choices=EMBED_CHOICES)
        matrix_bits: int = setting(6, "bits, matrices that techniques add", choices=BIT_CHOICES)

    def bits(self, role: str) -> int | None:
        c: Any = self.config
        table = {"attn": c.attn_bits, "mlp": c.mlp_bits, "embed": c.embed_bits, "head": c.embed_bits}
        return {**table, "matrix": c.matrix_bits}.get(role)
