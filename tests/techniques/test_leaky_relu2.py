"""Squared leaky ReLU against its definition, value by value."""

import pytest
import torch

import train_gpt
from techniques.base import Shape
from techniques.block.leaky_relu2 import LeakyRelu2, leaky_relu_squared

SHAPE = Shape(64, 3, 32, 4, 2, 2.0, 16, 16)


@pytest.mark.parametrize("slope", [0.0, 0.3, 0.5, 1.0])
def test_equals_the_definition_and_its_derivative(slope: float):
    z = torch.linspace(-3, 3, 61, dtype=torch.float64, requires_grad=True)
    out = LeakyRelu2(LeakyRelu2.Config(slope=slope)).activation(SHAPE, 0)(z)
    expected = [(max(v, 0.0) + slope * min(v, 0.0)) ** 2 for v in z.tolist()]
    torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64))
    assert (out >= 0).all()
    out.sum().backward()
    slopes = [2 * v if v > 0 else 2 * slope**2 * v for v in z.tolist()]
    torch.testing.assert_close(z.grad, torch.tensor(slopes, dtype=torch.float64))


def test_known_points():
    z = torch.tensor([-2.0, 0.0, 2.0])
    assert torch.equal(leaky_relu_squared(z, 0.5), torch.tensor([1.0, 0.0, 4.0]))
    assert torch.equal(leaky_relu_squared(z, 0.0), train_gpt.relu_squared(z))
