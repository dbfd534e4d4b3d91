"""Late QAT really runs: the loss is that of the quantised weights, compiled as eager, in one graph."""

import pytest
import torch

import train_gpt
from techniques.config import resolve
from techniques.quantization.late_qat import FakeQuantizer, LateQat, soft_round
from techniques.quantization.mixed_bits import MixedBits
from tests.techniques.evaluation_rig import TINY, tiny_tokens
from trainer.artifact import round_to_nearest

KNOWN = {"late_qat": LateQat, "mixed_bits": MixedBits}
ON = {"late_qat": True, "mixed_bits": True, "quantize_min_numel": 256}


def model_and_step(**settings):
    flat = {f"late_qat.{k}": v for k, v in settings.items()}
    resolved = resolve(
        {"file": TINY | ON | {"mixed_bits.attn_bits": 5, "mixed_bits.mlp_bits": 4} | flat}, KNOWN
    )
    model = train_gpt.build_model(resolved)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    return model, resolved.techniques["late_qat"].stepper(model)


def batch():
    tokens = tiny_tokens(64).long()
    return tokens[:64].view(2, 32), tokens[1:65].view(2, 32)


def test_below_the_threshold_the_loss_is_the_quantised_models():
    model, step = model_and_step(clip="max")
    plain = model(*batch())
    step(0.5, 0.2)
    assert torch.equal(model(*batch()), plain)  # above the threshold: bit for bit the plain one
    step(0.9, 0.1)
    noisy = model(*batch())
    assert abs(noisy.item() - plain.item()) > 1e-4
    by_hand, _ = model_and_step(clip="max")
    touched = 0
    with torch.no_grad():
        for module in by_hand.modules():
            if isinstance(module, train_gpt.Linear):
                w, bits = module.weight, 5 if getattr(module.weight, "role", "") == "attn" else 4
                s = w.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
                w.copy_(s * torch.round(w / s).clamp(-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1))
                module.stored_as, touched = None, touched + 1
    torch.testing.assert_close(noisy, by_hand(*batch()))
    assert touched == 12 == len([m for m in model.modules() if isinstance(m, FakeQuantizer)])
    assert torch.equal(model.eval()(*batch()), plain)  # evaluation sees the weights as they are
    step(0.9, 0.2)
    assert torch.equal(model.train()(*batch()), plain)


def test_a_compiled_graph_changes_with_the_buffer():
    """Part 6, trap 1: the switch is a buffer, so one graph serves both."""
    torch._dynamo.reset()
    graphs: list[int] = []

    def backend(graph, _inputs):
        graphs.append(1)
        return graph.forward

    model, step = model_and_step()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=False)
    losses = []
    for scale in (1.0, 0.1):
        step(0.9, scale)
        losses.append(compiled(*batch()))
        torch.testing.assert_close(losses[-1], model(*batch()))
    assert abs(losses[0].item() - losses[1].item()) > 1e-4 and len(graphs) == 1


def test_a_frozen_flag_is_what_the_audit_catches():
    """The published defect, planted: the switch never reaches the graph. Taking it out then changes
    nothing, and that is the audit's verdict."""
    model, step = model_and_step()
    step(0.9, 0.1)
    with torch.no_grad(), train_gpt.without(model, "late_qat"):
        without = float(model(*batch()))
    assert float(model(*batch())) != without
    for part in model.modules():
        if isinstance(part, FakeQuantizer):
            part.strength.zero_()  # frozen at off
    assert float(model(*batch())) == without


def test_the_gradient_is_the_identity():
    for published in (False, True):
        part = FakeQuantizer(6, LateQat.Config(published=published)).train()
        part.strength.fill_(1.0)
        w = torch.randn(5, 40, requires_grad=True)
        g = torch.randn(5, 40)
        part(w).backward(g)
        assert w.grad is not None and torch.equal(w.grad, g) and not torch.equal(part(w), w)


def test_scales_and_ranges():
    w = torch.randn(6, 4000) * 0.1
    aligned = FakeQuantizer(8, LateQat.Config(clip="max"))
    q, scale = round_to_nearest(w * 30, 8)
    torch.testing.assert_close(aligned.scale(w * 30).flatten(), scale.float(), rtol=2e-2, atol=0)
    assert torch.unique((aligned.stored(w) / aligned.scale(w)).round()).abs().max() <= 127 and q.any()
    quantile = FakeQuantizer(6, LateQat.Config(clip="quantile"))
    above = (w.abs() > quantile.scale(w) * 31).float().mean(1)
    assert bool((above > 0).all()) and float(above.max()) <= 5e-4 + 1e-6
    published = FakeQuantizer(6, LateQat.Config(published=True))
    assert torch.equal(published.scale(w), torch.full((6, 1), 1 / 31))


def test_soft_rounding():
    n = torch.arange(-5, 6).double()
    for alpha in (0.5, 1.0, 4.0, 16.0):
        a = torch.tensor(alpha).double()
        torch.testing.assert_close(soft_round(n, a), n)
        torch.testing.assert_close(soft_round(n + 0.5, a), n + 0.5)
        y = torch.linspace(-3, 3, 5001).double()
        assert bool((soft_round(y, a).diff() >= -1e-12).all())
    y = torch.linspace(-3, 3, 400).double()
    torch.testing.assert_close(soft_round(y, torch.tensor(1e-3).double()), y, atol=1e-6, rtol=0)
    away = y[(y - y.floor() - 0.5).abs() > 0.05]
    torch.testing.assert_close(soft_round(away, torch.tensor(500.0).double()), away.round())


def test_the_steepness_grows_to_its_end():
    model, step = model_and_step(mode="soft", alpha_end=16.0, threshold=0.5)
    part = next(m for m in model.modules() if isinstance(m, FakeQuantizer))
    seen = []
    for progress, scale in ((0.0, 1.0), (0.6, 0.4), (0.8, 0.2), (1.0, 0.0)):
        step(progress, scale)
        seen.append((float(part.strength), float(part.alpha)))
    assert seen == [(0.0, 1.0), (1.0, 1.0), (1.0, pytest.approx(4.0)), (1.0, pytest.approx(16.0))]
    model(*batch()).backward()
    grad = dict(model.named_parameters())["blocks.0.attn.c_q.weight"].grad
    assert grad is not None and grad.isfinite().all()


def test_no_matrix_to_touch_is_an_error():
    with pytest.raises(ValueError, match="matches no matrix"):
        LateQat().stepper(torch.nn.Linear(2, 2))
