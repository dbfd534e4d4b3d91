"""num_kv_heads is a trainer setting: MHA at K = H, and groups equal to explicit copies of their heads."""

import pytest
import torch
import torch.nn.functional as F

from tests.techniques.model_rig import build, settle, some_ids


def test_as_many_kv_heads_as_heads_is_plain_sdpa():
    model = build({"num_kv_heads": 4})
    q, k, v = (torch.randn(2, 16, 4, 8) for _ in range(3))
    out = model.blocks[0].attn.attend(q, k, v, {})
    expected = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
    )
    torch.testing.assert_close(out, expected.transpose(1, 2))


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_a_group_equals_copies_of_its_head(kv_heads: int):
    grouped, full = build({"num_kv_heads": kv_heads}), build({"num_kv_heads": 4})
    for a, b in zip(grouped.blocks, full.blocks, strict=True):
        for name in ("c_k", "c_v"):
            heads = getattr(a.attn, name).weight.detach().view(kv_heads, 8, 32)
            getattr(b.attn, name).weight = torch.nn.Parameter(
                heads.repeat_interleave(4 // kv_heads, dim=0).reshape(32, 32)
            )
    own = {n: p for n, p in grouped.named_parameters() if "c_k" not in n and "c_v" not in n}
    with torch.no_grad():
        for n, p in full.named_parameters():
            if n in own:
                p.copy_(own[n])
    ids = some_ids()
    torch.testing.assert_close(grouped.hidden(ids), full.hidden(ids), rtol=1e-4, atol=1e-5)


def test_counts_and_refusals():
    count = {k: sum(p.numel() for p in build({"num_kv_heads": k}).parameters()) for k in (1, 2, 4)}
    assert count[4] - count[2] == 3 * 2 * 16 * 32  # K, V rows of 2 heads more, 3 layers
    assert count[2] - count[1] == 3 * 2 * 8 * 32
    with pytest.raises(ValueError, match="Use one of 1, 2, 4"):
        settle({"num_kv_heads": 3})
