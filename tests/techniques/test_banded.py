"""The banded pass against one forward of the whole stream under a dense mask."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention

import train_gpt
from techniques import catalog
from techniques.base import Shape
from techniques.evaluation.banded import (
    BAND_HALO,
    Banded,
    BandedScorer,
    banded_blocked,
    banded_flex,
    in_band,
)
from tests.techniques.evaluation_rig import on_ranks, single, tiny_model, tiny_tokens

SHAPE = Shape(64, 2, 32, 4, 2, 2.0, 32, 32)
REACHING = {  # what reaches back without attention, runs a layer twice, or looks at a row's length
    "smear_gate": True,
    "bigram_hash": True,
    "canon": True,
    "value_residual": True,
    "partial_rope": True,
    "partial_rope.fraction": 0.5,
    "xsa": True,
    "depth_recurrence": True,
    "num_layers": 4,
}


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    """SDPA under the whole mask."""
    at = torch.arange(k.size(1))
    mask = in_band(at[-q.size(1) :, None], at, window)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)


FORMS = [
    (1, 0, 1),
    (1, 0, 7),
    (200, 0, 1),
    (200, 0, 64),
    (130, 70, 100),
    (64, 1, 7),
    (5, 300, 64),
    (64, 9, 999),
]


@pytest.mark.parametrize(("t", "before", "window"), FORMS)
def test_kernels_equal_the_dense_mask(t: int, before: int, window: int):
    generator = torch.Generator().manual_seed(t)
    sizes = [(2, t, 4, 8), (2, t + before, 2, 8), (2, t + before, 2, 8)]
    q, k, v = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    wanted = dense(q, k, v, window)
    torch.testing.assert_close(banded_blocked(q, k, v, window), wanted)
    q, k, v = (x.float() for x in (q, k, v))
    found = banded_flex(q, k, v, window, flex_attention)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)


def whole_stream(known, settings, tokens: torch.Tensor, window: int) -> torch.Tensor:
    """Nats of a forward of all positions at once, its attention under the dense mask."""
    model = tiny_model(known, **settings, eval_seq_len=tokens.numel())
    for block in model.blocks:
        block.attn.attend.parts = [lambda q, k, v, _ctx: dense(q, k, v, window)]
    with torch.no_grad():
        logits = model.logits(model.hidden(tokens[None, :-1].long()))[0].float()
    return F.cross_entropy(logits, tokens[1:].long(), reduction="none")


def banded_run(tokens: torch.Tensor, known=None, settings=None, world=None, **config: Any):
    model = tiny_model(known, **(settings or {}))
    before = [part for b in model.blocks for s in (b.attn.rope, b.attn.attend) for part in s.parts]
    run = train_gpt.Evaluation(model, tokens, 32, 4, world or single())
    BandedScorer(Banded.Config(**config)).score(run)
    after = [part for b in model.blocks for s in (b.attn.rope, b.attn.attend) for part in s.parts]
    assert after == before and model.blocks[0].attn.rope.parts[-1].cos.size(0) == 32
    return run


@pytest.mark.parametrize("reaching", [False, True])
@pytest.mark.parametrize(("window", "row_tokens"), [(16, 50), (32, 300), (3, 7), (16, 2)])
def test_equals_the_whole_stream_under_the_mask(reaching: bool, window: int, row_tokens: int):
    tokens = tiny_tokens(230)
    known, settings = (catalog.runtime(), REACHING) if reaching else (None, {})
    run = banded_run(tokens, known, settings, window=window, row_tokens=row_tokens, shares=1)
    assert bool(run.written.all())
    wanted = whole_stream(known, settings, tokens, window)
    torch.testing.assert_close(run.nll, wanted, atol=2e-5, rtol=1e-5)


def test_it_remembers_more_than_a_window():
    tokens = tiny_tokens(200)
    changed = tokens.clone()
    changed[100] = (tokens[100] + 5) % 64
    moved = (banded_run(tokens, window=16).nll - banded_run(changed, window=16).nll).abs() > 0
    assert not bool(moved[:99].any())
    reach = int(moved.nonzero()[-1]) - 100
    assert 16 <= reach <= 2 * 15  # two layers


def test_shares_and_ranks():
    tokens = tiny_tokens(8 * 16 * 3 + 5)
    whole = banded_run(tokens, window=16, shares=3, row_tokens=40)
    assert bool(whole.written.all()) and whole.num_positions == 389
    for size in (2, 4):
        runs = on_ranks(
            size, lambda world: banded_run(tokens, world=world, window=16, shares=3, row_tokens=40)
        )
        assert (torch.stack([r.written for r in runs]).sum(0) == 1).all()
        assert torch.equal(torch.stack([r.nll for r in runs]).sum(0), whole.nll)
    alone = banded_run(tokens, window=16, shares=1, row_tokens=40).nll
    begin = 389 // 3
    same = (whole.nll - alone).abs() < 1e-4
    assert bool(same[:begin].all()) and bool(same[begin + 15 : 2 * begin].all())  # behind two layers' reach


def test_declares_cost_and_limits():
    short = Banded(Banded.Config(window=16, row_tokens=4 * BAND_HALO))
    assert short.cost(SHAPE).eval_passes == pytest.approx(0.25)  # half of the sequence: the plain pass's
    assert Banded().cost(SHAPE).eval_passes > 0
    with pytest.raises(ValueError, match="at most the evaluation sequence"):
        Banded(Banded.Config(window=33)).check(SHAPE)
    with pytest.raises(ValueError, match="varlen_attention"):
        train_gpt.settings_from(["--banded", "--varlen_attention"], {}, catalog.runtime(), has_gpu=False)


def test_without_carry_it_is_the_plain_protocol():
    tokens = tiny_tokens(128)
    plain = train_gpt.Evaluation(tiny_model(), tokens, 32, 1, single())
    train_gpt.PlainScorer().score(plain)
    found = banded_run(tokens, carry=False, shares=1).nll
    torch.testing.assert_close(found, plain.nll, atol=2e-5, rtol=1e-5)
    assert not torch.equal(banded_run(tokens, shares=1).nll[32:], plain.nll[32:])
