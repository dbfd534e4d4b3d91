"""Varlen attention: every document as if it were alone, by mask and by bounds."""

import pytest
import torch
import torch.nn.functional as F

import techniques.attention.varlen_attention as varlen
from techniques.base import Unavailable
from tests.techniques.model_rig import build, copy_shared, some_ids

ON = {"varlen_attention": True, "varlen_attention.kernel": "mask"}


def documents(row: torch.Tensor) -> list[tuple[int, int]]:
    begins = sorted({0, *(i for i, t in enumerate(row.tolist()) if t == 1)})
    return list(zip(begins, [*begins[1:], len(row)], strict=True))


def alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention of one document: q [n,H,Dh], k and v [n,K,Dh]."""
    group = q.size(1) // k.size(1)
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("ihd,jhd->hij", q, k) / q.size(-1) ** 0.5
    scores = scores.masked_fill(torch.ones(len(q), len(q), dtype=torch.bool).triu(1), -torch.inf)
    return torch.einsum("hij,jhd->ihd", scores.softmax(-1), v)


def bounds_kernel(q, k, v, bounds, key_bounds, longest: int, longest_key: int, causal: bool) -> torch.Tensor:
    """What FlashAttention's varlen kernel computes, document by document; empty ones are none."""
    assert causal and key_bounds is bounds and longest == longest_key
    assert bounds.dtype == torch.int32 and int(bounds[-1]) == len(q) and int(bounds[0]) == 0
    parts = []
    for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        assert 0 <= b - a <= longest
        if b > a:
            parts.append(alone(q[a:b], k[a:b], v[a:b]))
    return torch.cat(parts)


def use_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_flash", lambda: bounds_kernel)
    monkeypatch.setattr(varlen, "varlen_kernel", lambda requested, flash, x: "flash")


@pytest.mark.parametrize("kernel", ["mask", "bounds"])
def test_equals_each_document_alone(kernel: str, monkeypatch: pytest.MonkeyPatch):
    if kernel == "bounds":
        use_bounds(monkeypatch)
    torch.manual_seed(0)
    ids = some_ids(3, 24, bos=0.2)
    q, k, v = torch.randn(3, 24, 4, 8), torch.randn(3, 24, 2, 8), torch.randn(3, 24, 2, 8)
    shared = varlen.VarlenDocuments("auto", 40)(torch.zeros(3, 24, 32), ids)
    out = varlen.VarlenAttend("auto")(q, k, v, {"varlen_attention": shared})
    for b in range(3):
        for first, end in documents(ids[b]):
            expected = alone(q[b, first:end], k[b, first:end], v[b, first:end])
            torch.testing.assert_close(out[b, first:end], expected)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_blocks_of_flex_attention_are_the_mask(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    ids = some_ids(2, 4 * varlen.VARLEN_BLOCK, bos=0.004)
    q, k, v = (torch.randn(2, ids.size(1), heads, 8) for heads in (4, 2, 2))
    x0, found = torch.zeros(2, ids.size(1), 32), []
    for kernel in ("mask", "flex"):
        monkeypatch.setattr(varlen, "varlen_kernel", lambda requested, flash, x, kernel=kernel: kernel)
        shared = varlen.VarlenDocuments("auto", 0)(x0, ids)
        found.append(varlen.VarlenAttend("auto")(q, k, v, {"varlen_attention": shared}))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    assert int(shared.full_kv_num_blocks.sum()) > 0 and shared.sparsity() > 30


def test_a_compiled_graph_takes_it_whole():
    model, ids = build({"varlen_attention": True}), some_ids(bos=0.2)
    graph = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(graph(ids, ids), model(ids, ids))


def test_more_documents_than_bounds_stop_the_run(monkeypatch: pytest.MonkeyPatch):
    use_bounds(monkeypatch)
    ids = torch.tensor([[1, 5, 1, 5, 1, 5]])
    assert varlen.VarlenDocuments("auto", 3)(torch.zeros(1, 6, 8), ids).tolist() == [0, 2, 4, 6]
    with pytest.raises(RuntimeError):
        varlen.VarlenDocuments("auto", 2)(torch.zeros(1, 6, 8), ids)


def test_logits_of_a_document_do_not_depend_on_its_neighbours():
    model = build({**ON, "smear_gate": True, "smear_gate.mode": "input_gate", "value_residual": True})
    ids = some_ids(1, 16)
    ids[0, 0] = ids[0, 5] = ids[0, 11] = 1
    other = ids.clone()
    other[0, 1:5], other[0, 12:] = 2, 3
    a, b = model.hidden(ids), model.hidden(other)
    assert torch.equal(a[0, 5:11], b[0, 5:11]) and not torch.equal(a[0, 1:5], b[0, 1:5])
    leaky = build({**ON, "smear_gate": True, "smear_gate.mode": "average"})
    assert not torch.equal(leaky.hidden(ids)[0, 5:11], leaky.hidden(other)[0, 5:11])


def test_a_document_alone_has_the_same_logits_at_its_own_place():
    model = build(ON)
    ids = some_ids(1, 16)
    ids[0, 6] = 1
    alone_ids = ids[:, 6:]
    torch.testing.assert_close(model.hidden(ids)[:, 6:], model.hidden(alone_ids), rtol=1e-4, atol=1e-5)


def test_without_a_start_it_is_plain_attention():
    model, plain, ids = build(ON), build({}), some_ids()
    copy_shared(model, plain)
    torch.testing.assert_close(model.hidden(ids), plain.hidden(ids), rtol=1e-4, atol=1e-5)
    assert F.mse_loss(model.hidden(some_ids(bos=0.3)), plain.hidden(some_ids(bos=0.3))) > 1e-4


def test_a_demanded_kernel_that_is_not_here_is_unavailable():
    model = build({"varlen_attention": True, "varlen_attention.kernel": "flash"})
    with pytest.raises(Unavailable, match="FlashAttention"):
        model.hidden(some_ids())
