"""Orthogonal first weights: which matrices, what gain, whose random numbers."""

import pytest
import torch

import train_gpt
from techniques.block.ortho_init import OrthoInit
from techniques.config import resolve
from techniques.embedding.bigram_hash import BigramHash

TINY = {"num_layers": 2, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 64}
TINY |= {"train_seq_len": 16, "train_batch_tokens": 128, "compute_dtype": "float32", "device": "cpu"}
ON = {"ortho_init": True, "ortho_init.min_side": 16}
BIGRAM = {"bigram_hash": True, "bigram_hash.rows": 61, "bigram_hash.dim": 16}


def build(**settings) -> dict[str, torch.nn.Parameter]:
    known = {"ortho_init": OrthoInit, "bigram_hash": BigramHash}
    return dict(train_gpt.build_model(resolve({"file": TINY | settings}, known)).named_parameters())


def gram(w: torch.Tensor) -> torch.Tensor:
    """The smaller of WWᵀ and WᵀW."""
    return w @ w.T if w.size(0) <= w.size(1) else w.T @ w


def test_matrices_are_orthogonal_and_all_else_is_as_it_was():
    plain, ortho = build(**BIGRAM), build(**BIGRAM, **ON)
    touched = [n for n in plain if not torch.equal(plain[n], ortho[n])]
    assert len(touched) == 2 * 4 + 1 and "embed_in.bigram_hash.proj" in touched
    assert all(
        n.rsplit(".", 2)[-2] in ("c_q", "c_k", "c_v", "fc") for n in touched if n.startswith("blocks.")
    )
    for name in touched:
        w = ortho[name].double()
        torch.testing.assert_close(gram(w), torch.eye(min(w.shape), dtype=torch.float64), atol=1e-4, rtol=0)
    zero = [p for n, p in ortho.items() if n.endswith(".proj.weight")]
    assert len(zero) == 4 and not any(p.any() for p in zero)  # so every block starts as the identity


def test_proj_scale_concerns_the_techniques_projections_alone():
    one, scaled = build(**BIGRAM, **ON), build(**BIGRAM, **ON, **{"ortho_init.proj_scale": "1/sqrt(2L)"})
    for name in one:
        factor = 0.5 if name == "embed_in.bigram_hash.proj" else 1.0  # 1/√(2·2)
        torch.testing.assert_close(scaled[name], one[name] * factor)


def test_another_technique_changes_nobody_elses_weights_and_the_seed_changes_all():
    alone, beside, reseeded = build(**ON), build(**ON, **BIGRAM), build(**ON, seed=7)
    assert all(torch.equal(p, beside[n]) for n, p in alone.items())
    assert not torch.equal(alone["blocks.0.attn.c_q.weight"], reseeded["blocks.0.attn.c_q.weight"])
    assert not torch.equal(alone["blocks.0.attn.c_q.weight"], alone["blocks.1.attn.c_q.weight"])


def test_small_matrices_are_left_alone_and_matching_nothing_is_an_error():
    ortho = build(ortho_init=True, **{"ortho_init.min_side": 32})
    plain = build()
    changed = {n.rsplit(".", 2)[-2] for n in plain if not torch.equal(plain[n], ortho[n])}
    assert changed == {"c_q", "fc"}  # keys and values are 16 × 32
    with pytest.raises(ValueError, match="at most model_dim"):
        build(ortho_init=True)
