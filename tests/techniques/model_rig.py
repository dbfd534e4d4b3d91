"""For tests of model techniques: a tiny model, its parameters moved off their first values, what flows."""

from typing import Any

import torch

import train_gpt
from techniques import catalog
from techniques.config import Resolved, resolve

TINY = {
    "vocab_size": 64,
    "num_layers": 3,
    "model_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "train_seq_len": 16,
    "train_batch_tokens": 128,
    "compute_dtype": "float32",
    "device": "cpu",
}


def settle(settings: dict[str, Any]) -> Resolved:
    return resolve({"file": TINY | settings}, catalog.runtime())


def build(settings: dict[str, Any], *, move: bool = True) -> Any:
    """A model of these settings; a parameter's move depends on its name alone."""
    model = train_gpt.build_model(settle(settings))
    if move:
        with torch.no_grad():
            for name, p in model.named_parameters():
                generator = torch.Generator().manual_seed(train_gpt.seam_seed(3, name))
                p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model


def copy_shared(source: Any, target: Any) -> None:
    """`target` takes every parameter that `source` has too."""
    own = dict(source.named_parameters())
    with torch.no_grad():
        for name, p in target.named_parameters():
            if name in own:
                p.copy_(own[name])


def some_ids(rows: int = 2, length: int = 16, *, bos: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(2, 64, (rows, length), generator=generator)
    ids[torch.rand(rows, length, generator=generator) < bos] = 1
    return ids


def rms(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()


def streams(model: Any, ids: torch.Tensor) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
    """(layer, stream into the block, stream out of it) in the order of the forward."""
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    handles = [
        block.register_forward_hook(lambda _m, args, out, i=i: seen.append((i, args[0], out)))
        for i, block in enumerate(model.blocks)
    ]
    model.hidden(ids)
    for handle in handles:
        handle.remove()
    return seen
