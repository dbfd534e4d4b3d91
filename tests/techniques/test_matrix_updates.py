"""Centralised updates, rates by layer, cautious decay: Muon's step with the formulas written out."""

from typing import Any

import pytest
import torch

import train_gpt
from techniques.base import Hyper
from techniques.config import Config
from techniques.optimizer.cautious_decay import CautiousDecay
from techniques.optimizer.grad_centralize import GradCentralize
from techniques.optimizer.layer_rates import LayerRates
from tests.techniques.model_rig import settle
from trainer.muon import Muon, newton_schulz
from trainer.seams import Seams


@pytest.mark.parametrize(("axis", "dims"), [("input", (2,)), ("matrix", (1, 2))])
def test_the_mean_is_taken_off(axis: str, dims: tuple[int, ...]):
    g = torch.randn(3, 6, 10) + 2.0
    seen: list[torch.Tensor] = []
    technique = GradCentralize(GradCentralize.Config(axis=axis))
    technique.orthogonalize(lambda x, steps: seen.append(x) or newton_schulz(x, steps))(g, 5)
    assert float(seen[0].mean(dims).abs().max()) < 1e-6
    torch.testing.assert_close(seen[0], g - g.mean(dims, keepdim=True))


def optimizers(settings: dict[str, Any]) -> tuple[Any, Any]:
    run = settle(settings)
    model = train_gpt.build_model(run)
    hyper = Seams(run).chain("hyper", Hyper())
    return model, train_gpt.build_optimizers(model, run.config, hyper, train_gpt.World(Config(device="cpu")))


def test_early_and_late_layers_have_rates_of_their_own():
    rates = {"layer_rates": True, "layer_rates.early": 0.5, "layer_rates.late": 2.0, "layer_rates.split": 1}
    model, ours = optimizers(rates | {"matrix_lr": 0.1})
    names = {p: n for n, p in model.named_parameters()}
    got = {names[p]: g["base_lr"] for g in ours.matrices.param_groups for p in g["params"]}
    assert {n: 0.05 if n.startswith("blocks.0.") else 0.2 for n in got} == pytest.approx(got)
    _, plain = optimizers({"matrix_lr": 0.1})
    assert len(plain.matrices.param_groups) == 1 and [g["lr"] for g in plain.adam.param_groups] == [
        g["lr"] for g in ours.adam.param_groups
    ]
    with pytest.raises(ValueError, match="at most num_layers"):
        LayerRates(LayerRates.Config(split=9)).check(settle({}).shape())


@pytest.mark.parametrize("parallel", [False, True])
def test_only_what_agrees_decays(parallel: bool):
    torch.manual_seed(0)
    p, grad = torch.nn.Parameter(torch.randn(6, 10)), torch.randn(6, 10)
    hyper = CautiousDecay().hyper(Hyper(muon_momentum=0.0, muon_weight_decay=0.5))
    world, before = train_gpt.World(Config(device="cpu")), p.detach().clone()
    if parallel:
        from techniques.optimizer.parallel_muon import ParallelMuon as Kind
    else:
        Kind = Muon
    muon = Kind([p], 0.1, hyper, world, torch.float32)
    p.grad = grad.clone()
    muon.settle_gradients([p], 0.0)
    muon.param_groups[0]["momentum"] = 0.0
    muon.step()
    u = newton_schulz(grad[None], 5)[0]
    want = before * (1 - 0.1 * 0.5 * (u * before > 0)) - 0.1 * u
    torch.testing.assert_close(p.detach(), want, atol=1e-6, rtol=1e-5)
    assert 10 < int((u * before > 0).sum()) < 50
