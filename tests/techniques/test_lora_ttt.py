"""LoRA TTT: one document at a time with merged weights written out; isolation; score-first; limits."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from techniques._lora import Adapters, documents, lora_places
from techniques.base import Shape
from techniques.evaluation.lora_ttt import LoraTtt
from tests.techniques.evaluation_rig import on_ranks, run_scorer, tiny_model, tiny_tokens

SHAPE = Shape(64, 2, 32, 4, 2, 2.0, 32, 32)
N = 150
EVERY: dict[str, Any] = {"k": True, "o": True, "mlp": True}


def scorer(**settings):
    base = {"rank": 3, "alpha": 6.0, "lr": 0.02, "chunk": 8, "batch_docs": 3, "weight_decay": 0.1}
    return LoraTtt(LoraTtt.Config(**(base | settings))).scorer()


def some_documents(seed: int = 0) -> torch.Tensor:
    """Documents of 7, 1, 50, 33 … positions: shorter than a chunk, longer than the context."""
    tokens = tiny_tokens(N, seed)
    tokens[tokens == 1] = 2
    tokens[torch.tensor([7, 8, 58, 91, 92, 140])] = 1
    return tokens


def test_every_position_is_in_one_document():
    tokens = some_documents()
    assert documents(tokens) == [(0, 7), (7, 1), (8, 50), (58, 33), (91, 1), (92, 48), (140, 10)]
    tokens[0] = 1
    assert documents(tokens)[0] == (0, 7) and documents(torch.tensor([5, 6, 1])) == [(0, 2)]


def by_hand(model, ids, targets, a, b, scale, scored):
    """Nats of the last `scored` targets of one window. The adapters of q, k, v and the head are added to the
    weights; those beside attention and MLP run in the block, written out."""
    names = ["c_q", "c_v", "c_k", "attn", "mlp"]
    c, x = model, F.rms_norm(F.embedding(ids, model.tok_emb), (32,))
    x0, skips = x, []
    for i, block in enumerate(c.blocks):
        at = {n: scale * b[5 * i + j] @ a[5 * i + j] for j, n in enumerate(names)}
        if i >= 1 and skips:
            x = x + c.skip_weights[i - 1] * skips.pop()
        x = block.resid_mix[0] * x + block.resid_mix[1] * x0
        n = F.rms_norm(x, (32,))[None]
        q, k, v = (
            (n @ (getattr(block.attn, m).weight + at[m]).T).view(1, len(ids), -1, 8)
            for m in ("c_q", "c_k", "c_v")
        )
        q, k = block.attn.rope(F.rms_norm(q, (8,)), F.rms_norm(k, (8,)))
        q = q * block.attn.q_gain[:, None]
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
        ).transpose(1, 2)
        y = y.reshape(len(ids), 32) @ block.attn.proj.weight.T + n[0] @ at["attn"].T
        x = x + block.attn_scale * y
        m = F.rms_norm(x, (32,))
        z = torch.relu(m @ block.mlp.fc.weight.T).square() @ block.mlp.proj.weight.T + m @ at["mlp"].T
        x = x + block.mlp_scale * z
        if i < 1:
            skips.append(x)
    z = F.rms_norm(x, (32,)) @ (model.tok_emb + scale * b[-1] @ a[-1]).T
    return F.cross_entropy(30 * torch.tanh(z / 30), targets, reduction="none")[-scored:]


@pytest.mark.parametrize("tail", ["prefix", "document"])
def test_equals_one_document_at_a_time_written_out(tail: str):
    tokens, model = some_documents(), tiny_model().requires_grad_(False)
    run = run_scorer(scorer(tail=tail, **EVERY), tokens)
    start = Adapters(model, LoraTtt.Config(rank=3, **EVERY), 1)
    for begin, length in documents(tokens):
        a, b = ([t[0].detach().clone() for t in part] for part in (start.a, start.b))
        moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in (*a, *b)]
        for step, first in enumerate(range(0, length, 8), start=1):
            end = min(first + 8, length)
            low = max(0, (end if tail == "document" else first + 8) - 32)
            part = tokens[begin + low : begin + end + 1].long()
            for p in (*a, *b):
                p.requires_grad_()
            nats = by_hand(model, part[:-1], part[1:], a, b, 2.0, end - first)
            torch.testing.assert_close(
                run.nll[begin + first : begin + end], nats.detach(), atol=3e-4, rtol=1e-3
            )
            grads = torch.autograd.grad(nats.mean(), (*a, *b))
            with torch.no_grad():
                for p, g, m in zip((*a, *b), grads, moments, strict=True):
                    m[0], m[1] = 0.9 * m[0] + 0.1 * g, 0.95 * m[1] + 0.05 * g * g
                    update = m[0] / (1 - 0.9**step) / ((m[1] / (1 - 0.95**step)).sqrt() + 1e-10)
                    p.mul_(1 - 0.02 * 0.1).sub_(0.02 * update)


def test_without_a_rate_it_is_the_plain_model_and_with_one_it_is_not():
    tokens, model = some_documents(), tiny_model()
    plain = run_scorer(scorer(lr=0.0, **EVERY), tokens).nll
    for begin, length in documents(tokens):
        for p in (0, length // 2, length - 1):
            low = max(0, (p // 8 + 1) * 8 - 32)
            with torch.no_grad():
                z = model.logits(model.hidden(tokens[begin + low : begin + p + 1].long()[None]))[0, -1]
            want = float(-z.log_softmax(-1)[int(tokens[begin + p + 1])])
            assert float(plain[begin + p]) == pytest.approx(want, abs=1e-4)
    trained = run_scorer(scorer(**EVERY), tokens).nll
    assert torch.equal(trained[:8], plain[:8]) and (trained - plain).abs().max() > 1e-2


def test_a_document_knows_nothing_of_another_one_unless_a_is_warm():
    tokens = some_documents()
    other = tokens.clone()
    other[10:57] = torch.where(other[10:57] > 30, other[10:57] - 20, other[10:57] + 20)
    for warm, same in ((False, True), (True, False)):
        one = scorer(batch_docs=1, warm_a=warm, **EVERY)
        a, b = run_scorer(one, tokens).nll, run_scorer(scorer(batch_docs=1, warm_a=warm, **EVERY), other).nll
        assert torch.equal(a[:8], b[:8]) and torch.equal(a[58:], b[58:]) is same
        assert not torch.equal(a[10:57], b[10:57])


@pytest.mark.parametrize("position", [3, 20, 57, 100])
def test_scores_are_fixed_before_later_tokens_matter(position: int):
    tokens = some_documents()
    other = tokens.clone()
    other[position + 1 :] = tiny_tokens(N, seed=1)[position + 1 :]  # other documents, too
    a, b = (run_scorer(scorer(batch_docs=1), t).nll for t in (tokens, other))
    assert torch.equal(a[:position], b[:position]) and not torch.equal(a[position:], b[position:])


def test_batches_ranks_and_the_weights():
    tokens, start = some_documents(), dict(tiny_model().named_parameters())
    one = run_scorer(scorer(batch_docs=1), tokens)
    assert all(torch.equal(p, start[n]) and p.requires_grad for n, p in one.model.named_parameters())
    assert not any(m._forward_hooks for m in one.model.modules())
    torch.testing.assert_close(run_scorer(scorer(batch_docs=4), tokens).nll, one.nll, atol=1e-3, rtol=1e-3)
    runs = on_ranks(2, lambda world: run_scorer(scorer(batch_docs=1), tokens, world=world))
    assert (torch.stack([r.written for r in runs]).sum(0) == 1).all()
    torch.testing.assert_close(torch.stack([r.nll for r in runs]).sum(0), one.nll)


def test_limits():
    assert LoraTtt(LoraTtt.Config(chunk=16, context=32)).cost(SHAPE).eval_passes == 5.0
    assert LoraTtt().isolates_documents and not LoraTtt(LoraTtt.Config(warm_a=True)).isolates_documents
    wrong: list[dict[str, Any]] = [{"chunk": 64}, {"chunk": 8, "context": 64}]
    wrong += [{"chunk": 8, "qv": False, "head": False}]
    for settings in wrong:
        with pytest.raises(ValueError, match="lora_ttt"):
            LoraTtt(LoraTtt.Config(**settings)).check(SHAPE)
    assert math.isclose(float(Adapters(tiny_model(), LoraTtt.Config(), 2).scale), 1.0)


def test_q_and_v_apart_a_factor_on_the_rate_and_several_steps():
    tokens = some_documents()
    widths = {
        n: len(lora_places(tiny_model(), LoraTtt.Config(**w)))
        for n, w in {
            "both": {},
            "q": {"v": False},
            "none": {"qv": False},
            "neither": {"q": False, "v": False},
        }.items()
    }
    assert widths == {"both": 4, "q": 2, "none": 0, "neither": 0}
    with pytest.raises(ValueError, match="adapts nothing"):
        LoraTtt(LoraTtt.Config(chunk=8, q=False, v=False, head=False)).check(SHAPE)
    half = run_scorer(scorer(lr=0.01), tokens).nll
    torch.testing.assert_close(run_scorer(scorer(lr_mult=0.5), tokens).nll, half)
    once, twice = scorer(), scorer(grad_steps=2)
    a, b = run_scorer(once, tokens).nll, run_scorer(twice, tokens).nll
    assert twice.facts["steps"] == 2 * once.facts["steps"] > 0 and not torch.equal(a, b)
    for start, n in documents(tokens):  # the first chunk has its scores before any step
        assert torch.equal(a[start : start + min(8, n)], b[start : start + min(8, n)])


def test_short_documents_take_chunks_of_their_own():
    tokens, each = some_documents(), {"batch_docs": 1}
    steps = sum(max(0, -(-n // (4 if n <= 10 else 8)) - 1) for _, n in documents(tokens))
    one = scorer(short_chunks="10:4", **each)
    run_scorer(one, tokens)
    assert one.facts["steps"] == steps
    for bad in ("10", "a:4", "0:4", "10:4:2"):
        with pytest.raises(ValueError, match="short_chunks"):
            LoraTtt(LoraTtt.Config(chunk=8, short_chunks=bad)).check(SHAPE)
    with pytest.raises(ValueError, match="at most the context"):
        LoraTtt(LoraTtt.Config(chunk=8, short_chunks="10:64")).check(SHAPE)
