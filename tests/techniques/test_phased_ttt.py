"""Phased TTT: the phases written out; every update behind its scores; ranks; limits."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from techniques import _ttt, catalog
from techniques._lora import DocumentScorer, documents, phases_of, queue_of
from techniques._ttt import split_cap
from techniques._windows import share_hints
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


def sgd_pass(model, tokens, found, batch_seqs=2):
    """One pass over documents (each with the token behind it) as one stream: chunks of 40, of each but the
    last the whole sequences of 32, position by position in its document's piece; momentum written out."""
    stream = [int(t) for s, n in found for t in tokens[s : s + n + 1]]
    chunks = [range(c, min(c + 40, len(stream) - 1)) for c in range(0, len(stream) - 1, 40)]
    velocity = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for c, chunk in enumerate(chunks[:-1]):
        lr = 0.05 * 0.5 * (1 + math.cos(math.pi * c / (len(chunks) - 1)))
        whole = chunk[: len(chunk) // 32 * 32]
        for step in [whole[i : i + 32 * batch_seqs] for i in range(0, len(whole), 32 * batch_seqs)]:
            pieces: list[list[int]] = []
            for p in step:
                if not pieces or stream[p] == 1 or len(pieces[-1]) == 32:
                    pieces.append([])
                pieces[-1].append(p)
            sums = torch.zeros(())
            for piece in pieces:
                z = model.logits(model.hidden(torch.tensor([[stream[p] for p in piece]])))[0]
                sums = sums + F.cross_entropy(
                    z, torch.tensor([stream[p + 1] for p in piece]), reduction="sum"
                )
            model.zero_grad()
            (sums / len(step)).backward()
            norm = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
            for n, p in model.named_parameters():
                velocity[n] = 0.9 * velocity[n] + p.grad * min(1.0, 1.0 / (norm + 1e-6))
                p.data -= lr * velocity[n]


# order -> batches of two in the order in which they are scored, each by its documents' first positions, and
# what is trained on behind it: documents begin at 0, 20, 65, 80, 120, 131, 160 and have 20, 45, 15, 40, 11,
# 29, 20 positions; boundaries are 2 and 4 documents.
SCHEDULE = {
    "stream": [([0, 20], [0, 20]), ([65, 80], [0, 20, 65, 80]), ([120, 131], []), ([160], [])],
    "longest": [([20], []), ([131, 80], [131, 80]), ([0, 160], [0, 160, 131, 80]), ([120, 65], [])],
}


@pytest.mark.parametrize("order", SCHEDULE)
def test_equals_the_phases_written_out(order: str):
    tokens, model = some_documents(), tiny_model()
    more: dict[str, Any] = {"order": order, "batch_docs": 2, "tail": "document"}
    told = scorer(**more)
    run = run_scorer(told, tokens)
    slow = Evaluation(model, tokens, 32, 4, single())
    length = dict(documents(tokens))
    for batch, trained in SCHEDULE[order]:
        DocumentScorer(slow, config(**more)).score([(b, length[b]) for b in batch])
        sgd_pass(model, tokens, [(b, length[b]) for b in trained])
    torch.testing.assert_close(run.nll, slow.nll, atol=2e-3, rtol=2e-3)
    for n, p in run.model.named_parameters():
        torch.testing.assert_close(p, dict(model.named_parameters())[n], atol=2e-4, rtol=1e-3)
    assert told.facts["phases"] == 2 and told.facts["global_steps"] > 2


def test_a_boundary_waits_for_its_batch_and_one_batch_ends_one_phase():
    queue = [(k, [(0, 1)] * n) for k, n in enumerate((5, 5, 5, 1))]
    assert phases_of(queue, 6, 2) == [(1, 3), (2, 6)]  # 3 of 6 are there after the first five documents
    assert phases_of(queue, 4, 4) == [(1, 1), (2, 2), (3, 3)]  # the fourth would end with the last batch
    assert phases_of(queue, 100, 1) == [] and phases_of(queue[:1], 1, 1) == []
    assert phases_of(queue, 15, 1) == [(3, 15)]


def test_the_longest_batch_comes_first_and_may_be_short_of_documents():
    found = [(0, 4), (4, 8), (13, 4), (17, 2), (19, 9)]
    expected = [(2, [(19, 9)]), (1, [(13, 4), (4, 8)]), (0, [(17, 2), (0, 4)])]
    assert queue_of(found, 2, "longest") == expected
    even = queue_of([(k, 3) for k in range(6)], 2, "longest")
    assert [number for number, _ in even] == [0, 1, 2]  # equal batches in rising order
    assert queue_of(found, 4, "stream") == [(0, found[:4]), (1, found[4:])]


def test_a_prefix_of_less_than_two_chunks_trains_nothing_and_epochs_repeat_a_chunk():
    tokens, facts = some_documents(), {}
    for name, settings in {
        "short": {"global_chunk_tokens": 4000},
        "once": {},
        "twice": {"global_epochs": 2},
    }.items():
        one = scorer(**settings)
        run_scorer(one, tokens)
        facts[name] = one.facts
    assert facts["short"]["phases"] == facts["short"]["global_steps"] == 0
    assert facts["twice"]["global_steps"] == 2 * facts["once"]["global_steps"] > 0


def test_a_batch_that_is_not_full_leaves_no_a_behind():
    """Of three documents, two a batch, longest first: the long one is alone, so the others begin cold."""
    tokens = tiny_tokens(60)
    tokens[tokens == 1] = 2
    tokens[torch.tensor([0, 30, 45])] = 1
    same = {"order": "longest", "batch_docs": 2, "global_lr": 0.0, "prefix_docs": 1, "phases": 1}
    cold, warm = (run_scorer(scorer(warm_a=w, **same), tokens).nll for w in (False, True))
    assert torch.equal(cold, warm)


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
    for settings in ({"chunk": 64}, {"phases": 5, "prefix_docs": 4}, {"global_chunk_tokens": 31}):
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


def test_a_tilt_changes_what_is_written_and_no_step():
    tokens = some_documents() % 5
    tokens[torch.tensor([20, 65, 80, 120, 131, 160])] = 1
    more: dict[str, Any] = {"tilt_order": 2, "tilt_threshold": 0.5, "tilt_beta": 1.5}
    plain, told = scorer(), scorer(tilt=True, **more)
    before, after = run_scorer(plain, tokens), run_scorer(told, tokens)
    for n, p in after.model.named_parameters():
        assert torch.equal(p, dict(before.model.named_parameters())[n]), n
    begins = torch.cat([torch.full((n,), s) for s, n in documents(tokens)])
    hints = share_hints(tokens, 2, 0.5, begins)
    gain = before.nll - after.nll
    hit = hints == tokens[1:]
    assert told.facts["hinted"] == int((hints >= 0).sum()) > 30
    assert torch.equal(gain[hints < 0], torch.zeros_like(gain[hints < 0]))
    q = (-before.nll[hit]).exp()  # there the hint is the target: nats' = nats + ln(1 + q(e^β − 1)) − β
    expected = 1.5 - torch.log1p(q * (math.exp(1.5) - 1))
    torch.testing.assert_close(gain[hit], expected, atol=1e-5, rtol=1e-5)
    assert (gain[(hints >= 0) & ~hit] < 0).all()
    wide = scorer(tilt=True, tilt_scope="stream", **more)
    run_scorer(wide, tokens)
    assert wide.facts["hinted"] == int((share_hints(tokens, 2, 0.5) >= 0).sum()) != told.facts["hinted"]
    assert PhasedTtt(config(tilt=True, tilt_scope="stream")).verdict().verdict is Verdict.CONTESTED
    assert PhasedTtt(config(tilt=True)).verdict().verdict is Verdict.LEGAL


def test_two_caps_begin_as_one_and_learn_in_the_phases():
    tokens = some_documents()
    still = {"global_lr": 0.0}
    torch.testing.assert_close(
        run_scorer(scorer(asym_cap=True, **still), tokens).nll, run_scorer(scorer(**still), tokens).nll
    )
    model = tiny_model()
    plain = model.cap
    with split_cap(model):
        cap, z = model.cap, torch.linspace(-60, 60, 31)
        torch.testing.assert_close(cap(z), plain(z))
        with torch.no_grad():
            cap.above.fill_(20.0)
            cap.below.fill_(7.0)
        for value, out in zip(z.tolist(), cap(z).tolist(), strict=True):
            c = 20.0 if value > 0 else 7.0
            assert out == pytest.approx(c * math.tanh(value / c), abs=1e-4)
    assert model.cap is plain
    moved = run_scorer(scorer(asym_cap=True, global_lr=1.0), tokens)
    assert not torch.equal(moved.nll, run_scorer(scorer(global_lr=1.0), tokens).nll)


def test_a_warm_up_of_the_rate_and_sequences_across_documents(monkeypatch: pytest.MonkeyPatch):
    tokens, rates = some_documents(), []
    settle = _ttt.set_rates

    def noted(optimizer: Any, lr: float, done: float) -> None:
        rates.append(lr * 0.5 * (1 + math.cos(math.pi * done)))
        settle(optimizer, lr, done)

    monkeypatch.setattr("techniques.evaluation.phased_ttt.set_rates", noted)
    same = {"prefix_docs": 6, "phases": 1, "global_lr": 0.04}
    run_scorer(scorer(**same, warmup_chunks=2, warmup_lr=0.01), tokens)
    assert rates[:3] == pytest.approx([0.01, 0.04, 0.04])
    assert all(a >= b for a, b in itertools.pairwise(rates[2:]))
    one, other = (run_scorer(scorer(**same, respect_documents=r), tokens).nll for r in (True, False))
    assert not torch.equal(one, other)
