"""Backout: the middle's stream, taken back before the final norm."""

import pytest
import torch

from tests.techniques.model_rig import build, copy_shared, rms, settle, some_ids, streams

ON = {"num_layers": 5, "backout": True}


@pytest.mark.parametrize(("layer", "middle"), [(-1, 2), (0, 0), (3, 3)])
def test_takes_the_stream_behind_one_block_back(layer: int, middle: int):
    model, ids = build({**ON, "backout.layer": layer}), some_ids()
    out = [after for _, _, after in streams(model, ids)]
    strength = model.block_out[-1].steps["backout"].strength
    torch.testing.assert_close(model.hidden(ids), rms(out[-1] - strength * out[middle]))


def test_the_published_middle_of_eleven_layers_is_the_first_decoder_block():
    run = settle({"num_layers": 11, "backout": True})
    assert run.techniques["backout"].middle(run.shape()) == 5  # type: ignore[attr-defined]


def test_zero_is_identity_and_gets_gradient():
    model, plain = build(ON, move=False), build({"num_layers": 5})
    copy_shared(plain, model)
    strength = model.block_out[-1].steps["backout"].strength
    assert float(strength) == pytest.approx(0.2)
    with torch.no_grad():
        strength.zero_()
    ids = some_ids()
    assert torch.equal(model.hidden(ids), plain.hidden(ids))
    model(ids, ids.roll(-1, 1)).backward()
    assert strength.grad is not None and float(strength.grad) != 0.0


def test_a_looped_middle_gives_its_last_pass():
    loop = {"depth_recurrence": True, "depth_recurrence.start": 1, "depth_recurrence.end": 1}
    model, ids = build({**ON, **loop, "backout.layer": 1}), some_ids()
    seen = streams(model, ids)
    last = [after for layer, _, after in seen if layer == 1][-1]
    strength = model.block_out[-1].steps["backout"].strength
    torch.testing.assert_close(model.hidden(ids), rms(seen[-1][2] - strength * last))


def test_the_last_block_is_refused():
    for settings in ({"num_layers": 5, "backout.layer": 4}, {"num_layers": 2}):
        with pytest.raises(ValueError, match="earlier block"):
            settle({"backout": True, **settings})
