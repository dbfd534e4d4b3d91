"""Techniques that change the model's sizes: a factored embedding, layers without attention."""

import pytest
import torch
import torch.nn.functional as F

import train_gpt
from tests.techniques.model_rig import build, rms, settle, some_ids, streams


@pytest.mark.parametrize("tied", [True, False])
def test_a_factored_embedding_is_two_products(tied: bool):
    settings = {"factored_embedding": True, "factored_embedding.dim": 6, "tie_embeddings": tied}
    run, model, ids = settle(settings), build(settings), some_ids()
    assert model.tok_emb.shape == (64, 6)
    _, first, _ = streams(model, ids)[0]
    torch.testing.assert_close(first, rms(F.embedding(ids, model.tok_emb) @ model.embed_up.weight.T))
    h = model.hidden(ids)
    z = h @ model.embed_down.weight.T @ model.tok_emb.T if tied else h @ model.head.weight.T
    torch.testing.assert_close(model.project(h), z)
    assert sum(p.numel() for p in model.parameters()) == sum(t.numel for t in run.shape().tensor_specs())
    model(ids, ids.roll(-1, 1)).backward()
    assert all(p.grad is not None and bool(p.grad.ne(0).any()) for p in model.parameters())
    with pytest.raises(ValueError, match="less than model_dim"):
        settle(settings | {"factored_embedding.dim": 32})


def test_a_bare_layer_is_its_mlp_alone():
    settings = {"bare_layers": True, "qk_gain": True}
    run, model, ids = settle(settings), build(settings), some_ids()
    block = model.blocks[0]
    assert not any(n.startswith("blocks.0.attn") for n, _ in model.named_parameters())
    _, x, out = streams(model, ids)[0]
    x = block.resid_mix[0] * x + block.resid_mix[1] * x
    z = torch.relu(rms(x) @ block.mlp.fc.weight.T).square() @ block.mlp.proj.weight.T
    torch.testing.assert_close(out, x + block.mlp_scale * z)
    assert sum(p.numel() for p in model.parameters()) == sum(t.numel for t in run.shape().tensor_specs())
    whole = settle({}).shape()
    assert run.shape().flops_per_token() < whole.flops_per_token()
    with pytest.raises(ValueError, match="leave a layer"):
        settle({"bare_layers": True, "bare_layers.first_n": 3})


@pytest.mark.parametrize("scorer", ["lora_ttt", "phased_ttt"])
def test_adapters_reach_models_of_such_sizes(scorer: str):
    from tests.techniques.evaluation_rig import single, tiny_tokens

    settings = {"bare_layers": True, "factored_embedding": True, "factored_embedding.dim": 8, scorer: True}
    settings |= {f"{scorer}.chunk": 8, f"{scorer}.batch_docs": 2, f"{scorer}.mlp": True}
    run, model = settle(settings), build(settings).eval()
    told = train_gpt.Evaluation(model, tiny_tokens(40), 16, 4, single())
    run.techniques[scorer].scorer().score(told)
    assert bool(told.written.all())
