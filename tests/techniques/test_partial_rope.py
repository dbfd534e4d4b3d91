"""Partial RoPE against complex multiplication, pair by pair."""

import dataclasses

import pytest
import torch

import train_gpt
from techniques.attention.partial_rope import PartialRope, PartialRotary, partial_rope_base
from techniques.base import Choice, Shape

SHAPE = Shape(64, 3, 32, 2, 1, 2.0, 12, 12)  # head_dim 16


def slow(x: torch.Tensor, dims: int, base: float, first: int = 0) -> torch.Tensor:
    """x [B,T,H,Dh] at positions `first`, `first` + 1, …"""
    out = x.clone()
    for t in range(x.size(1)):
        for i in range(dims // 2):
            turn = torch.polar(
                torch.tensor(1.0, dtype=torch.float64),
                torch.tensor(-(first + t) * base ** (-2 * i / dims)).double(),
            )
            pair = torch.complex(x[:, t, :, i], x[:, t, :, i + dims // 2]) * turn
            out[:, t, :, i], out[:, t, :, i + dims // 2] = pair.real, pair.imag
    return out


def heads(length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    shape = (2, length, 2, 16)
    return torch.randn(shape, dtype=torch.float64), torch.randn(2, length, 1, 16, dtype=torch.float64)


@pytest.mark.parametrize("dims", [4, 6, 16])
def test_equals_the_loop_keeps_pair_norms_and_the_other_dims(dims: int):
    q, k = heads()
    out_q, out_k = PartialRotary(SHAPE, dims, 0)(q, k)
    torch.testing.assert_close(out_q, slow(q, dims, 10_000.0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out_k, slow(k, dims, 10_000.0), atol=1e-5, rtol=1e-5)
    assert torch.equal(out_q[..., dims:], q[..., dims:])
    pairs = [x[..., :dims].unflatten(-1, (2, -1)).norm(dim=-2) for x in (q, out_q)]
    torch.testing.assert_close(*pairs, atol=1e-5, rtol=1e-5)


def test_scores_depend_on_the_distance_only():
    q, k = heads()
    out_q, out_k = PartialRotary(SHAPE, 8, 0)(q[:, :1].expand(q.shape), k[:, :1].expand(k.shape))
    scores = torch.einsum("bthd,bskd->bhts", out_q, out_k)
    for lag in range(5):
        diagonal = scores.diagonal(-lag, dim1=-2, dim2=-1)
        torch.testing.assert_close(diagonal, diagonal[..., :1].expand(diagonal.shape), atol=1e-5, rtol=1e-5)


def test_all_dims_without_ntk_is_the_baseline():
    q, k = heads()
    technique = PartialRope(PartialRope.Config(fraction=1.0, train_len=0))
    for mine, plain in zip(technique.rope(SHAPE)(q, k), train_gpt.Rotary(SHAPE)(q, k), strict=True):
        assert torch.equal(mine, plain)


def test_ntk_bases_are_the_published_ones():
    assert round(partial_rope_base(1e4, 16, 2048, 1024)) == 22_082
    assert round(partial_rope_base(1e4, 64, 2048, 1024)) == 20_452
    assert partial_rope_base(1e4, 16, 1024, 1024) == partial_rope_base(1e4, 16, 4096, 0) == 1e4


def test_a_longer_evaluation_has_its_own_base_and_leaves_training_lengths_alone():
    shape = dataclasses.replace(SHAPE, seq_len=1100, eval_seq_len=2048)
    rotary, (q, k) = PartialRotary(shape, 4, 1024), heads(2048)
    short, long = rotary(q[:, :1100], k[:, :1100])[0], rotary(q, k)[0]
    at = slice(1099, 1100)
    for out, length in ((short, 1100), (long, 2048)):
        base = partial_rope_base(1e4, 4, length, 1024)
        torch.testing.assert_close(out[:, at], slow(q[:, at], 4, base, 1099), atol=1e-4, rtol=1e-4)
    assert torch.equal(rotary(q[:, :5], k[:, :5])[0], short[:, :5])


def test_fraction_fits_every_head_dim_and_bad_dims_are_refused():
    choice = PartialRope.space["fraction"]
    assert isinstance(choice, Choice)
    for head_dim in range(4, 130, 2):
        shape = dataclasses.replace(SHAPE, model_dim=2 * head_dim)
        for fraction in (*choice.options, 1.0):
            technique = PartialRope(PartialRope.Config(fraction=fraction))
            technique.check(shape)
            assert technique.dims(shape) % 2 == 0 and 4 <= technique.dims(shape) <= head_dim
    assert (
        PartialRope(PartialRope.Config(fraction=0.25)).dims(dataclasses.replace(SHAPE, model_dim=128)) == 16
    )
    for dims in (5, 18):
        with pytest.raises(ValueError, match="must be even"):
            PartialRope(PartialRope.Config(dims=dims)).check(SHAPE)
    with pytest.raises(ValueError, match="Set one of them"):
        PartialRope(PartialRope.Config(dims=8, fraction=0.5)).check(SHAPE)
