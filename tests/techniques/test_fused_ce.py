"""The streaming capped cross-entropy against the plain one: loss and gradient."""

import pytest
import torch
import torch.nn.functional as F

from techniques.head.fused_ce import StreamedLoss
from tests.techniques.model_rig import build, copy_shared, settle, some_ids


@pytest.mark.parametrize("rows", [1, 7, 32, 1000])
@pytest.mark.parametrize("c", [5.0, 30.0])
def test_loss_and_gradient_equal_the_eager_form(c: float, rows: int):
    torch.manual_seed(0)
    z = (torch.randn(32, 50) * 20).requires_grad_()
    targets = torch.randint(0, 50, (32,))
    loss = StreamedLoss(c, rows)(z, targets)
    (loss * 3).backward()
    other = z.detach().clone().requires_grad_()
    expected = F.cross_entropy(c * torch.tanh(other / c), targets)
    (expected * 3).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(z.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_half_precision_logits_get_a_gradient_of_their_dtype():
    torch.manual_seed(0)
    z = (torch.randn(32, 50) * 20).to(torch.bfloat16).requires_grad_()
    targets = torch.randint(0, 50, (32,))
    loss = StreamedLoss(30.0, 8)(z, targets)
    loss.backward()
    other = z.detach().float().requires_grad_()
    expected = F.cross_entropy(30 * torch.tanh(other / 30), targets)
    expected.backward()
    assert loss.dtype == torch.float32 and z.grad is not None and z.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(z.grad.float(), other.grad, rtol=1e-2, atol=1e-4)


def test_trains_the_model_alike_and_leaves_evaluation_alone():
    fused, plain, ids = build({"fused_ce": True, "fused_ce.chunk_rows": 5}), build({}), some_ids()
    copy_shared(fused, plain)
    targets = ids.roll(-1, 1)
    losses = [m(ids, targets) for m in (fused, plain)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
    h = plain.hidden(ids)
    assert torch.equal(fused.logits(h), plain.logits(h))


def test_another_cap_is_refused():
    with pytest.raises(ValueError, match="fused_ce and softcap"):
        settle({"fused_ce": True, "softcap": True})
