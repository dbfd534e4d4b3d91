"""Phased TTT: the phases written out; every update behind its scores; ranks; limits."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from techniques import _ttt, catalog
from techniques._lora import DocumentScorer, documents
from techniques.base import Shape, Verdict
from techniques.config import read_preset
from techniques.evaluation.lora_ttt import LoraTtt
from techniques.evaluation.phased_ttt import PhasedTtt
from techniques.settings import settings_from
from tests.techniques.evaluation_rig import on_ranks, run_scorer, single, tiny_model, tiny_tokens
from train_gpt import Evaluation

SHAPE = Shape(64, 2, 32, 4, 2, 2.0, 32, 32)
N = 180
ADAPT: dict[str, Any] = {"rank": 3, "alpha": 6.0, "lr": 0.01, "chunk": 8}


def config(**settings) -> PhasedTtt.Config:
    base: dict[str, Any] = {
        "batch_docs": 1,
        "prefix_docs": 4,
        "phases": 2,
        "global_lr": 0.05,
        "global_batch_seqs": 2,
    }
    base |= {"global_chunk_tokens": 40}
    return PhasedTtt.Config(**{**ADAPT, **base, **settings})


def scorer(**settings):
    return PhasedTtt(config(**settings)).scorer()


def some_documents(seed: int = 0) -> torch.Tensor:
    tokens = tiny_tokens(N, seed)
    tokens[tokens == 1] = 2
    tokens[torch.tensor([20, 65, 80, 120, 131, 160])] = 1
    return tokens


def sgd_pass(model, tokens, found):
    """One pass over documents, one piece after the other, momentum written out."""
    pieces = [(s + at, min(32, n - at)) for s, n in found for at in range(0, n, 32)]
    seen, chunk_of = 0, []
    for i in range(0, len(pieces), 2):
        chunk_of.append(seen // 40)
        seen += sum(n for _, n in pieces[i : i + 2])
    velocity = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for i, chunk in zip(range(0, len(pieces), 2), chunk_of, strict=True):
        sums, count = torch.zeros(()), 0
        for s, n in pieces[i : i + 2]:
            z = model.logits(model.hidden(tokens[s : s + n].long()[None]))[0]
            sums = sums + F.cross_entropy(z, tokens[s + 1 : s + n + 1].long(), reduction="sum")
            count += n
        model.zero_grad()
        (sums / count).backward()
        norm = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
        lr = 0.05 * 0.5 * (1 + math.cos(math.pi * chunk / max(1, chunk_of[-1])))
        for n, p in model.named_parameters():
            velocity[n] = 0.9 * velocity[n] + p.grad * min(1.0, 1.0 / (norm + 1e-6))
            p.data -= lr * velocity[n]


@pytest.mark.parametrize("order", ["stream", "longest"])
def test_equals_the_phases_written_out(order: str):
    tokens, model = some_documents(), tiny_model()
    run = run_scorer(scorer(order=order), tokens)
    slow = Evaluation(model, tokens, 32, 4, single())
    queue = documents(tokens)
    if order == "longest":
        queue = sorted(queue, key=lambda d: (-d[1], d[0]))
    for begin, end in ((0, 2), (2, 4), (4, len(queue))):
        for document in queue[begin:end]:
            DocumentScorer(slow, config(order=order)).score([document])
        if end < len(queue):
            sgd_pass(model, tokens, queue[:end])
    torch.testing.assert_close(run.nll, slow.nll, atol=2e-3, rtol=2e-3)
    for n, p in run.model.named_parameters():
        torch.testing.assert_close(p, dict(model.named_parameters())[n], atol=2e-4, rtol=1e-3)


def test_without_the_global_rate_it_is_lora_ttt_and_with_it_later_documents_move():
    tokens = some_documents()
    same = {k: getattr(config(), k) for k in ("beta1", "beta2", "eps", "weight_decay", "k", "o", "mlp")}
    lora = run_scorer(LoraTtt(LoraTtt.Config(**ADAPT, **same, batch_docs=1)).scorer(), tokens).nll
    assert torch.equal(run_scorer(scorer(global_lr=0.0), tokens).nll, lora)
    moved = (run_scorer(scorer(), tokens).nll - lora).abs()
    assert float(moved[:65].max()) == 0.0 and float(moved[65:].max()) > 1e-3


@pytest.mark.parametrize("position", [3, 64, 70, 130])
def test_scores_are_fixed_before_later_tokens_matter(position: int):
    tokens = some_documents()
    other = tokens.clone()
    other[position + 1 :] = tiny_tokens(N, seed=1)[position + 1 :]
    a, b = (run_scorer(scorer(), t).nll for t in (tokens, other))
    assert torch.equal(a[:position], b[:position]) and not torch.equal(a[position:], b[position:])


def test_ranks_take_the_same_global_steps():
    tokens = some_documents()
    whole = run_scorer(scorer(), tokens)
    runs = on_ranks(2, lambda world: run_scorer(scorer(), tokens, world=world))
    assert (torch.stack([r.written for r in runs]).sum(0) == 1).all()
    torch.testing.assert_close(torch.stack([r.nll for r in runs]).sum(0), whole.nll, atol=1e-3, rtol=1e-3)
    one, two = (dict(r.model.named_parameters()) for r in runs)
    assert all(torch.equal(p, two[n]) for n, p in one.items())
    facts = scorer()
    run_scorer(facts, tokens)
    assert facts.facts["phases"] == 2 and facts.facts["global_steps"] > 2


def test_a_warm_a_goes_on_and_b_does_not():
    tokens = some_documents()
    cold, warm = (run_scorer(scorer(warm_a=w, global_lr=0.0), tokens).nll for w in (False, True))
    assert torch.equal(cold[:28], warm[:28])  # the first document, and the second's first chunk: B is 0
    assert not torch.equal(cold[28:65], warm[28:65])


def test_declares_its_order_limits_and_variables():
    for order in ("stream", "longest"):
        one = PhasedTtt(config(order=order))
        assert one.verdict().verdict is Verdict.LEGAL and one.scores_by_document is (order == "longest")
    for settings in ({"chunk": 64}, {"phases": 5, "prefix_docs": 4}):
        with pytest.raises(ValueError, match="phased_ttt"):
            PhasedTtt(config(**settings)).check(SHAPE)
    environ = {"TTT_ENABLED": "1", "PHASED_TTT_ENABLED": "1", "TTT_LORA_RANK": "80", "GLOBAL_TTT_LR": "0.002"}
    values = settings_from([], environ, catalog.metadata(), has_gpu=True).values
    assert values["phased_ttt.rank"] == 80 and values["phased_ttt.global_lr"] == 0.002
    assert not values["score_first_ttt"] and not values["lora_ttt"]
    assert read_preset("pr1855")["phased_ttt.prefix_docs"] == 2500


def test_a_step_of_many_tokens_is_taken_in_parts():
    assert _ttt.parts_of(range(5), 1 << 15) == [range(0, 2), range(2, 4), range(4, 5)]
    assert _ttt.parts_of([7, 8], 1 << 20) == [[7], [8]] and _ttt.parts_of([], 8) == []
