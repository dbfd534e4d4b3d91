"""Canon: the sum written out, documents, places, cost."""

import pytest
import torch

from techniques.block.canon import Canon, CanonSum, SinceBos
from tests.techniques.model_rig import build, copy_shared, settle, some_ids


@pytest.mark.parametrize("masked", [True, False])
def test_equals_the_loop_over_positions(masked: bool):
    torch.manual_seed(0)
    module = CanonSum(8, ("attn",), stops=masked)
    with torch.no_grad():
        module.weights["attn"].normal_()
    ids, n = some_ids(bos=0.3), torch.randn(2, 16, 8)
    out = module(n, {"canon": SinceBos()(n, ids)}, "attn")
    w = module.weights["attn"]
    for b in range(2):
        for t in range(16):
            want = n[b, t].clone()
            for k in range(4):
                crossed = masked and any(int(ids[b, j]) == 1 for j in range(t - k + 1, t + 1))
                if t - k >= 0 and not crossed:
                    want = want + w[k] * n[b, t - k]
            torch.testing.assert_close(out[b, t], want, rtol=1e-5, atol=1e-5)
    assert module(n, {}, "mlp") is n


@pytest.mark.parametrize("where", ["A", "C", "AC"])
def test_it_stands_before_the_branches_of_the_last_layers(where: str):
    run = settle({"canon": True, "canon.last_n": 2, "canon.where": where})
    model, plain, ids = build({"canon": True, "canon.last_n": 2, "canon.where": where}), build({}), some_ids()
    copy_shared(plain, model)
    names = [n for n, _ in model.named_parameters() if "canon" in n]
    assert len(names) == 2 * len(where) and not any(n.startswith("blocks.0.") for n in names)
    assert run.techniques["canon"].cost(run.shape()).params == 2 * len(where) * 4 * 32
    moved = model.hidden(ids)
    assert not torch.allclose(moved, plain.hidden(ids), atol=1e-4)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "canon" in n:
                p.zero_()
    torch.testing.assert_close(model.hidden(ids), plain.hidden(ids))


def test_more_layers_than_there_are():
    with pytest.raises(ValueError, match="at most num_layers"):
        Canon(Canon.Config(last_n=9)).check(settle({}).shape())
