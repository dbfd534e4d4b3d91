"""Untied MLPs of repeated passes: the forward written out, copies until a pass begins, exact parameters."""

from pathlib import Path
from typing import Any

import pytest
import torch

import train_gpt
from corpus import dataset
from techniques import catalog
from techniques.base import Shape
from techniques.block.untie_mlp import UntieMlp
from techniques.config import resolve
from techniques.settings import settings_from
from tests.conftest import TINY_MODEL
from tests.techniques.model_rig import build, copy_shared, rms, settle, some_ids
from trainer.seams import Seams

LOOPED = {
    "num_layers": 4,
    "depth_recurrence": True,
    "depth_recurrence.start": 1,
    "depth_recurrence.end": 2,
    "depth_recurrence.num_loops": 2,
}
UNTIED = {**LOOPED, "untie_mlp": True}
ORDER = [0, 1, 2, 1, 2, 1, 2, 3]


def slow_hidden(model, ids: torch.Tensor) -> torch.Tensor:
    """The forward over the order, every visit's MLP by name."""
    weights, seen = dict(model.named_parameters()), dict.fromkeys(ORDER, 0)
    skip_weights = torch.cat((model.skip_weights, model.loop_skip_weights))
    x = x0 = rms(model.tok_emb[ids])
    kept = []
    for place, layer in enumerate(ORDER):
        if place >= 4:
            x = x + skip_weights[place - 4] * kept[7 - place]
        block, v = model.blocks[layer], seen[layer]
        fc, proj = (
            weights[
                f"blocks.{layer}." + (f"feed.untie_mlp.{part}.{v - 1}.weight" if v else f"mlp.{part}.weight")
            ]
            for part in ("fc", "proj")
        )
        x = block.resid_mix[0] * x + block.resid_mix[1] * x0
        x = x + block.attn_scale * block.attn(rms(x), {})
        x = x + block.mlp_scale * (torch.relu(rms(x) @ fc.T).square() @ proj.T)
        kept.append(x)
        seen[layer] += 1
    return rms(x)


def test_equals_the_forward_written_out():
    model, ids = build(UNTIED), some_ids()
    assert list(model.order) == ORDER
    torch.testing.assert_close(model.hidden(ids), slow_hidden(model, ids), rtol=1e-4, atol=1e-5)


def test_with_copies_it_is_depth_recurrence_and_before_the_switch_nothing_reads_them():
    model, tied, ids = build(UNTIED), build(LOOPED), some_ids()
    copy_shared(model, tied)
    assert not torch.allclose(model.hidden(ids), tied.hidden(ids))
    for block in (model.blocks[1], model.blocks[2]):
        block.feed.steps["untie_mlp"].copy_from(block.mlp, 1)
    assert torch.equal(model.hidden(ids), tied.hidden(ids))
    model, tied = build(UNTIED), build(LOOPED)
    copy_shared(model, tied)
    for one in (model, tied):
        one.enter_phase(0.0)
    assert torch.equal(model.hidden(ids), tied.hidden(ids))


def test_the_activation_is_the_layers_own():
    model, ids = build({**UNTIED, "leaky_relu2": True}), some_ids()
    assert not torch.allclose(model.hidden(ids), slow_hidden(model, ids), rtol=1e-3, atol=1e-3)
    for block in model.blocks:
        block.mlp.activation.parts = [train_gpt.relu_squared]
    torch.testing.assert_close(model.hidden(ids), slow_hidden(model, ids), rtol=1e-4, atol=1e-5)


def test_every_pass_has_a_gradient_of_its_own():
    model, ids = build(UNTIED), some_ids()
    model(ids, ids.roll(-1, 1)).backward()
    grads = [p.grad for n, p in model.named_parameters() if "blocks.1." in n and "fc" in n]
    assert len(grads) == 3 and all(g is not None and bool(g.any()) for g in grads)
    assert len({float(g.norm()) for g in grads if g is not None}) == 3


def test_passes_follow_the_shared_mlp_until_they_begin():
    model = build({**UNTIED, "depth_recurrence.enable_at": 0.4, "depth_recurrence.stagger": 0.2})
    step = UntieMlp().stepper(model)
    block = model.blocks[1]
    passes = [linear.weight for linear in block.feed.steps["untie_mlp"].fc]
    for progress, copied in ((0.0, 0), (0.1, 2), (0.4, 2), (0.5, 1), (0.6, 1), (0.7, 0), (0.8, 0)):
        model.enter_phase(max(p for p in (0.0, 0.4, 0.6) if p <= progress))
        with torch.no_grad():
            block.mlp.fc.weight.add_(1.0)
        before = [w.clone() for w in passes]
        step(progress, 1.0)
        same = [torch.equal(w, block.mlp.fc.weight) for w in passes]
        assert same == [False] * (2 - copied) + [True] * copied, (
            progress
        )  # the later passes are copied longer
        assert all(torch.equal(w, b) for w, b, s in zip(passes, before, same, strict=True) if not s)


def test_a_run_copies_at_the_switch_and_learns_from_there(tiny_data: dict[str, str]):
    settings = {**TINY_MODEL, **tiny_data, "warmup_steps": 1, "depth_recurrence": True, "untie_mlp": True}
    settings |= {"depth_recurrence.start": 1, "depth_recurrence.end": 1, "depth_recurrence.enable_at": 0.5}
    run = resolve({"file": settings | {"depth_recurrence.num_loops": 1}}, catalog.runtime())
    world = train_gpt.World(run.config)
    data = dataset.open_dataset(Path(run.config.data_path), vocab_size=run.config.vocab_size, seq_len=32)
    seams = Seams(run)
    trainer = train_gpt.Trainer(seams, world, data, train_gpt.Log(Path(), 1))
    block: Any = trainer.model.blocks[1]
    equal: list[bool] = []
    inner, (follow,) = trainer.compiled, trainer.steppers

    def watched(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        mine = block.feed.steps["untie_mlp"]
        equal.append(torch.equal(mine.fc[0].weight, block.mlp.fc.weight))
        return inner(ids, targets)

    trainer.compiled = watched
    trainer.run()
    parts = run.config.micro_batches  # warm-up: both graphs; then six steps, the switch at the fourth
    assert equal[::parts][2:] == [False, True, True, True, False, False]
    assert seams.audit.report()["untie_mlp"]["verdict"] == "active" and follow is not None


def test_exact_parameters():
    eleven = Shape(8192, 11, 512, 8, 4, 4.0, 2048, 2048, plan=(*range(6), 4, 5, *range(6, 11)))  # #1204
    assert UntieMlp().cost(eleven).params == 2 * 2 * 512 * 2048
    run, plain = settle(UNTIED), build(LOOPED)
    added = sum(p.numel() for p in build(UNTIED).parameters()) - sum(p.numel() for p in plain.parameters())
    assert run.techniques["untie_mlp"].cost(run.shape()).params == added == 4 * 2 * 32 * 64


def test_needs_a_loop_and_answers_to_its_variable():
    with pytest.raises(ValueError, match="untie_mlp needs depth_recurrence"):
        settle({"untie_mlp": True})
    environ = {"RECUR_UNTIE_MLP": "1", "NUM_LOOPS": "1"}
    values = settings_from([], environ, catalog.metadata(), has_gpu=True).values
    assert values["untie_mlp"] and values["depth_recurrence"]
