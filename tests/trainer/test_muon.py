"""Muon's settings arrive in the optimiser, and do there what their names say."""

import pytest
import torch

import train_gpt
from techniques.config import Config, resolve
from techniques.optimizer.muon_details import MuonDetails

SINGULAR = (0.68, 1.13)  # of 5 steps on a full-rank random 256 × 512 matrix, to two digits


def muon_step(weight: torch.Tensor, grads: list[torch.Tensor], **settings) -> torch.Tensor:
    """`weight` after one Muon step per gradient, lr 0.1, at the full momentum."""
    hyper = MuonDetails(MuonDetails.Config(**settings)).hyper(train_gpt.Hyper())
    p = torch.nn.Parameter(weight.clone())
    muon = train_gpt.Muon([p], 0.1, hyper, train_gpt.World(Config(device="cpu")), torch.float32)
    for g in grads:
        p.grad = g.clone()
        muon.step()
    return p.detach()


def test_singular_values_of_an_update():
    g = torch.randn(1, 256, 512, generator=torch.Generator().manual_seed(0))
    low, high = SINGULAR
    values = torch.linalg.svdvals(train_gpt.newton_schulz(g, 5))
    assert low <= round(float(values.min()), 2) and round(float(values.max()), 2) <= high
    few = torch.linalg.svdvals(train_gpt.newton_schulz(g, 1))
    assert float(few.max() / few.min()) > float(values.max() / values.min())  # fewer steps: less orthogonal


def test_tall_and_wide_agree():
    g = torch.randn(1, 24, 40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(train_gpt.newton_schulz(g.mT, 5), train_gpt.newton_schulz(g, 5).mT)


@pytest.mark.parametrize("ns_steps", [3, 5])
def test_two_steps_equal_the_formula(ns_steps: int):
    torch.manual_seed(0)
    w, g1, g2 = torch.randn(3, 24, 8).double()
    got = muon_step(w, [g1, g2], momentum=0.9, ns_steps=ns_steps, weight_decay=0.3).double()
    buf, expected = torch.zeros_like(w), w
    for g in (g1, g2):
        buf = 0.9 * buf + g
        update = g + 0.9 * buf
        x = (update / update.norm()).T  # wide
        for _ in range(ns_steps):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        expected = expected * (1 - 0.1 * 0.3) - 0.1 * (24 / 8) ** 0.5 * x.T
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_weight_decay_is_the_exact_factor():
    torch.manual_seed(0)
    w, g = torch.randn(8, 16), torch.randn(8, 16)
    plain, decayed = muon_step(w, [g]), muon_step(w, [g], weight_decay=0.4)
    torch.testing.assert_close(plain - decayed, w * 0.1 * 0.4)


def test_the_defaults_are_the_baselines_and_every_field_arrives():
    assert MuonDetails().hyper(train_gpt.Hyper()) == train_gpt.Hyper()
    config = MuonDetails.Config(0.99, 0.92, 1500, 6, 0.04, 0.03, 0.02)
    assert MuonDetails(config).hyper(train_gpt.Hyper(beta2=0.99)) == train_gpt.Hyper(
        muon_momentum=0.99,
        muon_momentum_start=0.92,
        muon_momentum_warmup_steps=1500,
        muon_ns_steps=6,
        muon_weight_decay=0.04,
        adam_weight_decay=0.03,
        embed_weight_decay=0.02,
        beta2=0.99,
    )


def test_adam_decays_reach_their_groups():
    tiny = {"num_layers": 1, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1, "vocab_size": 32}
    tiny |= {"train_seq_len": 16, "train_batch_tokens": 128, "device": "cpu", "muon_details": True}
    tiny |= {"muon_details.adam_weight_decay": 0.03, "muon_details.embed_weight_decay": 0.02}
    resolved = resolve({"file": tiny}, {"muon_details": MuonDetails})
    model, hyper = (
        train_gpt.build_model(resolved),
        resolved.techniques["muon_details"].hyper(train_gpt.Hyper()),
    )
    world = train_gpt.World(resolved.config)
    optimizers = train_gpt.build_optimizers(model, resolved.config, hyper, world)
    decays = {p.role: g["weight_decay"] for g in optimizers.adam.param_groups for p in g["params"]}
    assert decays == {"embed": 0.02, "scalar": 0.03}
