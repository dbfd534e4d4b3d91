"""MuonEq-R: blind to the rows' scale, and one with the formula written out."""

import torch

import train_gpt
from techniques.base import Technique
from techniques.config import Config, resolve
from techniques.optimizer.muoneq_r import MuonEqR
from techniques.optimizer.polar_express import PolarExpress, polar_express
from trainer.seams import Seams


def step(grad: torch.Tensor, momentum: float = 0.0) -> torch.Tensor:
    """What one Muon step at rate 1 takes off a zero matrix."""
    p = torch.nn.Parameter(torch.zeros_like(grad))
    hyper = train_gpt.Hyper(muon_momentum=momentum)
    muon = train_gpt.Muon([p], 1.0, hyper, train_gpt.World(Config(device="cpu")), torch.float32)
    muon.orthogonalize = MuonEqR().orthogonalize(muon.orthogonalize)
    p.grad = grad
    muon.step()
    return -p.detach()


def test_a_positive_factor_on_a_row_changes_nothing_without_momentum():
    torch.manual_seed(0)
    g, factors = torch.randn(12, 20), torch.rand(12, 1) * 10 + 0.1
    torch.testing.assert_close(step(g * factors), step(g), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(step(g * -factors), step(g))


def test_equals_newton_schulz_of_the_normed_rows():
    torch.manual_seed(0)
    g = torch.randn(20, 12)
    g[3] = 0.0  # a dead row stays zero
    rows = torch.stack([row / max(float(row.norm()), 1e-7) for row in g])
    expected = (20 / 12) ** 0.5 * train_gpt.newton_schulz(rows[None], 5)[0]
    got = step(g)
    torch.testing.assert_close(got, expected)
    assert not got[3].any() and bool(got.isfinite().all())


def test_it_wraps_polar_express():
    known: dict[str, type[Technique]] = {"polar_express": PolarExpress, "muoneq_r": MuonEqR}
    seams = Seams(resolve({"file": dict.fromkeys(known, True)}, known))
    both = train_gpt.orthogonalizer(seams)
    g = torch.randn(1, 8, 12)
    torch.testing.assert_close(both(g, 5), polar_express(g / g.norm(dim=-1, keepdim=True), 5))
    assert all(found["verdict"] == "active" for found in seams.audit.report().values())
