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
    """The lanes by hand: `pair` is lane 0 and lane 1, or the stream while there is one."""
    x0 = rms(model.tok_emb[ids])
    half = len(model.blocks) // 2
    pair: list[torch.Tensor] = [x0]
    kept: list[list[torch.Tensor]] = []
    for i, block in enumerate(model.blocks):
        skips: list[torch.Tensor] = []
        if i >= half and kept:
            left = kept.pop()
            skips = [model.skip_weights[i - half] * z for z in left]
        is_split = len(pair) > 1
        if i >= start and mode == "crossed" and not is_split:
            pair = [pair[0], pair[0]]  # before the skip
        if skips and mode == "routed":
            pair = [z + skips[min(n, len(skips) - 1)] for n, z in enumerate(pair)]
        elif skips:
            pair = [pair[0] + skips[0], *pair[1:]]
        if i >= start and mode in ("lanes", "routed") and not is_split:
            pair = [pair[0], pair[0]]  # behind it

        def mixed(z, block=block):
            return block.resid_mix[0] * z + block.resid_mix[1] * x0

        def attention(z, block=block):
            return block.attn_scale * block.attn(rms(z), {})

        def feed_forward(z, block=block):
            return block.mlp_scale * block.mlp(rms(z))

        if i < start:
            x = mixed(pair[0]) + attention(mixed(pair[0]))
            pair = [x + feed_forward(x)]
        elif mode == "single":
            x = mixed(pair[0])
            pair = [x + attention(x) + feed_forward(x)]
        elif mode == "lanes":
            pair = [mixed(pair[0]) + attention(mixed(pair[0])), pair[1] + feed_forward(pair[1])]
        else:
            routes = block.residual.steps["parallel_residual"]
            a, (keep_a, keep_m) = attention(mixed(pair[0])), routes.keep
            if mode == "crossed":
                m = feed_forward(pair[1])
                pair = [
                    keep * z + routes.post[0, n] * a + routes.post[1, n] * m
                    for n, (keep, z) in enumerate(zip((keep_a, keep_m), pair, strict=True))
                ]
            else:
                pair = [keep_a * z + routes.post[0, n] * a for n, z in enumerate(pair)]
                m = feed_forward(mixed(pair[1]))
                pair = [keep_m * z + routes.post[1, n] * m for n, z in enumerate(pair)]
        if i < half:
            kept.append(pair)
    if len(pair) == 1:
        return rms(pair[0])
    share = {"mean": 0.5, "attn": 1.0, "mlp": 0.0}[final]
    share = model.block_out[-1].steps["parallel_residual"].share if mode == "lanes" else share
    return rms(share * pair[0] + (1 - share) * pair[1])


@pytest.mark.parametrize("start", [1, 2, 3])  # in the first half; where the first skip joins; behind it
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


def test_which_lanes_a_skip_reaches():
    """The last layer's skip, made large: `crossed` keeps it out of lane 1 for good, `routed` does not."""
    ids = some_ids()
    for mode, reached in (("crossed", False), ("routed", True)):
        hidden = []
        for weight in (0.0, 5.0):
            model = build(settings_of(mode, 3, final="mlp"))
            with torch.no_grad():
                model.skip_weights[1].fill_(weight)  # layer 3 takes it back, where the lanes begin
                model.blocks[3].residual.steps["parallel_residual"].post[
                    0
                ].zero_()  # attention writes nothing
            hidden.append(model.hidden(ids))
        assert torch.equal(*hidden) is not reached, mode


def test_routed_starts_as_the_sequential_block():
    model, plain, ids = build(settings_of("routed")), build(FOUR), some_ids()
    copy_shared(plain, model)
    with torch.no_grad():
        for m in (model, plain):
            for block in m.blocks:
                block.resid_mix.copy_(torch.stack((torch.ones(32), torch.zeros(32))))
        for block in model.blocks[2:]:
            part = block.residual.steps["parallel_residual"]
            part.post.fill_(1.0)
            part.keep.fill_(1.0)
    torch.testing.assert_close(model.hidden(ids), plain.hidden(ids), rtol=1e-4, atol=1e-5)


def test_first_values():
    for mode, keep in (("crossed", 1.1), ("routed", 1.1**0.5)):
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
