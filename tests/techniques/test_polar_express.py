"""Polar Express against the formula in float64, and against what Muon's own triple leaves."""

import torch

import train_gpt
from techniques.config import resolve
from techniques.optimizer.polar_express import POLAR_TRIPLES, PolarExpress, polar_express
from trainer.seams import Seams


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_singular_values_lie_closer_to_one_than_muons():
    g = random(1, 256, 512)
    values = torch.linalg.svdvals(polar_express(g, 5))
    assert round(float(values.min()), 2) >= 0.86 and round(float(values.max()), 2) <= 1.14
    plain = torch.linalg.svdvals(train_gpt.newton_schulz(g, 5))
    assert float(values.min()) > float(plain.min()) + 0.1


def test_equals_the_polynomial_of_each_singular_value():
    g = random(6, 10).double()
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    s = s / g.norm()
    for a, b, c in (*POLAR_TRIPLES, POLAR_TRIPLES[-1], POLAR_TRIPLES[-1]):  # the last one is repeated
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(polar_express(g[None], 7)[0], u @ torch.diag(s) @ v, atol=1e-5, rtol=1e-5)


def test_tall_and_wide_agree_and_a_batch_is_one_by_one():
    g = random(3, 24, 40)
    torch.testing.assert_close(polar_express(g.mT, 5), polar_express(g, 5).mT)
    torch.testing.assert_close(polar_express(g, 5)[1:2], polar_express(g[1:2], 5))


def test_it_stands_in_muons_place():
    known = {"polar_express": PolarExpress}
    seams = Seams(resolve({"file": {"polar_express": True}}, known))
    assert train_gpt.orthogonalizer(seams) is polar_express
    assert train_gpt.orthogonalizer(Seams(resolve({}, known))) is train_gpt.newton_schulz
    assert seams.audit.report()["polar_express"]["verdict"] == "active"
