"""The taper's shape, and that the optimisers decay by it."""

import itertools

import pytest
import torch

import train_gpt
from techniques.config import Config
from techniques.schedule.wd_taper import WdTaper

HYPER = train_gpt.Hyper(muon_weight_decay=0.1, adam_weight_decay=0.02, embed_weight_decay=0.08)


def test_full_then_linear_to_the_end():
    taper = WdTaper(WdTaper.Config(start=0.7, end_mult=0.5))
    assert [taper.factor(f) for f in (0.0, 0.5, 0.7)] == [1.0, 1.0, 1.0]
    assert taper.factor(0.85) == pytest.approx(0.75) and taper.factor(1.0) == pytest.approx(0.5)
    falling = [taper.factor(i / 100) for i in range(101)]
    assert falling == sorted(falling, reverse=True)
    assert max(a - b for a, b in itertools.pairwise(falling)) < 0.02  # no jump


def test_every_decay_tapers_and_nothing_else():
    at = WdTaper(WdTaper.Config(0.0, 0.0)).hyper_at(HYPER, 0.5)
    assert (at.muon_weight_decay, at.adam_weight_decay, at.embed_weight_decay) == (0.05, 0.01, 0.04)
    assert at.beta2 == HYPER.beta2 and at.muon_momentum == HYPER.muon_momentum
    assert WdTaper().hyper_at(train_gpt.Hyper(), 0.9) == train_gpt.Hyper()  # nothing to taper


def test_muon_reads_the_groups_decay():
    w = torch.randn(4, 6)
    p = torch.nn.Parameter(w.clone())
    muon = train_gpt.Muon([p], 0.5, HYPER, train_gpt.World(Config(device="cpu")), torch.float32)
    muon.param_groups[0]["weight_decay"] = 0.03  # what train_step writes there
    p.grad = torch.zeros_like(p)
    muon.step()
    torch.testing.assert_close(p.detach(), w * (1 - 0.5 * 0.03))
