"""Label smoothing: the loss and its gradient written out."""

import torch

from techniques.head.label_smoothing import LabelSmoothing, SmoothedLoss
from tests.techniques.model_rig import build, settle, some_ids


def test_the_loss_is_a_mean_over_smoothed_targets():
    z, y = (torch.randn(7, 11) * 20).requires_grad_(), torch.arange(7)
    loss = SmoothedLoss(30.0, 0.1)(z, y)
    nats = -(30 * torch.tanh(z / 30)).log_softmax(-1)
    share = torch.full((7, 11), 0.1 / 11)
    share[torch.arange(7), y] += 0.9
    want = (share * nats).sum(-1).mean()
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(*(torch.autograd.grad(x, z, retain_graph=True)[0] for x in (loss, want)))


def test_training_alone_is_smoothed():
    settings, ids = {"label_smoothing": True, "label_smoothing.share": 0.2}, some_ids()
    model, plain, targets = build(settings), build({}), ids.roll(-1, 1)
    torch.testing.assert_close(model.logits(model.hidden(ids)), plain.logits(plain.hidden(ids)))
    every = -plain.logits(plain.hidden(ids)).log_softmax(-1).mean()
    torch.testing.assert_close(model(ids, targets), 0.8 * plain(ids, targets) + 0.2 * every)
    run = settle(settings)
    assert isinstance(run.techniques["label_smoothing"], LabelSmoothing | object)
