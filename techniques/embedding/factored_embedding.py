"""x = Up·E[t] with E [V,e] and Up [D,e], e < D; logits = E·(Down·h), Down [e,D]: a table of fewer numbers.

Tied, table and head share E; Up and Down are matrices of their own (role `matrix`: Muon). Untied, the head
keeps its width and Up alone is added. Bytes go from V·D to V·e + 2·D·e. Source: EMBEDDING_DIM of #1218 and
its descendants up to April (equal to the width, so off, in all of their records; there the norm stands
between E and Up, here behind Up); ALBERT, arXiv:1909.11942. Reported catastrophic at 1,024 tokens of
vocabulary (+0.053 BPB), where the table is a fifteenth of the model; nobody has published a run at 8,192,
where it is an eighth. A negative entry, to save the next one the try. Cost: two projections of the stream.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from techniques.base import Int, Shape, Technique, setting


class FactoredEmbedding(Technique):
    """A narrow embedding table behind projections."""

    name = "factored_embedding"
    reference = "arXiv:1909.11942; PR #1218 (EMBEDDING_DIM, off)"
    space = {"dim": Int(32, 256, step=32)}
    env = {"EMBEDDING_DIM": "dim"}
    smoke = {"dim": 16}

    @dataclass(frozen=True)
    class Config:
        dim: int = setting(128, "e, width of the table", low=1, high=8192)

    def check(self, shape: Shape) -> None:
        if self.config.dim >= shape.model_dim:
            raise ValueError(
                f"`factored_embedding.dim` must be less than model_dim, but got {self.config.dim} and "
                f"{shape.model_dim}. Choose a narrower table, or turn factored_embedding off."
            )

    def sizes(self, shape: Shape) -> Shape:
        return dataclasses.replace(shape, embed_dim=self.config.dim)
