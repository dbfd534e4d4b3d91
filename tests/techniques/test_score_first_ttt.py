"""Score-first TTT: nothing scored depends on later tokens, and any world takes the same steps."""

import copy
import math

import pytest
import torch

from techniques.base import Shape
from techniques.evaluation.score_first_ttt import ScoreFirstTtt, ttt_parameters
from techniques.evaluation.sliding_window import SlidingWindow
from tests.techniques.evaluation_rig import on_ranks, run_scorer, tiny_model, tiny_tokens

SHAPE = Shape(64, 2, 32, 4, 2, 2.0, 32, 32)
N, CHUNK, STRIDE = 210, 96, 8  # three chunks; the last is cut


def scorer(**settings):
    base = {"epochs": 2, "lr": 0.05, "chunk_tokens": CHUNK, "stride": STRIDE, "batch_seqs": 2}
    return ScoreFirstTtt(ScoreFirstTtt.Config(**(base | settings))).scorer()


def test_equals_the_plain_procedure_step_by_step():
    tokens, model = tiny_tokens(N), tiny_model()
    run = run_scorer(scorer(), tokens, batch_seqs=1)
    slow, velocity = torch.full((N,), math.nan), {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for chunk in range(3):
        for p in range(0, N, 3):
            start = 0 if p < 32 else ((p - 32) // STRIDE + 1) * STRIDE
            first_scored = 0 if start == 0 else start + 32 - STRIDE
            if first_scored // CHUNK == chunk:
                ids = tokens[start : p + 1].long()[None]
                with torch.no_grad():
                    slow[p] = -model.logits(model.hidden(ids))[0, -1].log_softmax(-1)[int(tokens[p + 1])]
        lr = 0.05 * 0.5 * (1 + math.cos(math.pi * chunk / 2))
        for _epoch in range(2 if chunk < 2 else 0):
            for group in ([0, 1], [2]):
                at = [chunk * CHUNK + 32 * k for k in group]
                ids = torch.stack([tokens[a : a + 32] for a in at]).long()
                targets = torch.stack([tokens[a + 1 : a + 33] for a in at]).long()
                model.zero_grad()
                model(ids, targets).backward()
                norm = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
                for n, p in model.named_parameters():
                    velocity[n] = 0.9 * velocity[n] + p.grad * min(1.0, 1.0 / (norm + 1e-6))
                    p.data -= lr * velocity[n]
    torch.testing.assert_close(run.nll[::3], slow[::3], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chunk", [0, 1])
def test_scores_are_fixed_before_later_tokens_matter(chunk: int):
    tokens = tiny_tokens(N)
    other, end = tokens.clone(), (chunk + 1) * CHUNK
    other[end + 1 :] = tiny_tokens(N, seed=1)[end + 1 :]  # position end - 1 has the target tokens[end]
    a, b = run_scorer(scorer(), tokens), run_scorer(scorer(), other)
    assert torch.equal(a.nll[:end], b.nll[:end])
    assert not torch.equal(a.nll[end:], b.nll[end:])


def test_no_learning_rate_is_sliding_and_a_learning_rate_is_not():
    tokens = tiny_tokens(N)
    sliding = run_scorer(SlidingWindow(SlidingWindow.Config(stride=STRIDE)).scorer(), tokens, batch_seqs=1)
    assert torch.equal(run_scorer(scorer(lr=0.0), tokens, batch_seqs=1).nll, sliding.nll)
    trained = run_scorer(scorer(), tokens, batch_seqs=1)
    in_first = (CHUNK - 32) // STRIDE * STRIDE + 32  # positions that chunk 0's windows score
    assert torch.equal(trained.nll[:in_first], sliding.nll[:in_first])
    assert not torch.equal(trained.nll[in_first:], sliding.nll[in_first:])


def test_weights_change_and_the_last_chunk_is_never_trained():
    tokens, one = tiny_tokens(N), scorer()
    run = run_scorer(one, tokens)
    start = dict(tiny_model().named_parameters())
    assert all(not torch.equal(p, start[n]) for n, p in run.model.named_parameters())
    assert all(p.grad is None and p.requires_grad for p in run.model.parameters())
    assert one.facts["chunks"] == 3 and one.facts["trained_chunks"] == 2 and one.facts["steps"] == 2 * 2 * 2
    other = tokens.clone()
    other[2 * CHUNK + 1 :] = 0  # the last chunk's own tokens
    again = run_scorer(scorer(), other)
    assert all(
        torch.equal(p, dict(run.model.named_parameters())[n]) for n, p in again.model.named_parameters()
    )


def test_frozen_blocks_stand_still():
    one = scorer(freeze_blocks=1)
    run, start = run_scorer(one, tiny_tokens(N)), dict(tiny_model().named_parameters())
    still = {n for n, p in run.model.named_parameters() if torch.equal(p, start[n])}
    assert still == {n for n in start if n.startswith("blocks.0.")}
    assert one.facts["frozen_elements"] == sum(start[n].numel() for n in still) > 0
    assert all(p.requires_grad for p in run.model.parameters())
    empty = copy.deepcopy(run.model)
    empty.blocks = torch.nn.ModuleList()
    with pytest.raises(ValueError, match="matches no parameter"):
        ttt_parameters(empty, 1, "score_first_ttt")


@pytest.mark.parametrize("size", [2, 3])  # three ranks: one of them has no sequence in some steps
def test_ranks_take_the_same_steps_as_one(size: int):
    tokens = tiny_tokens(N)
    whole = run_scorer(scorer(), tokens)
    runs = on_ranks(size, lambda world: run_scorer(scorer(), tokens, world=world))
    assert (torch.stack([r.written for r in runs]).sum(0) == 1).all()
    torch.testing.assert_close(torch.stack([r.nll for r in runs]).sum(0), whole.nll, atol=5e-5, rtol=1e-5)
    for n, p in whole.model.named_parameters():
        ranks = [dict(r.model.named_parameters())[n] for r in runs]
        assert all(torch.equal(ranks[0], r) for r in ranks)
        torch.testing.assert_close(ranks[0], p, atol=2e-5, rtol=1e-4)


def test_limits():
    assert ScoreFirstTtt(ScoreFirstTtt.Config(stride=8, epochs=2)).cost(SHAPE).eval_passes == 3.0 + 6.0
    for settings, words in (
        ({"chunk_tokens": 16}, "chunk_tokens"),
        ({"stride": 33}, "stride"),
        ({"stride": 8, "freeze_blocks": 3}, "num_layers"),
    ):
        with pytest.raises(ValueError, match=words):
            ScoreFirstTtt(ScoreFirstTtt.Config(**settings)).check(SHAPE)
    with pytest.raises(ValueError, match="only one chunk"):
        run_scorer(scorer(chunk_tokens=4096), tiny_tokens(N))
