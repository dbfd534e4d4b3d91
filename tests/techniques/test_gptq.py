"""GPTQ against the naive loop over columns, its own objective, and the inputs that its hooks must see."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.trainer.gptq_solve import published_loop
from techniques import _quant
from techniques._quant import (
    CLIP_PERCENTILES,
    clip_scales,
    feedback,
    gptq_batch,
    gptq_solve,
    hessian_error,
    in_place,
    inverse_factor,
    quantize_lite,
    reverse_factor,
    round_rows,
    self_generated,
    top_quantiles,
)
from techniques.base import Shape, Verdict
from techniques.quantization.gptq import Gptq, GptqQuantizer
from tests.techniques.evaluation_rig import tiny_model, tiny_tokens
from trainer.parameters import parameter

C = Gptq.Config(calib_batches=3, block_size=8)
SHAPE = Shape(64, 2, 32, 4, 2, 2.0, 32, 32)


def correlated(columns: int, seed: int = 0, samples: int = 400) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, columns, generator=g) @ torch.randn(columns, columns, generator=g) / columns**0.5
    return x.T @ x / samples


def weights(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def with_hessian(hessian: torch.Tensor, config=C) -> GptqQuantizer:
    quantizer = GptqQuantizer(config)
    quantizer.hessians["w"] = hessian
    return quantizer


def naive(w: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, bits: int, config) -> torch.Tensor:
    """One column at a time: the inverse of the remaining columns' Hessian is computed anew each time."""
    qmax, h, w = 2 ** (bits - 1) - 1, hessian.double().clone(), w.double().clone()
    dead = [j for j in range(len(h)) if h[j, j] == 0]
    live = [float(h[j, j]) for j in range(len(h)) if j not in dead]
    for j in dead:
        h[j, j], w[:, j] = 1.0, 0.0
    diagonal = [0.0 if j in dead else float(h[j, j]) for j in range(len(h))]
    for j in range(len(h)):
        h[j, j] += config.damp * sum(live) / len(live)
    order = sorted(range(len(h)), key=lambda j: -diagonal[j]) if config.act_order else list(range(len(h)))
    q = torch.zeros_like(w)
    for k, j in enumerate(order):
        rest = order[k:]
        inverse = torch.linalg.inv(h[rest][:, rest])
        q[:, j] = (w[:, j] / scale.double()).round().clamp(-qmax, qmax)
        error = (w[:, j] - scale.double() * q[:, j]) / inverse[0, 0]
        w[:, rest] -= error[:, None] * inverse[0]
    return q.to(torch.int8)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize(("columns", "block"), [(24, 8), (21, 8), (16, 128), (16, 1)])
def test_equals_the_naive_loop(act_order: bool, columns: int, block: int):
    w, h, config = weights(7, columns), correlated(columns), replace(C, act_order=act_order, block_size=block)
    h[3], h[:, 3] = 0, 0  # a dead column
    scales = clip_scales(w, 5, "tiny")
    q = gptq_solve(w, h, scales, 5, config)
    assert q is not None and q.shape == (5, 7, columns) and q.dtype is torch.int8 and not q[:, :, 3].any()
    for p in range(5):
        assert torch.equal(q[p], naive(w, h, scales[p], 5, config))


def test_beats_rounding_in_its_own_objective_though_not_in_plain_error():
    for seed in range(6):
        w, h = weights(16, 48, seed), correlated(48, seed)
        for bits in (4, 6):
            q, scale = with_hessian(h).quantize("w", w, bits)
            ours = hessian_error(w, q, scale, h)
            rounded = hessian_error(w, round_rows(w, scale, bits), scale, h)
            lite_q, lite_scale = quantize_lite(w, bits, "tiny")
            assert ours <= 0.9 * rounded and ours <= hessian_error(w, lite_q, lite_scale, h)
            slow = sum(float(e @ h.double() @ e) for e in w.double() - q.double() * scale.double()[:, None])
            assert float(ours) == pytest.approx(slow)


def test_an_identity_hessian_is_gptq_lite():
    w = weights(9, 40) * torch.rand(9, 40).pow(-0.3)
    for act_order in (True, False):
        for bits in (4, 6, 8):
            q, scale = with_hessian(torch.eye(40), replace(C, act_order=act_order)).quantize("w", w, bits)
            lite_q, lite_scale = quantize_lite(w, bits, "tiny")
            assert torch.equal(q, lite_q) and torch.equal(scale, lite_scale)


def test_a_permutation_of_the_columns_permutes_the_result():
    w, h = weights(6, 20), correlated(20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(5))
    q, scale = with_hessian(h).quantize("w", w, 6)
    moved_q, moved_scale = with_hessian(h[order][:, order]).quantize("w", w[:, order], 6)
    assert torch.equal(moved_q, q[:, order]) and torch.equal(moved_scale, scale)
    for config in (C, replace(C, act_order=False)):
        got = with_hessian(h, config).quantize("w", w, 6)
        assert got[0].shape == w.shape and got[1].shape == (6,)
        assert any(torch.equal(got[1], s) for s in clip_scales(w, 6, "tiny"))  # from the original weights


def test_clip_rules_and_scale_floors_differ():
    w, h = weights(8, 300) * torch.rand(8, 300).pow(-0.4), correlated(300, samples=200)
    by_hessian, by_mse = (
        with_hessian(h, replace(C, clip_rule=rule, block_size=64)).quantize("w", w, 4)
        for rule in ("hessian", "mse")
    )
    assert hessian_error(w, *by_hessian, h) <= hessian_error(w, *by_mse, h)
    small = with_hessian(h, replace(C, scale_floor="published", block_size=64))
    _, scale = small.quantize("w", w * 1e-3, 6)
    assert float(scale.max()) == float(torch.tensor(1 / 31).half()) and small.facts["rows_at_floor"] == 8


def test_failures_fall_back_and_are_counted():
    w = weights(4, 12)
    for bad in (torch.full((12, 12), torch.nan), torch.eye(12) - 3 * torch.ones(12, 12)):
        quantizer = with_hessian(bad)
        q, _ = quantizer.quantize("w", w, 6)
        assert torch.equal(q, quantize_lite(w, 6, "tiny")[0]) and quantizer.facts["cholesky_failed"] == 1
    quantizer.quantize("tok_emb", w, 8)
    assert quantizer.facts["no_hessian"] == 1 and quantizer.facts["solved"] == 0
    q, _ = with_hessian(torch.zeros(12, 12)).quantize("w", w, 6)  # every column dead
    assert not q.any()


def test_hooks_see_every_matrix_and_the_hessian_is_the_mean_of_the_inputs():
    model, tokens = tiny_model(), tiny_tokens(4 * 64)
    batches = [(tokens[i * 64 : i * 64 + 64].view(2, 32).long(), tokens) for i in range(4)]
    quantizer = Gptq(C).quantizer()
    quantizer.calibrate(model, iter(batches))
    names = {n for n, p in model.named_parameters() if p.role in ("attn", "mlp")}
    assert quantizer.hessians.keys() == names and len(names) == 12 and quantizer.facts["hessians"] == 12
    assert not any(m._forward_pre_hooks for m in model.modules())
    x = torch.cat([batch[0] for batch in batches[:3]])  # calib_batches = 3
    with torch.no_grad():  # layer 0's attention input, by hand
        e = F.rms_norm(F.embedding(x, model.tok_emb), (32,))
        mix = model.blocks[0].resid_mix
        n = F.rms_norm(mix[0] * e + mix[1] * e, (32,)).reshape(-1, 32)
    expected = sum(torch.outer(row, row) for row in n) / len(n)
    for name in ("c_q", "c_k", "c_v"):
        h = quantizer.hessians[f"blocks.0.attn.{name}.weight"]
        torch.testing.assert_close(h, expected, atol=1e-5, rtol=1e-4)
    assert quantizer.hessians["blocks.1.mlp.proj.weight"].shape == (64, 64)


def test_matching_nothing_missing_a_matrix_or_no_data_is_an_error():
    batches = [(tiny_tokens(64)[:64].view(2, 32).long(), tiny_tokens(64))]
    with pytest.raises(ValueError, match="no attn or mlp matrix"):
        Gptq(C).quantizer().calibrate(torch.nn.Linear(4, 4), iter(batches))
    model = tiny_model()
    model.blocks[0].bank = parameter(torch.zeros(4, 4), "attn")  # no module shows its input
    with pytest.raises(ValueError, match=r"blocks\.0\.bank"):
        Gptq(C).quantizer().calibrate(model, iter(batches))
    with pytest.raises(ValueError, match="never ran"):
        Gptq(C).quantizer().calibrate(tiny_model(), iter(()))


def test_lowers_the_error_of_the_models_output():
    """On held-out tokens the 4-bit model's logits are closer to the original's than under gptq_lite."""
    tokens, errors = tiny_tokens(40 * 64), {}
    batches = [(tokens[i * 64 : i * 64 + 64].view(2, 32).long(), tokens) for i in range(40)]
    for name in ("lite", "gptq"):
        model, held_out = tiny_model(), tiny_tokens(64, seed=9)[:64].view(2, 32).long()
        quantizer = Gptq(replace(C, calib_batches=40, block_size=32)).quantizer()
        quantizer.calibrate(model, iter(batches))
        with torch.no_grad():
            before = model.logits(model.hidden(held_out))
            for n, p in model.named_parameters():
                if p.role in ("attn", "mlp"):
                    q, s = quantizer.quantize(n, p, 4) if name == "gptq" else quantize_lite(p, 4, "tiny")
                    p.copy_(q.float() * s.float()[:, None])
            errors[name] = float((model.logits(model.hidden(held_out)) - before).square().mean())
    assert errors["gptq"] < 0.9 * errors["lite"]
    assert (
        quantizer.facts["solved"] == 12 and 0.0 < quantizer.facts["worst_hessian_error_over_rounding"] < 1.0
    )


def test_declares_its_cost_and_its_verdict():
    shape = Shape(64, 2, 32, 4, 2, 2.0, 32, 32)
    assert Gptq(C).cost(shape).calibration_passes == 3.0
    assert Gptq.legality.verdict is Verdict.LEGAL_IF_TIMED and Gptq.legality.admitted("record")


def test_the_tied_embeddings_hessian_is_that_of_the_final_norms_outputs():
    model, tokens = tiny_model(), tiny_tokens(64)[:64].view(2, 32).long()
    for embedding in (False, True):
        quantizer = Gptq(replace(C, embedding=embedding)).quantizer()
        quantizer.calibrate(model, iter([(tokens, tokens)]))
        assert ("tok_emb" in quantizer.hessians) is embedding
    with torch.no_grad():
        h = model.hidden(tokens).reshape(-1, 32)
    expected = torch.stack([torch.outer(row, row) for row in h]).mean(0)
    torch.testing.assert_close(quantizer.hessians["tok_emb"], expected, atol=1e-5, rtol=1e-4)
    q, s = quantizer.quantize("tok_emb", model.tok_emb.detach(), 5)
    plain = round_rows(model.tok_emb.detach(), s, 5)
    assert quantizer.facts["no_hessian"] == 0 and hessian_error(
        model.tok_emb, q, s, expected
    ) < hessian_error(model.tok_emb, plain, s, expected)
    untied = Gptq(replace(C, embedding=True)).quantizer()
    untied.calibrate(tiny_model(tie_embeddings=False), iter([(tokens, tokens)]))
    assert "head.weight" in untied.hessians and "tok_emb" not in untied.hessians


def refuse():
    raise AssertionError("training data were read")
    yield


def test_calibration_on_its_own_sequences_reads_no_data():
    config = replace(C, calibration="self", self_sequences=11, self_tokens=7, temperature=0.5)
    model, quantizer = tiny_model(), Gptq(config).quantizer()
    quantizer.calibrate(model, refuse())
    assert not quantizer.reads_data and len(quantizer.hessians) == 12
    sequences = torch.cat(list(self_generated(model, config, rank=0, ranks=1)))
    assert sequences.shape == (11, 7)  # batches of 8 and 3
    by_hand = Gptq(replace(C, calib_batches=1)).quantizer()
    by_hand.calibrate(model, iter([(sequences, sequences)]))
    for name, h in quantizer.hessians.items():
        torch.testing.assert_close(h, by_hand.hessians[name], atol=1e-5, rtol=1e-4)
    assert (
        Gptq(config).verdict().verdict is Verdict.LEGAL and Gptq(config).cost(SHAPE).calibration_passes == 0
    )


def test_own_sequences_follow_the_models_distribution_and_are_the_same_on_two_ranks():
    config = replace(C, calibration="self", self_sequences=20, self_tokens=5, temperature=1e-2)
    model = tiny_model()
    whole = list(self_generated(model, config, rank=0, ranks=1))
    shares = [list(self_generated(model, config, rank=r, ranks=2)) for r in (0, 1)]
    for i, batch in enumerate(whole):
        assert torch.equal(batch, shares[i % 2][i // 2])
        with torch.no_grad():  # near temperature 0 each token is the likeliest one
            likeliest = model.logits(model.hidden(batch)).argmax(-1)
        assert float((likeliest[:, :-1] == batch[:, 1:]).float().mean()) > 0.95
    assert len({int(x) for batch in whole for x in batch[:, 0]}) > 5  # the first is drawn uniformly


def test_own_sequences_must_fit_the_model():
    with pytest.raises(ValueError, match=r"self_tokens.*longest sequence, but got 2048 and 32"):
        Gptq(replace(C, calibration="self")).check(SHAPE)
    Gptq(C).check(SHAPE)


@pytest.mark.parametrize("columns", [5, 24])
def test_the_reverse_factor_is_the_same_and_solves_alike(columns: int):
    h = correlated(columns).double()
    h = (h + h.T) / 2 + 0.01 * torch.eye(columns)
    one, other = inverse_factor(h), reverse_factor(h)
    assert one is not None and other is not None and bool((other.tril(-1) == 0).all())
    torch.testing.assert_close(one, torch.linalg.inv(other), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(other @ other.T, h)
    assert inverse_factor(-h) is None and reverse_factor(-h) is None
    w, scales = weights(7, columns), clip_scales(weights(7, columns), 5, "tiny")
    plain = gptq_solve(w, correlated(columns), scales, 5, C)
    turned = gptq_solve(w, correlated(columns), scales, 5, replace(C, factor="reverse"))
    assert plain is not None and turned is not None and torch.equal(plain, turned)


def test_damping_by_role():
    config = replace(C, damp=0.01, damp_embed=0.005, damp_mlp=0.02)
    damp = GptqQuantizer(config).damp_of
    names = ("tok_emb", "head.weight", "blocks.0.mlp.fc.weight", "blocks.0.attn.c_q.weight")
    assert [damp(n) for n in names] == [0.005, 0.005, 0.02, 0.01]
    w, h = weights(7, 24), correlated(24)
    found = []
    for value in (0.0, 0.5):
        quantizer = GptqQuantizer(replace(C, damp_mlp=value))
        quantizer.hessians = {"blocks.0.mlp.fc.weight": h}
        found.append(quantizer.quantize("blocks.0.mlp.fc.weight", w, 4)[0])
    scales = clip_scales(w, 4, "tiny")
    by_hand = gptq_solve(w, h, scales, 4, replace(C, damp=0.5))
    assert by_hand is not None and any(torch.equal(found[1], q) for q in by_hand)
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("factor", ["inverse", "reverse"])
@pytest.mark.parametrize(("rows", "columns", "block"), [(5, 150, 128), (9, 70, 32), (1, 40, 7), (33, 17, 64)])
def test_equals_the_published_loop_alone_and_among_others(factor: str, rows: int, columns: int, block: int):
    """Matrices of one shape, each with its own Hessian, solved together: the integers of each one's loop."""
    config = replace(C, block_size=block, factor=factor)
    hessians = [correlated(columns, seed, samples=90) for seed in range(3)]
    hessians[1][2], hessians[1][:, 2] = 0, 0
    given = [weights(rows, columns, seed) for seed in range(3)]
    scales = [clip_scales(w, 5, "tiny") for w in given]
    system = [found for h in hessians if (found := feedback(h, config, config.damp))]
    q, errors, squares = gptq_batch(given, system, torch.stack(scales), 5, config)
    for i, (w, h) in enumerate(zip(given, hessians, strict=True)):
        alone = gptq_solve(w, h, scales[i], 5, config)
        mine = in_place(q[i], system[i].order)
        slow = torch.stack([published_loop(w.double(), h, s, 5, config) for s in scales[i]])
        assert alone is not None and torch.equal(alone, mine) and torch.equal(mine, slow)
        torch.testing.assert_close(errors[i], hessian_error(w, slow, scales[i], h), rtol=1e-5, atol=1e-9)
        live = w * (h.diagonal() != 0)
        by_hand = (live - slow.double() * scales[i].double()[..., None]).square().sum((-2, -1))
        torch.testing.assert_close(squares[i], by_hand)


def test_all_at_once_on_two_threads_or_in_pieces_gives_what_each_gives_alone(monkeypatch):
    sizes = {"a": (6, 24), "b": (6, 24), "c": (40, 24), "d": (24, 6), "e": (6, 24), "bad": (6, 24)}
    jobs = [(n, weights(*size, seed=i), 4 + i % 2, None) for i, (n, size) in enumerate(sizes.items())]
    told = []
    threads = torch.get_num_threads()
    for together, on, width in ((False, 1, 4096), (True, 1, 4096), (True, 2, 4096), (True, 2, 40)):
        quantizer = GptqQuantizer(C)
        quantizer.hessians = {n: correlated(c, seed=c) for n, (_, c) in sizes.items() if n != "e"}
        quantizer.hessians["bad"] = torch.full((24, 24), torch.nan)
        monkeypatch.setattr(_quant, "at_once", lambda _, width=width: width)
        torch.set_num_threads(on)
        try:
            if together:
                quantizer.solve_jobs(jobs)
            pairs = [quantizer.quantize(*job) for job in jobs]
            assert torch.get_num_threads() == on
        finally:
            torch.set_num_threads(threads)
        told.append((pairs, quantizer.facts))
    for pairs, facts in told[1:]:
        for (q, scale), (first_q, first_scale) in zip(pairs, told[0][0], strict=True):
            assert torch.equal(q, first_q) and torch.equal(scale, first_scale)
        assert facts == pytest.approx(told[0][1])
    assert told[0][1]["solved"] == 4 and told[0][1]["cholesky_failed"] == told[0][1]["no_hessian"] == 1


def test_more_damping_comes_before_rounding_and_is_counted():
    h = correlated(24)
    w = weights(6, 24)
    h = h - (torch.linalg.eigvalsh(h)[0] + 0.05 * h.diagonal().mean()) * torch.eye(24)
    assert bool((h.diagonal() > 0).all())  # indefinite by five hundredths of the diagonal's mean
    quantizer = with_hessian(h, replace(C, damp=0.01))
    q, scale = quantizer.quantize("w", w, 4)
    facts = quantizer.facts
    assert facts["solved"] == facts["damped_more"] == 1 and facts["cholesky_failed"] == 0
    by_hand = gptq_solve(w, h, scale[None], 4, replace(C, damp=0.1))
    assert by_hand is not None and torch.equal(by_hand[0], q)
    hopeless = with_hessian(h, replace(C, damp=1e-8))
    assert torch.equal(hopeless.quantize("w", w, 4)[0], quantize_lite(w, 4, "tiny")[0])
    assert hopeless.facts["cholesky_failed"] == 1 and hopeless.facts["damped_more"] == 0


@pytest.mark.parametrize("columns", [1, 2, 3, 64, 511, 1537, 20_011])
def test_the_highest_quantiles_are_torchs(columns: int):
    x = weights(3, columns).abs()
    shares = torch.tensor(CLIP_PERCENTILES)
    assert torch.equal(top_quantiles(x, shares), torch.quantile(x, shares, dim=1))
