"""Sliding windows against a loop over positions, each with its own explicit context."""

import pytest
import torch
import torch.nn.functional as F

import train_gpt
from conformance import lab
from techniques import catalog
from techniques._windows import last_block, scored_hidden, window_batches, windows
from techniques.base import Shape, claims
from techniques.evaluation.sliding_window import SlidingWindow
from tests.techniques.evaluation_rig import on_ranks, run_scorer, single, tiny_model, tiny_tokens

SHAPE = Shape(64, 2, 32, 4, 2, 2.0, 32, 32)


def scorer(stride: int, batch_seqs: int = 0):
    return SlidingWindow(SlidingWindow.Config(stride=stride, batch_seqs=batch_seqs)).scorer()


@pytest.mark.parametrize("seq_len", [1, 2, 7, 16])
def test_every_position_is_scored_once_with_the_longest_window(seq_len: int):
    for stride in range(1, seq_len + 1):
        for n in range(1, 4 * seq_len + 3):
            found, seen = windows(n, seq_len, stride), torch.zeros(n, dtype=torch.int)
            for start, first, end in found:
                assert 0 <= start <= first < end <= n and end - start <= seq_len
                seen[first:end] += 1
                assert start == 0 or first - start == seq_len - stride
            assert (seen == 1).all()
            by_rule = [w for w in range(0, n + seq_len, stride) if w + seq_len - stride < n]
            assert [w[0] for w in found] == (by_rule or [0])
            flat = [w for batch in window_batches(found, 3) for w in batch]
            assert flat == found and all(len(b) <= 3 for b in window_batches(found, 3))


@pytest.mark.parametrize(("n", "stride"), [(48, 8), (53, 8), (64, 32), (50, 13), (20, 8)])
def test_equals_the_loop_over_positions(n: int, stride: int):
    tokens, model = tiny_tokens(n), tiny_model()
    run = run_scorer(scorer(stride), tokens)
    for p in range(n):
        start = 0 if p < 32 else ((p - 32) // stride + 1) * stride  # the first window that reaches p
        ids = tokens[start : p + 1].long()[None]
        with torch.no_grad():
            logits = model.logits(model.hidden(ids))[0, -1]
        assert p < 32 or ids.numel() >= 32 - stride + 1
        torch.testing.assert_close(
            run.nll[p], F.cross_entropy(logits, tokens[p + 1].long()), atol=2e-5, rtol=1e-5
        )


ENTERS_LAST = {"norm", "attn_out", "mlp", "activation", "block_out", "residual", "attend"}
AT_THE_END = [n for n, cls in catalog.metadata().items() if ENTERS_LAST & {*claims(cls)}]
WANT_ALL = {"backout", "canon", "parallel_residual", "varlen_attention"}  # positions, in the last block


@pytest.mark.parametrize("name", ["", *AT_THE_END, "partial_rope", "value_residual"])
@pytest.mark.parametrize("context", [1, 24])
def test_the_last_block_does_what_scores_need(name: str, context: int):
    """Or all, where a technique there may want it; the model stays as it was."""
    known = catalog.runtime()
    model = tiny_model(known, **(lab.smoke_settings(known[name], known) if name else {}), num_layers=3)
    run = train_gpt.Evaluation(model, tiny_tokens(64), 32, 1, single())
    ids, _ = run.windows([0, 32], 32)
    block = last_block(model)
    assert (block is None) == (name in WANT_ALL)
    with torch.no_grad():
        whole = run.hidden(ids)
        torch.testing.assert_close(scored_hidden(run, ids, context), whole[:, context:], atol=1e-5, rtol=1e-5)
        assert torch.equal(run.hidden(ids), whole)
        assert block is None or block_rows(run, block, ids, context) == 32 - context


def block_rows(run, block, ids, context: int) -> int:
    """Positions that the block's MLP saw."""
    seen: list[int] = []
    hook = block.mlp.register_forward_hook(lambda _m, args, _out: seen.append(args[0].size(1)))
    scored_hidden(run, ids, context)
    hook.remove()
    return seen[-1]


def test_batches_and_ranks_do_not_matter():
    tokens = tiny_tokens(131)
    whole = run_scorer(scorer(8, batch_seqs=5), tokens).nll
    for size in (2, 3):
        runs = on_ranks(size, lambda world: run_scorer(scorer(8), tokens, world=world))
        assert (torch.stack([r.written for r in runs]).sum(0) == 1).all()
        torch.testing.assert_close(torch.stack([r.nll for r in runs]).sum(0), whole, atol=2e-6, rtol=1e-6)


def test_a_stride_of_the_sequence_is_the_plain_protocol():
    tokens = tiny_tokens(128)
    plain = train_gpt.Evaluation(tiny_model(), tokens, 32, 1, single())
    train_gpt.PlainScorer().score(plain)
    assert torch.equal(run_scorer(scorer(32), tokens, batch_seqs=1).nll, plain.nll)


def test_declares_cost_and_limits():
    technique = SlidingWindow(SlidingWindow.Config(stride=8))
    assert technique.cost(SHAPE).eval_passes == 3.0
    with pytest.raises(ValueError, match="at most the evaluation sequence"):
        SlidingWindow(SlidingWindow.Config(stride=33)).check(SHAPE)
    with pytest.raises(ValueError, match="must lie in"):
        windows(10, 4, 5)
