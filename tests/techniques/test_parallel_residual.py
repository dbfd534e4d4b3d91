"""Parallel residuals: four published wirings against the forward written out."""

import pytest
import torch

from techniques.block.parallel_residual import PARALLEL_MODES, ParallelResidual
from tests.techniques.model_rig import TINY, build, copy_shared, rms, settle, some_ids

FOUR = {"num_layers": 4}


def settings_of(mode: str, start: int = 2, **more) -> dict:
    own = {"mode": mode, "start": start, **more}
    return {**FOUR, "parallel_residual": True} | {f"parallel_residual.{k}": v for k, v in own.items()}


def slow_hidden(model, ids: torch.Tensor, mode: str, start: int, final: str = "mean") -> torch.Tensor:
    x = x0 = rms(model.tok_emb[ids])
    lane, kept = None, []
    for i, block in enumerate(model.blocks):
        if i >= 2:
            x = x + model.skip_weights[i - 2] * kept.pop()  # into lane 0 only
        mixed = block.resid_mix[0] * x + block.resid_mix[1] * x0
        attention = block.attn_scale * block.attn(rms(mixed), {})

        def feed_forward(z, block=block):
            return block.mlp_scale * block.mlp(rms(z))

        if i < start:
            x = mixed + attention
            x = x + feed_forward(x)
        elif mode == "single":
            x = mixed + attention + feed_forward(mixed)
        else:
            lane = x if lane is None else lane
            if mode == "lanes":
                x, lane = mixed + attention, lane + feed_forward(lane)
            else:
                (pa0, pa1), (pm0, pm1) = block.residual.steps["parallel_residual"].post
                ra, rm = block.residual.steps["parallel_residual"].keep
                if mode == "routed":
                    x, lane = ra * x + pa0 * attention, ra * lane + pa1 * attention
                    mlp = feed_forward(lane)
                    x, lane = rm * x + pm0 * mlp, rm * lane + pm1 * mlp
                else:
                    mlp = feed_forward(lane)
                    x, lane = (
                        ra * x + pa0 * attention + pm0 * mlp,
                        rm * lane + pa1 * attention + pm1 * mlp,
                    )
        if i < 2:
            kept.append(x)
    if lane is None:
        return rms(x)
    share = {"mean": 0.5, "attn": 1.0, "mlp": 0.0}[final]
    share = model.block_out[-1].steps["parallel_residual"].share if mode == "lanes" else share
    return rms(share * x + (1 - share) * lane)


@pytest.mark.parametrize("start", [1, 3])
@pytest.mark.parametrize("mode", PARALLEL_MODES)
def test_equals_the_written_out_forward(mode: str, start: int):
    model, ids = build(settings_of(mode, start)), some_ids()
    torch.testing.assert_close(model.hidden(ids), slow_hidden(model, ids, mode, start), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("final", ["mean", "attn", "mlp"])
def test_ends_in_the_lane_that_is_asked_for(final: str):
    model, ids = build(settings_of("crossed", final=final)), some_ids()
    expected = slow_hidden(model, ids, "crossed", 2, final)
    torch.testing.assert_close(model.hidden(ids), expected, rtol=1e-4, atol=1e-5)


def test_crossed_lanes_without_cross_writes_are_decoupled():
    ids = some_ids()
    hidden = {}
    for final in ("attn", "mlp"):
        for moved in (False, True):
            model = build(settings_of("crossed", final=final))
            with torch.no_grad():
                for block in model.blocks[2:]:
                    part = block.residual.steps["parallel_residual"]
                    part.post.copy_(torch.eye(2))
                    part.keep.fill_(1.0)
                    if moved:  # the other lane's branch
                        (block.mlp if final == "attn" else block.attn).proj.weight.add_(1.0)
            hidden[final, moved] = model.hidden(ids)
        assert torch.equal(hidden[final, False], hidden[final, True])


def test_routed_starts_as_the_sequential_block():
    model, plain, ids = build(settings_of("routed")), build(FOUR), some_ids()
    copy_shared(plain, model)
    with torch.no_grad():
        for m in (model, plain):
            for block in m.blocks:
                block.resid_mix.copy_(torch.stack((torch.ones(32), torch.zeros(32))))
            m.skip_weights.zero_()  # a skip joins lane 0 only
        for block in model.blocks[2:]:
            part = block.residual.steps["parallel_residual"]
            part.post.fill_(1.0)
            part.keep.fill_(1.0)
    torch.testing.assert_close(model.hidden(ids), plain.hidden(ids), rtol=1e-4, atol=1e-5)


def test_first_values():
    for mode, keep in (("crossed", 1.1), ("routed", 1.0)):
        part = build(settings_of(mode), move=False).blocks[3].residual.steps["parallel_residual"]
        assert torch.equal(part.post, torch.ones(2, 2)) and torch.equal(part.keep, torch.full((2,), keep))
    merge = build(settings_of("lanes"), move=False).block_out[-1].steps["parallel_residual"]
    assert float(merge.share.detach()) == 0.5


@pytest.mark.parametrize(
    ("mode", "rows", "params"),
    [("single", "used", 0), ("lanes", "used", 1), ("routed", "used", 18), ("crossed", "all", 66)],
)
def test_exact_cost_of_eleven_layers(mode: str, rows: str, params: int):
    technique = ParallelResidual(ParallelResidual.Config(mode=mode, rows=rows))
    run = settle({"num_layers": 11, "parallel_residual": True})
    assert technique.first(run.shape()) == 8  # #1529, #1855
    assert technique.cost(run.shape()).params == params


def test_the_published_unread_rows_change_nothing():
    used, every = build(settings_of("crossed")), build(settings_of("crossed", rows="all"))
    ids = some_ids()
    every(ids, ids).backward()
    assert torch.equal(used.hidden(ids), every.hidden(ids))
    unread = [n for n, p in every.named_parameters() if p.grad is None]
    assert unread == ["block_out.4.parallel_residual.unused"]


def test_a_start_behind_the_last_layer_is_refused():
    with pytest.raises(ValueError, match="must be a layer"):
        settle({**TINY, **settings_of("crossed", start=4)})
