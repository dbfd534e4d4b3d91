"""WᵀW = I or WWᵀ = I, gain 1, for every matrix with both sides ≥ `min_side` that did not start at zero.

Source: PR #162 and rec:smeargate; #414/#518/#549/#569/#1019/#1855. Matrices are the weights of roles attn,
mlp and matrix; zero-initialised output projections stay zero. `proj_scale` 1/sqrt(2L) is #414/#518/#569's
factor on ".proj" names: all of those but the techniques' own projections (role matrix: bigram_hash,
value_embedding) start at zero.
Each matrix draws from a generator of its own, so that another technique's matrices change nobody's first
weights.
Cost: none; some seconds of QR before training at 11×512. Identity at init: no. What we saw: studies/LOG.md,
"own_text, 200 trials on twelve public-domain books" and "laptop, 200 trials on the embedded corpus".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from techniques.base import Shape, Technique, setting

ORTHO_ROLES = ("attn", "mlp", "matrix")


class OrthoInit(Technique):
    """Orthogonal first weights."""

    name = "ortho_init"
    reference = "PR #162, #414, #549, #1019"
    smoke = {"min_side": 8}

    @dataclass(frozen=True)
    class Config:
        min_side: int = setting(64, "smallest side of a matrix that is made orthogonal", low=1, high=8192)
        proj_scale: str = setting(
            "1", "factor on the techniques' projections (role matrix)", choices=("1", "1/sqrt(2L)")
        )

    def check(self, shape: Shape) -> None:
        if self.config.min_side > shape.model_dim:  # the query matrix is model_dim × model_dim
            raise ValueError(
                f"`ortho_init.min_side` must be at most model_dim, else it touches nothing, but got "
                f"{self.config.min_side} and {shape.model_dim}. Use a smaller min_side."
            )

    def init(self, model: Any) -> None:
        seed = torch.initial_seed()
        proj_scale = 1.0 if self.config.proj_scale == "1" else (2 * len(model.blocks)) ** -0.5
        for name, p in model.named_parameters():
            if p.ndim != 2 or p.role not in ORTHO_ROLES or min(p.shape) < self.config.min_side or not p.any():
                continue
            own = hashlib.sha256(f"{seed} {name}".encode()).digest()[:6]
            generator = torch.Generator().manual_seed(int.from_bytes(own, "big"))
            gain = proj_scale if p.role == "matrix" else 1.0
            nn.init.orthogonal_(p, gain=gain, generator=generator)
