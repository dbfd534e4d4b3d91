"""Multi-token prediction: the loss by loops, heads that really train, and nothing of them in the artifact."""

import math
from pathlib import Path

import pytest
import torch

import train_gpt
from corpus import dataset
from techniques import catalog
from techniques.config import resolve
from tests.conftest import TINY_MODEL
from tests.techniques.model_rig import build, copy_shared, settle, some_ids
from trainer.seams import Seams

ON = {"mtp": True, "mtp.num_tokens": 3, "mtp.weight": 0.3}


def test_loss_equals_the_loop_over_positions_and_offsets():
    model, plain, ids = build(ON), build({}), some_ids()
    copy_shared(model, plain)
    targets = ids.roll(-1, 1)
    h, nats = model.hidden(ids), []
    for k, head in enumerate(model.loss_terms.steps["mtp"].heads, start=1):
        rows = []
        for b in range(ids.size(0)):
            for t in range(ids.size(1) - k):
                z = 30 * torch.tanh(head @ h[b, t] / 30)
                rows.append(torch.logsumexp(z, 0) - z[targets[b, t + k]])
        nats.append(torch.stack(rows).mean())
    expected = plain(ids, targets) + 0.3 * torch.stack(nats).mean()
    torch.testing.assert_close(model(ids, targets), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.hidden(ids), plain.hidden(ids))


def test_fresh_heads_add_a_uniform_guess():
    model, plain, ids = build(ON, move=False), build({}, move=False), some_ids()
    extra = model(ids, ids) - plain(ids, ids)
    torch.testing.assert_close(extra, torch.tensor(0.3 * math.log(64)))


def test_heads_are_in_an_optimiser_group_and_move_in_one_step():
    run = settle(ON)
    model = build(ON, move=False)
    optimizers = train_gpt.build_optimizers(model, run.config, train_gpt.Hyper(), train_gpt.World(run.config))
    assert optimizers.params_by_role["aux"] == 3 * 64 * 32 == run.techniques["mtp"].cost(run.shape()).params
    ids = some_ids()
    model(ids, ids.roll(-1, 1)).backward()
    for optimizer in optimizers:
        optimizer.step()
    for head in model.loss_terms.steps["mtp"].heads:
        assert bool(head.any())


def test_the_artifact_and_the_scored_model_hold_no_head(tiny_data: dict[str, str]):
    run = resolve({"file": {**TINY_MODEL, **tiny_data, **ON}}, catalog.runtime())
    world, seams = train_gpt.World(run.config), Seams(run)
    data = dataset.open_dataset(Path(run.config.data_path), vocab_size=320, seq_len=32)
    trainer = train_gpt.Trainer(seams, world, data, train_gpt.Log(Path(), 1))
    trained = trainer.run()
    heads = [n for n in trained.weights if "mtp" in n]
    assert len(heads) == 3 and all(bool(trained.weights[n].any()) for n in heads)
    packed, _ = train_gpt.quantize(trained.weights, trainer.model, seams, ())
    artifact = train_gpt.pack(packed, run.identity(), train_gpt.ZlibCodec())
    assert not [item.name for item in packed if "mtp" in item.name]
    score = train_gpt.evaluate(artifact, seams, world, data)[0]
    plain = resolve({"file": {**TINY_MODEL, **tiny_data}}, catalog.runtime())
    alone = train_gpt.evaluate(artifact, Seams(plain), world, data)[0]  # a model without mtp reads it
    assert score == alone
    model = train_gpt.build_model(run)
    model.drop_aux()
    assert [n for n, _ in model.named_parameters()] == [item.name for item in packed]


def test_more_tokens_than_the_sequence_has_are_refused():
    with pytest.raises(ValueError, match="less than the training sequence"):
        settle({"mtp": True, "mtp.num_tokens": 16})
