"""Adam's constants and the factors by role arrive in the groups, and act there."""

import pytest
import torch

import train_gpt
from techniques.config import Config, resolve
from techniques.optimizer.adam_groups import MULT_ROLES, AdamGroups
from tests.techniques.evaluation_rig import TINY, tiny_model

HYPER = train_gpt.Hyper()


def optimizers(hyper: train_gpt.Hyper):
    config = resolve({"file": TINY}, {}).config
    return train_gpt.build_optimizers(tiny_model(), config, hyper, train_gpt.World(config))


def test_the_defaults_are_the_baselines():
    assert AdamGroups().hyper(HYPER) == HYPER


def test_constants_and_rates_reach_their_groups():
    config = AdamGroups.Config(beta1=0.8, beta2=0.99, eps=1e-10, mlp_lr_mult=0.5, scalar_lr_mult=3.0)
    adam, muon = optimizers(AdamGroups(config).hyper(HYPER))
    assert all(g["betas"] == (0.8, 0.99) and g["eps"] == 1e-10 for g in adam.param_groups)
    rates = {g["params"][0].role: g["base_lr"] for g in adam.param_groups}
    assert rates == {"embed": 0.05, "scalar": pytest.approx(0.12)}
    by_role = {p.role: g["base_lr"] for g in muon.param_groups for p in g["params"]}
    assert by_role == {"attn": 0.04, "mlp": 0.02} and len(muon.param_groups) == 2
    assert len(optimizers(HYPER).matrices.param_groups) == 1


@pytest.mark.parametrize("role", MULT_ROLES)
def test_every_role_has_its_factor(role: str):
    changed = AdamGroups(AdamGroups.Config(**{f"{role}_lr_mult": 2.0})).hyper(HYPER)
    assert changed.lr_mults == ((role, 2.0),) and role in train_gpt.ROUTES


def test_one_step_equals_adam_written_out():
    config = AdamGroups.Config(beta1=0.5, beta2=0.7, eps=1e-3)
    hyper = AdamGroups(config).hyper(HYPER)
    model = tiny_model()
    resolved = resolve({"file": TINY}, {}).config
    found = train_gpt.build_optimizers(model, resolved, hyper, train_gpt.World(Config(device="cpu")))
    p = model.tok_emb
    start, g = p.detach().double().clone(), torch.randn_like(p)
    m = v = torch.zeros_like(start)
    for t in (1, 2):
        p.grad = g.clone() * t
        found.adam.step()
        m, v = 0.5 * m + 0.5 * g * t, 0.7 * v + 0.3 * (g * t) ** 2
        start -= 0.05 * (m / (1 - 0.5**t)) / ((v / (1 - 0.7**t)).sqrt() + 1e-3)
    torch.testing.assert_close(p.detach().double(), start, atol=1e-5, rtol=1e-5)
