"""Depth recurrence: the published orders, shared weights, skips by place, the switch as a phase."""

from pathlib import Path

import pytest
import torch

import train_gpt
from corpus import dataset
from techniques import catalog
from techniques.base import Shape
from techniques.block.depth_recurrence import DepthRecurrence
from techniques.config import resolve
from tests.conftest import TINY_MODEL
from tests.techniques.model_rig import build, copy_shared, rms, settle, some_ids
from trainer.seams import Seams

ELEVEN = Shape(8192, 11, 512, 8, 4, 4.0, 2048, 2048)
FIVE = {"num_layers": 5}
LOOPED = {
    **FIVE,
    "depth_recurrence": True,
    "depth_recurrence.start": 1,
    "depth_recurrence.end": 3,
    "depth_recurrence.num_loops": 2,
}


def recurrence(**settings) -> DepthRecurrence:
    return DepthRecurrence(DepthRecurrence.Config(**settings))


@pytest.mark.parametrize(
    ("start", "end", "encoder", "decoder"),
    [
        (3, 5, [0, 1, 2, 3, 4, 5, 3, 4], [5, 3, 4, 5, 6, 7, 8, 9, 10]),  # #1493, #1855
        (-1, -1, [0, 1, 2, 3, 4, 5, 3, 4], [5, 3, 4, 5, 6, 7, 8, 9, 10]),  # the default at 11 layers
        (4, 5, [0, 1, 2, 3, 4, 5, 4], [5, 4, 5, 6, 7, 8, 9, 10]),  # #1394
    ],
)
def test_published_orders(start: int, end: int, encoder: list, decoder: list):
    order = recurrence(start=start, end=end).plan(ELEVEN)(1.0)
    half = len(order) // 2
    assert (list(order[:half]), list(order[half:])) == (encoder, decoder)


def test_switches_together_or_one_pass_at_a_time():
    together = recurrence(start=4, end=5, enable_at=0.5)
    assert together.phases() == (0.5,)
    assert [len(together.plan(ELEVEN)(p)) for p in (0.0, 0.499, 0.5, 1.0)] == [11, 11, 15, 15]
    progressive = recurrence(start=4, end=5, enable_at=0.5, stagger=0.15)  # #1412
    assert progressive.phases() == (0.5, 0.65)
    assert [len(progressive.plan(ELEVEN)(p)) for p in (0.0, 0.5, 0.65)] == [11, 13, 15]
    always = recurrence(start=4, end=5, enable_at=0.0)
    assert always.phases() == () and len(always.plan(ELEVEN)(0.0)) == 15


def slow_hidden(model, ids: torch.Tensor, order: list[int]) -> torch.Tensor:
    """The forward with a plain list of layers and skips found by place."""
    x = x0 = rms(model.tok_emb[ids])
    kept, half = [], len(order) // 2
    weights = torch.cat((model.skip_weights, model.loop_skip_weights))
    for place, layer in enumerate(order):
        if half <= place < 2 * half:
            x = x + weights[place - half] * kept[2 * half - 1 - place]
        block = model.blocks[layer]
        x = block.resid_mix[0] * x + block.resid_mix[1] * x0
        x = x + block.attn_scale * block.attn(rms(x), {})
        x = x + block.mlp_scale * block.mlp(rms(x))
        kept.append(x)
    return rms(x)


def test_equals_the_slow_forward_over_the_order():
    model, ids = build(LOOPED), some_ids()
    assert model.loop_skip_weights.shape == (3, 32)  # 11 virtual layers: 5 skips, 2 of them the baseline's
    expected = slow_hidden(model, ids, [0, 1, 2, 3, 1, 2, 3, 1, 2, 3, 4])
    torch.testing.assert_close(model.hidden(ids), expected, rtol=1e-4, atol=1e-5)


def test_before_the_switch_it_is_the_plain_model_and_a_fresh_one_is_looped():
    model, plain, ids = build(LOOPED), build(FIVE), some_ids()
    copy_shared(model, plain)
    looped = model.hidden(ids)
    assert len(model.order) == 11 and not torch.allclose(looped, plain.hidden(ids))
    model.enter_phase(0.0)
    assert torch.equal(model.hidden(ids), plain.hidden(ids))
    model.enter_phase(0.35)
    assert torch.equal(model.hidden(ids), looped)


def test_a_repeated_layer_gets_the_gradient_of_all_its_passes():
    model, ids = build(LOOPED), some_ids()
    model(ids, ids.roll(-1, 1)).backward()
    once = build(LOOPED)
    once.enter_phase(0.0)
    once(ids, ids.roll(-1, 1)).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    assert not torch.allclose(model.blocks[2].mlp.fc.weight.grad, once.blocks[2].mlp.fc.weight.grad)
    assert once.loop_skip_weights.grad is None


def test_cost_is_the_further_skips_and_the_repeated_layers_time():
    for settings, skips in (({"start": 4, "end": 5}, 7), ({"start": 3, "end": 5}, 8)):
        technique = recurrence(**settings)
        assert technique.cost(ELEVEN).params == (skips - 5) * 512
    one = recurrence(start=4, end=4, num_loops=1, enable_at=0.0).cost(ELEVEN)
    assert one.flops_per_token == pytest.approx(2 * (786_432 + 2_097_152) + 2 * 2048 * 512)
    run = settle({**LOOPED, "unet_skips": False})
    assert run.techniques["depth_recurrence"].cost(run.shape()).params == 0


@pytest.mark.parametrize(
    "settings", [{"start": 3, "end": 2}, {"start": 5, "end": 11}, {"enable_at": 0.9, "stagger": 0.2}]
)
def test_refusals(settings: dict):
    with pytest.raises(ValueError, match="depth_recurrence"):
        recurrence(**settings).check(ELEVEN)


def test_a_run_warms_both_graphs_up_switches_once_and_scores_looped(tiny_data: dict[str, str]):
    settings = {**TINY_MODEL, **tiny_data, "warmup_steps": 1, "depth_recurrence": True}
    settings |= {"depth_recurrence.start": 1, "depth_recurrence.end": 1, "depth_recurrence.enable_at": 0.5}
    run = resolve({"file": settings}, catalog.runtime())
    world = train_gpt.World(run.config)
    data = dataset.open_dataset(Path(run.config.data_path), vocab_size=run.config.vocab_size, seq_len=32)
    seams, orders = Seams(run), []
    trainer = train_gpt.Trainer(seams, world, data, train_gpt.Log(Path(), 1))
    step = trainer.train_step
    trainer.train_step = lambda moment: orders.append(len(trainer.model.order)) or step(moment)
    trained = trainer.run()
    assert orders == [3, 5] + [3] * 3 + [5] * 3  # two warm-up steps, then the switch at half of six
    assert len(trainer.model.order) == 5  # calibration and the last reports run looped
    packed, _ = train_gpt.quantize(trained.weights, trainer.model, seams, ())
    artifact = train_gpt.pack(packed, run.identity(), train_gpt.ZlibCodec())
    score = train_gpt.evaluate(artifact, seams, world, data)[0]
    plain = trainer.model
    train_gpt.load_weights(plain, train_gpt.unpack(artifact, {"zlib": train_gpt.ZlibCodec()})[1])
    assert train_gpt.score_plainly(plain, world, data, run.config).val_loss == score.val_loss
    plain.enter_phase(0.0)  # looping forgotten: another model
    assert abs(train_gpt.score_plainly(plain, world, data, run.config).val_loss - score.val_loss) > 1e-3
    assert seams.audit.report()["depth_recurrence"]["verdict"] == "active"
