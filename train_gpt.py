"""Trains one small language model under a clock, packs it under a byte limit, and scores it: val_bpb, bits
per byte.

    python train_gpt.py [config.json] [--preset NAME] [--name value …]
    torchrun --standalone --nproc_per_node=8 train_gpt.py

Read from the top: world, data, model, optimisers, schedule, train, quantise and pack, score, main. Techniques
enter at seams (techniques/base.py lists them): while the model is built, each gives a module or a function,
or nothing. At run time there is no flag and no `if` on a technique. `Seams` (trainer/seams.py) gives at each
seam what stands there, and notes what a technique changed by it. With every technique off this is the
challenge's naive baseline.

The six stages are data → train → average → quantize → pack → evaluate. Each has a key (a hash of all that its
result depends on); a finished stage found in `out_dir` under the same key is not run again, and its recorded
seconds count. Two clocks are kept: *timed* is what the challenge's rule counts (on a CPU in processor
seconds: World.seconds), *true* is everything a user waits for.

Legend: B batch, T sequence, D model_dim, H query heads, K key/value heads, Dh head_dim, V vocab_size, L
layers.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corpus import dataset as corpus_dataset
from corpus import shards
from corpus.bpb import usable_tokens
from corpus.tokenizer import BOS_ID
from techniques import catalog
from techniques.base import Batch, Hyper, Shape, Technique, Unavailable
from techniques.config import Config, Resolved, batch_at, codes, digest, source_files, stage_keys
from techniques.parts import Averager, MatrixOptimizer, Quantizer, Scorer
from techniques.settings import help_text, settings_from
from trainer.artifact import Packed, RoundToNearest, ZlibCodec, num_changed, pack, unpack
from trainer.attention import Attend, pick_attention
from trainer.audit import implausible
from trainer.machine import end_process
from trainer.muon import Muon, newton_schulz
from trainer.parameters import Linear, load_weights, parameter, swapped
from trainer.reporter import Log, Reporter
from trainer.scoring import Meter, Score, TokenView, compile_scoring, score_again, score_changed, score_of
from trainer.seams import Seams
from trainer.stream import TokenStream, block_of
from trainer.world import Clock, Diverged, World, check_finite, compute_dtype, maybe_compile, write_atomically

ROOT = Path(__file__).resolve().parent

# ------------------------------------------------------------------------------------------------------------
# Data: batches that any number of ranks reads alike (trainer/stream.py: in which order)
# ------------------------------------------------------------------------------------------------------------


class Loader:
    """Batches of (inputs, targets) [B, T]. A step's tokens are cut into `micro_batches` parts; rank r takes
    parts r, r + world, …: the global batch is the same for any world size."""

    def __init__(
        self,
        config: Config,
        world: World,
        paths: Sequence[Path],
        owner: Technique | None = None,
        block: int = 0,
    ):
        self.config, self.world = config, world
        tokens, block = [shards.read_shard(path) for path in paths], block or config.train_seq_len
        self.stream = owner.loader(tokens, config.seed, block) if owner else TokenStream(tokens)

    def step(self, size: Batch | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's micro-batches of one optimiser step, of the full size or another."""
        parts = self.config.micro_batches
        size = size or Batch(self.config.train_batch_tokens, self.config.train_seq_len)
        before = self.stream.read
        tokens = self.stream.batch(parts, size.tokens // parts // size.seq_len, size.seq_len)
        self.world.ledger.note("train", before, self.stream.read - before)
        for i in range(self.world.rank, parts, self.world.size):
            part = torch.from_numpy(tokens[i].astype(np.int64))
            if self.world.device.type == "cuda":  # from pinned memory the copy waits for nobody
                part = part.pin_memory().to(self.world.device, non_blocking=True)
            self.world.ledger.taken("train")
            yield part[:, :-1].contiguous(), part[:, 1:].contiguous()


# ------------------------------------------------------------------------------------------------------------
# Model: the baseline, with seams
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Build:
    """What every module needs while the model is built."""

    shape: Shape
    config: Config
    seams: Seams
    dtype: torch.dtype  # of the compute; parameters are float32
    attend: Attend


def seam_seed(seed: int, *where: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr((seed, *where)).encode()).digest()[:6], "big")


def enter(build: Build, seam: str, *args: Any) -> dict[str, Any]:
    """name -> what each technique gives at `seam`. A technique's random numbers are its own: switching one on
    or off changes nobody else's initialisation."""
    given: dict[str, Any] = {}
    for technique in build.seams.entering(seam):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seam_seed(build.config.seed, technique.name, seam, *args[1:]))
            part = getattr(technique, seam)(*args)
        if part is not None:
            given[technique.name] = part
    return given


class Chain(nn.Module):
    """x -> the techniques' modules, one after the other; empty: x."""

    def __init__(self, build: Build, seam: str, *args: Any):
        super().__init__()
        self.steps: Any = enter(build, seam, build.shape, *args)
        for name, part in self.steps.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        for part in self.steps.values():
            x = part(x, *rest)
        return x


class Slot(nn.Module):
    """The one technique that claims the slot, else the baseline's part."""

    def __init__(self, build: Build, seam: str, baseline: Any, *args: Any):
        super().__init__()
        self.steps: Any = enter(build, seam, build.shape, *args)
        for name, part in {"baseline": baseline, **self.steps}.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
        self.parts: Any = [*self.steps.values(), baseline]  # a list: the first one runs

    def forward(self, *args: Any) -> Any:
        return self.parts[0](*args)


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x²) + eps) over the last axis, no learned gain."""
    return F.rms_norm(x, (x.size(-1),))


def rotary_tables(length: int, dims: int, base: float) -> tuple[Tensor, Tensor]:
    """cos, sin [length, 1, dims/2] of position · base^(-2i/dims)."""
    theta = base ** (-torch.arange(0, dims, 2, dtype=torch.float32) / dims)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), theta)[:, None, :]
    return angle.cos(), angle.sin()


class Rotary(nn.Module):
    """Rotates all Dh dims of q and k, pairs (i, i + Dh/2)."""

    def __init__(self, shape: Shape):
        super().__init__()
        cos, sin = rotary_tables(max(shape.seq_len, shape.eval_seq_len), shape.head_dim, shape.rope_base)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        cos = self.cos[: q.size(1)].to(q.dtype)
        sin = self.sin[: q.size(1)].to(q.dtype)
        cos = torch.cat((cos, cos), dim=-1)
        sin = torch.cat((sin, -sin), dim=-1)

        def turn(x: Tensor) -> Tensor:
            """Whole rows of all heads at once: long rows are quick."""
            rolled = x.roll(x.size(-1) // 2, dims=-1)
            return x * cos.expand_as(x[0]).contiguous() + rolled * sin.expand_as(x[0]).contiguous()

        return turn(q), turn(k)


def relu_squared(z: Tensor) -> Tensor:
    return torch.relu(z).square()


class Attention(nn.Module):
    def __init__(self, build: Build, layer: int):
        super().__init__()
        shape = build.shape
        d, self.num_heads, self.num_kv_heads = shape.model_dim, shape.num_heads, shape.num_kv_heads
        self.c_q = Linear(d, d, "attn")
        self.c_k = Linear(d, shape.kv_dim, "attn")
        self.c_v = Linear(d, shape.kv_dim, "attn")
        self.proj = Linear(d, d, "attn", zero=True)
        self.q_gain = parameter(torch.full((shape.num_heads,), 1.5), "scalar")
        self.values = Chain(build, "values", layer)
        self.rope = Slot(build, "rope", Rotary(shape))
        self.attend = Slot(build, "attend", lambda q, k, v, _ctx: build.attend(q, k, v))
        self.attn_out = Chain(build, "attn_out", layer)

    def forward(self, n: Tensor, ctx: dict[str, Any]) -> Tensor:
        b, t, d = n.shape
        ctx["queries"] = q = self.c_q(n).view(b, t, self.num_heads, -1)
        k = self.c_k(n).view(b, t, self.num_kv_heads, -1)
        ctx["values"] = v = self.c_v(n).view(b, t, self.num_kv_heads, -1)
        v = self.values(v, ctx)
        q, k = self.rope(rms_norm(q), rms_norm(k))
        q = q * self.q_gain.to(q.dtype)[:, None]
        y = self.attn_out(self.attend(q, k, v, ctx), v, n, ctx)
        return self.proj(y.reshape(b, t, d))


class MLP(nn.Module):
    def __init__(self, build: Build, layer: int):
        super().__init__()
        self.fc = Linear(build.shape.model_dim, build.shape.mlp_dim, "mlp")
        self.proj = Linear(build.shape.mlp_dim, build.shape.model_dim, "mlp", zero=True)
        self.activation = Slot(build, "activation", relu_squared, layer)

    def forward(self, n: Tensor) -> Tensor:
        return self.proj(self.activation(self.fc(n)))


class Block(nn.Module):
    def __init__(self, build: Build, layer: int):
        super().__init__()
        d = build.shape.model_dim
        self.norm = Chain(build, "norm", layer)
        bare = layer < build.shape.bare_layers
        attn, self.mlp = Attention(build, layer), MLP(build, layer)
        self.attn = None if bare else attn  # drawn all the same
        self.attn_scale = None if bare else parameter(torch.ones(d), "scalar")
        self.mlp_scale = parameter(torch.ones(d), "scalar")
        self.resid_mix = parameter(torch.stack((torch.ones(d), torch.zeros(d))), "scalar")
        self.residual = Slot(build, "residual", sequential, layer)
        self.feed = Slot(build, "mlp", lambda mlp, n, _ctx: mlp(n), layer)

    def mix(self, x: Tensor, x0: Tensor) -> Tensor:
        mix = self.resid_mix.to(x.dtype)
        return mix[0] * x + mix[1] * x0

    def attention(self, x: Tensor, ctx: dict[str, Any]) -> Tensor:
        if self.attn is None or self.attn_scale is None:
            return torch.zeros_like(x)
        return self.attn_scale.to(x.dtype) * self.attn(self.norm(rms_norm(x), ctx, "attn"), ctx)

    def feed_forward(self, x: Tensor, ctx: dict[str, Any]) -> Tensor:
        return self.mlp_scale.to(x.dtype) * self.feed(self.mlp, self.norm(rms_norm(x), ctx, "mlp"), ctx)

    def forward(self, x: Tensor, x0: Tensor, ctx: dict[str, Any]) -> Tensor:
        return self.residual(self, x, x0, ctx)


def sequential(block: Block, x: Tensor, x0: Tensor, ctx: dict[str, Any]) -> Tensor:
    """The baseline's block: attention, then the MLP on what attention has written."""
    x = block.mix(x, x0)
    x = x + block.attention(x, ctx)
    return x + block.feed_forward(x, ctx)


def add_skip(x: Tensor, skip: Tensor, weight: Tensor, _j: int) -> Tensor:
    return x + weight.to(x.dtype) * skip


class TanhCap(nn.Module):
    """z -> c·tanh(z/c) in float32."""

    def __init__(self, c: float):
        super().__init__()
        self.c = c

    def forward(self, z: Tensor) -> Tensor:
        return self.c * torch.tanh(z.float() / self.c)


class GPT(nn.Module):
    """ids [B,T] -> hidden [B,T,D] -> logits [B,T,V]. The first half of the blocks leaves skips that the rest
    take back, last in first out."""

    def __init__(self, build: Build):
        super().__init__()
        shape, config = build.shape, build.config
        d, v = shape.model_dim, shape.vocab_size
        self.dtype, self.has_skips, num_plain = build.dtype, shape.unet_skips, shape.num_plain_skips
        embed_dim, init_std = shape.embed_dim, config.tied_embed_init_std if shape.tie_embeddings else 1.0
        self.tok_emb = parameter((init_std * torch.randn(v, d))[:, : embed_dim or d].clone(), "embed")
        self.head = None if shape.tie_embeddings else Linear(d, v, "head", zero=True)
        self.embed_in = Chain(build, "embed_in")
        self.embed_out = Chain(build, "embed_out")
        self.shared: Any = nn.ModuleDict(enter(build, "shared", shape))
        self.blocks = nn.ModuleList(Block(build, layer) for layer in range(shape.num_layers))
        self.block_out = nn.ModuleList(Chain(build, "block_out", n) for n in range(shape.num_layers + 1))
        self.techniques = build.seams.techniques
        self.skip_weights = parameter(torch.ones(num_plain, d), "scalar")
        more = shape.num_skips - num_plain  # a plan that repeats layers leaves more skips
        self.loop_skip_weights = parameter(torch.ones(more, d), "scalar") if more else None
        self.skip = Slot(build, "skip", add_skip)
        self.cap = Slot(build, "cap", TanhCap(config.logit_softcap))
        self.cross_entropy = Slot(build, "cross_entropy", self.capped_cross_entropy)
        self.loss_terms = Chain(build, "loss_terms")
        self.plan = Slot(build, "plan", lambda _progress: tuple(range(shape.num_layers)))
        self.embed_up = Linear(embed_dim, d, "matrix") if embed_dim else None  # the last to draw
        self.embed_down = Linear(d, embed_dim, "matrix") if embed_dim and shape.tie_embeddings else None
        self.enter_phase(1.0)

    def enter_phase(self, progress: float) -> None:
        """From here on the graph is that of `progress` in [0, 1]; a fresh model has the last one."""
        self.phase, self.order = progress, self.plan(progress)
        self.visits = [self.order[:i].count(layer) for i, layer in enumerate(self.order)]
        for module in self.modules():
            if module is not self and hasattr(module, "enter_phase"):
                module.enter_phase(progress)  # type: ignore[operator]

    def drop_aux(self) -> None:
        """Without the parts that serve the training loss only: the model that the artifact holds."""
        for name in [n for n, _ in self.loss_terms.named_children()]:
            delattr(self.loss_terms, name)
        self.loss_terms.steps = {}

    def join_skip(self, x: Tensor, skip: Tensor, j: int) -> Tensor:
        """x with the j-th skip that is taken back."""
        late = j - self.skip_weights.size(0)  # a plan that repeats layers has more of them
        weight = self.skip_weights[j] if late < 0 else self.loop_skip_weights[late]  # type: ignore[index]
        return self.skip(x, skip, weight, j)

    def hidden(self, ids: Tensor) -> Tensor:
        """Final-norm hidden states [B,T,D] of ids [B,T]. A block finds in ctx how often its layer has run
        ("visit"), the stream before a skip joined it ("before_skip"), and, for a second lane of the stream
        ("lane", where a technique keeps one), the function by which the lane's own skip joins it ("join")."""
        x = F.embedding(ids, self.tok_emb).to(self.dtype)
        x = self.embed_in(x if self.embed_up is None else self.embed_up(x), ids)
        x = x0 = self.embed_out(rms_norm(x), ids)
        ctx: dict[str, Any] = {name: module(x0, ids) for name, module in self.shared.items()}
        skips: list[tuple[Tensor, Tensor]] = []  # of the stream, of its second lane
        half = len(self.order) // 2 if self.has_skips else 0
        for i, layer in enumerate(self.order):
            ctx |= {"visit": self.visits[i], "before_skip": x, "join": None}
            if i >= half and skips:
                skip, lane_skip = skips.pop()
                ctx["join"] = functools.partial(self.join_skip, skip=lane_skip, j=i - half)
                x = self.join_skip(x, skip, i - half)
            x = self.block_out[layer](self.blocks[layer](x, x0, ctx), ctx)
            if i < half:
                skips.append((x, ctx.get("lane", x)))
        return rms_norm(self.block_out[-1](x, ctx))

    def before_head(self, h: Tensor) -> Tensor:
        """What a tied table [V, e] multiplies."""
        return h if self.embed_down is None else self.embed_down(h)

    def project(self, h: Tensor) -> Tensor:
        """h·Eᵀ, [.., V] in h's dtype."""
        h = self.before_head(h)
        return F.linear(h, self.tok_emb.to(h.dtype)) if self.head is None else self.head(h)

    def capped_cross_entropy(self, z: Tensor, targets: Tensor) -> Tensor:
        """Mean nats of targets [N] under z [N,V] before the cap."""
        return F.cross_entropy(self.cap(z), targets)

    def logits(self, h: Tensor) -> Tensor:
        return self.cap(self.project(h))

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean nats per token, and what techniques add to the training loss."""
        h = self.hidden(ids)
        loss = self.cross_entropy(self.project(h).flatten(0, 1), targets.reshape(-1))
        return self.loss_terms(loss, h, targets, self.cross_entropy)


def build_model(
    resolved: Resolved, device: torch.device | str = "cpu", seams: Seams | None = None, *, init: bool = True
) -> GPT:
    """The model of these settings, initialised from `seed` alone. On device "meta" it costs nothing but
    counting; `init=False` leaves out the techniques' own initialisation, where weights are loaded anyway."""
    config, device, seams = resolved.config, torch.device(device), seams or Seams(resolved)
    dtype = torch.float32 if device.type == "meta" else compute_dtype(config, device)
    _, attend = pick_attention(config.attention if device.type != "meta" else "sdpa", device, dtype)
    build = Build(resolved.shape(), config, seams, dtype, attend)
    torch.manual_seed(config.seed)
    with torch.device("meta" if device.type == "meta" else "cpu"):
        model = GPT(build)
    for linear in model.modules():
        if isinstance(linear, Linear) and linear.weight.numel() >= config.quantize_min_numel:
            role = linear.weight.role  # type: ignore[attr-defined]
            chain = Chain(build, "weight", role, seams.bits(role))
            linear.stored_as = chain if chain.steps else None
    unrouted = [n for n, p in model.named_parameters() if not hasattr(p, "role")]
    assert not unrouted, f"parameters without a role: {unrouted}"
    if device.type != "meta" and init:
        for technique in seams.entering("init"):
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(seam_seed(config.seed, technique.name, "init"))
                technique.init(model)
            touched = sum(int((p != before[n]).sum()) for n, p in model.named_parameters())
            seams.changed(technique, "init", touched > 0, init_elements=touched)
    return model.to(device)


def technique_modules(model: GPT) -> dict[str, list[tuple[Chain | Slot, Any]]]:
    """technique -> every (seam module, part) through which it stands in the model."""
    found: dict[str, list[tuple[Chain | Slot, Any]]] = {}
    for module in model.modules():
        if isinstance(module, Chain | Slot):
            for name, part in module.steps.items():
                found.setdefault(name, []).append((module, part))
    return found


@contextlib.contextmanager
def without(model: GPT, name: str) -> Iterator[None]:
    """The model as if technique `name` had never entered the forward (its parameters stay where they are)."""
    places = technique_modules(model).get(name, [])
    saved = [(module, module.steps) for module, _ in places]
    try:
        for module, part in places:
            if isinstance(module, Slot):
                module.parts.remove(part)
            module.steps = {n: p for n, p in module.steps.items() if n != name}
        model.enter_phase(model.phase)
        yield
    finally:
        for (module, steps), (_, part) in zip(saved, places, strict=True):
            module.steps = steps
            if isinstance(module, Slot):
                module.parts.insert(0, part)
        model.enter_phase(model.phase)


# ------------------------------------------------------------------------------------------------------------
# Optimisers: one table from role to route
# ------------------------------------------------------------------------------------------------------------


# role -> (optimiser, field of Config with its learning rate, field of Hyper with its weight decay)
ROUTES = {
    "attn": ("muon", "matrix_lr", "muon_weight_decay"),
    "mlp": ("muon", "matrix_lr", "muon_weight_decay"),
    "matrix": ("muon", "matrix_lr", "muon_weight_decay"),
    "embed": ("adam", "embed_lr", "embed_weight_decay"),  # tied: tied_embed_lr
    "head": ("adam", "head_lr", "adam_weight_decay"),
    "scalar": ("adam", "scalar_lr", "adam_weight_decay"),
    "gate": ("adam", "scalar_lr", "adam_weight_decay"),
    "aux": ("adam", "head_lr", "adam_weight_decay"),
}


@dataclass(frozen=True)
class Optimizers:
    """Adam and the optimiser of the matrices: every parameter in exactly one group."""

    adam: torch.optim.Optimizer
    matrices: MatrixOptimizer
    params_by_role: dict[str, int]

    def __iter__(self) -> Iterator[torch.optim.Optimizer | MatrixOptimizer]:
        yield from (self.adam, self.matrices)


def build_optimizers(
    model: GPT, config: Config, hyper: Hyper, world: World, muon: Callable[..., MatrixOptimizer] = Muon
) -> Optimizers:
    """Every parameter goes by its role."""
    groups: dict[str, list[Tensor]] = {}
    split, early, late = hyper.layer_mults
    layers = {p: i for i, block in enumerate(model.blocks) for p in block.parameters()}
    for p in model.parameters():
        groups.setdefault(p.role, []).append(p)  # type: ignore[attr-defined]
    adam_groups: list[dict[str, Any]] = []
    muon_groups: dict[float, dict[str, Any]] = {}
    for role, params in groups.items():
        kind, lr_field, decay_field = ROUTES[role]
        mult = dict(hyper.lr_mults).get(role, 1.0)
        group = {"params": params, "weight_decay": getattr(hyper, decay_field), "decay_field": decay_field}
        if kind == "muon":
            for p in params:
                own = mult * ((early if layers[p] < split else late) if p in layers else 1.0)
                group["lr"] = config.matrix_lr * own
                muon_groups.setdefault(own, {**group, "params": []})["params"].append(p)
            continue
        lr = config.tied_embed_lr if role == "embed" and config.tie_embeddings else getattr(config, lr_field)
        adam_groups.append({**group, "lr": lr * mult})
    fused = world.device.type == "cuda"
    adam = torch.optim.AdamW(adam_groups, betas=(hyper.beta1, hyper.beta2), eps=hyper.adam_eps, fused=fused)
    dtype = compute_dtype(config, world.device)
    matrices = muon(list(muon_groups.values()), config.matrix_lr, hyper, world, dtype)
    by_role = {role: sum(p.numel() for p in params) for role, params in sorted(groups.items())}
    optimizers = Optimizers(adam, matrices, by_role)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    grouped = sum(len(g["params"]) for o in optimizers for g in o.param_groups)
    assert grouped == sum(1 for _ in model.parameters()), "a parameter is in no optimiser group, or in two"
    return optimizers


def orthogonalizer(seams: Seams) -> Callable[[Tensor, int], Tensor]:
    """Newton–Schulz, or what the techniques make of it; each is tried on a random matrix."""
    probe = torch.randn(1, 24, 16, generator=torch.Generator().manual_seed(0))
    return seams.chain(
        "orthogonalize", newton_schulz, differ=lambda old, new: not torch.equal(old(probe, 5), new(probe, 5))
    )


# ------------------------------------------------------------------------------------------------------------
# Schedule
# ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """Where a run stands in its budget."""

    step: int
    elapsed_s: float
    config: Config

    @property
    def budget_s(self) -> float:
        """Timed seconds for steps: the cap less what is kept back for calibration; 0: steps are the
        budget."""
        return max(0.0, self.config.max_wallclock_seconds - self.config.reserve_seconds)

    @property
    def progress(self) -> float:
        """Share of the budget that is used, in [0, 1]: by steps or by seconds, whichever is further."""
        by_time = self.elapsed_s / self.budget_s if self.budget_s else 0.0
        return min(1.0, max(self.step / self.config.iterations, by_time))


def baseline_lr_scale(moment: Moment) -> float:
    """The challenge's warm-down: linear to 0 over the last `warmdown_iters` steps, counted at the mean step
    time so far when seconds are the budget."""
    warmdown = moment.config.warmdown_iters
    if warmdown == 0:
        return 1.0
    by_steps = (moment.config.iterations - moment.step) / warmdown
    if not moment.budget_s:
        return max(0.0, min(1.0, by_steps))
    mean_step_s = moment.elapsed_s / max(moment.step, 1)
    left_s = max(0.0, moment.budget_s - moment.elapsed_s)
    return min(1.0, left_s / (warmdown * mean_step_s)) if mean_step_s else 1.0


# ------------------------------------------------------------------------------------------------------------
# Stage: train (and average)
# ------------------------------------------------------------------------------------------------------------


@dataclass
class Trained:
    """What the train stage leaves: the weights to export and the facts about how they came to be."""

    weights: dict[str, Tensor]  # averaged if a technique averages; CPU float32
    facts: dict[str, Any]


class Trainer:
    """One training run: model, optimisers, loader, schedule, clock."""

    def __init__(self, seams: Seams, world: World, data: corpus_dataset.Dataset, log: Log):
        self.seams, self.config, self.world, self.data = seams, seams.resolved.config, world, data
        self.log, self.reporter = log, Reporter(log, self.config)
        world.ledger.at("train", "model", lambda: self.clock.now())
        seams.ledger = world.ledger
        self.clock, self.step, self.train_loss, self.aux_loss = Clock(world), 0, math.nan, 0.0
        self.model = build_model(seams.resolved, world.device, seams)
        world.ledger.at("train", "build", still=self.model)
        self.hyper = seams.chain("hyper", Hyper())
        owner = seams.owner("muon")
        muon = owner.muon if owner else Muon
        self.optimizers = build_optimizers(self.model, self.config, self.hyper, world, muon)
        self.optimizers.matrices.orthogonalize = orthogonalizer(seams)
        seams.filled("muon", True)
        self.phases = sorted({0.0, *(p for t in seams.techniques.values() for p in t.phases())})
        self.sizes = {phase: batch_at(self.config, seams.techniques, phase) for phase in self.phases}
        self.loader = self.open_loader()
        given = [technique.stepper(self.model) for technique in seams.entering("stepper")]
        self.steppers: list[Callable[[float, float], None]] = [step for step in given if step is not None]
        self.scale = 1.0  # of the last step's learning rates
        self.compiled = maybe_compile(self.model, self.config, world)
        self.train_tokens, self.recent = 0, [0.0]  # timed seconds at the last steps' ends
        for technique in seams.entering("sizes"):
            seams.changed(technique, "sizes", technique.sizes(self.config.shape()) != self.config.shape())
        full = Batch(self.config.train_batch_tokens, self.config.train_seq_len)
        for technique in seams.entering("batch"):
            smaller = any(technique.batch(full, phase) != full for phase in self.phases)
            seams.changed(technique, "batch", smaller)
        self.averager: Averager | None = None

    def open_loader(self) -> Loader:
        """The training data from its first batch on."""
        owner, where = self.seams.owner("loader"), (self.config, self.world, self.data.train_paths)
        if owner:
            ours, plain = (next(loader.step())[0] for loader in (Loader(*where, owner), Loader(*where)))
            self.seams.filled("loader", not torch.equal(ours, plain))
        return Loader(*where, owner, block_of(size.seq_len for size in self.sizes.values()))

    # -- one step ------------------------------------------------------------------------------------------

    def lr_scale(self, moment: Moment) -> float:
        baseline = baseline_lr_scale(moment)
        scale = self.seams.slot("lr_scale", lambda _progress: baseline, moment.progress)
        self.seams.filled("lr_scale", abs(scale - baseline) > 1e-9)
        return scale

    def train_step(self, moment: Moment) -> Tensor:
        """Forward and backward of every micro-batch, then one step of every optimiser. Returns the mean
        loss."""
        c, progress = self.config, moment.progress
        self.scale = scale = self.lr_scale(moment)
        for step in self.steppers:
            step(progress, scale)
        loss = torch.zeros((), device=self.world.device)
        size = self.sizes[max(phase for phase in self.phases if phase <= self.model.phase)]
        self.train_tokens += size.tokens
        for ids, targets in self.loader.step(size):
            part = self.compiled(ids, targets) / c.micro_batches
            part.backward()
            loss += part.detach()
        self.optimizers.matrices.settle_gradients(self.model.parameters(), c.grad_clip_norm)
        hyper = self.seams.chain("hyper_at", self.hyper, progress)
        warm = min(1.0, moment.step / max(1, hyper.muon_momentum_warmup_steps))
        momentum = (1 - warm) * hyper.muon_momentum_start + warm * hyper.muon_momentum
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * scale * hyper.lr_mult
                group["weight_decay"] = getattr(hyper, group["decay_field"])
                if "momentum" in group:
                    group["momentum"] = momentum
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return self.world.sum(loss)

    # -- the run -------------------------------------------------------------------------------------------

    def enter_phase(self, progress: float) -> None:
        """The last declared phase that began at or before `progress`."""
        phase = max(p for p in self.phases if p <= progress)
        if phase != self.model.phase:
            self.model.enter_phase(phase)
            self.reporter.phase(phase, self.step)

    def warm_up(self) -> None:
        """Real steps that trigger compilation of every phase's graph, then everything they changed is put
        back: training starts from the true initial state and from the first token."""
        if not self.config.warmup_steps:
            return
        model_state, first = copy.deepcopy(self.model.state_dict()), self.loader.stream.state()
        optimizer_states = [copy.deepcopy(o.state_dict()) for o in self.optimizers]
        for phase in self.phases:
            self.enter_phase(phase)
            for i in range(self.config.warmup_steps):
                self.train_step(Moment(0, 0.0, self.config))
                self.reporter.warm_up(i + 1)
        self.model.load_state_dict(model_state)
        for optimizer, state in zip(self.optimizers, optimizer_states, strict=True):
            optimizer.load_state_dict(state)
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"]
        self.seams.forget_steps()
        self.train_tokens = 0
        self.loader.stream.load(first)

    def run(self) -> Trained:
        c, true_start = self.config, time.perf_counter()
        self.world.ledger.at("train", "warm-up", still=self.model)
        self.warm_up()
        self.world.ledger.at("train", "steps")
        next_report, self.step = 1, 0
        self.clock.start()
        self.averager = self.seams.slot("averager", lambda *_: None, self.model, c.iterations)
        while True:
            moment, room = self.moment()
            last = moment.progress >= 1.0 or not room
            self.enter_phase(moment.progress)
            if c.num_reports and moment.progress * c.num_reports >= next_report - 1e-9 and not last:
                next_report = int(moment.progress * c.num_reports + 1e-9) + 1
                self.report(moment)
            if last or (c.val_loss_every and self.step % c.val_loss_every == 0):
                self.validate(moment)
            if last:
                break
            loss = self.train_step(moment)
            self.step += 1
            if self.averager is not None:
                self.averager.update(self.model, self.scale)
            self.watch(loss)
        self.reporter.stopped(self.step, self.clock.now())
        self.clock.stop()
        self.model.enter_phase(1.0)
        self.audit_schedule_and_model()
        weights = self.exported_weights()
        facts = {
            "steps": self.step,
            "train_loss": self.train_loss,
            "train_nats": self.train_loss - self.aux_loss,
            "timed_s": self.world.max(self.clock.seconds),
            "true_s": time.perf_counter() - true_start,
            "train_tokens": self.train_tokens,
            "stream": self.loader.stream.state(),
        }
        return Trained(weights, facts)

    def moment(self) -> tuple[Moment, bool]:
        """Where the run stands, the same on every rank; and whether another step ends within the budget even
        if it takes twice as long as the slowest of the last fifty."""
        c, queued = self.config, self.world.keep_pace()
        now = self.world.max(self.clock.now()) if c.max_wallclock_seconds else 0.0
        moment, self.recent = Moment(self.step, now, c), [*self.recent[-50:], now]
        slowest = max((b - a for a, b in itertools.pairwise(self.recent)), default=0.0)
        return moment, not moment.budget_s or now + (2 + queued) * slowest < moment.budget_s

    def watch(self, loss: Tensor) -> None:
        """The log line, and a look at the loss: every step on a CPU, every tenth on a GPU (looking waits for
        it)."""
        c = self.config
        due = c.train_log_every and (self.step <= 10 or self.step % c.train_log_every == 0)
        if not (due or self.world.device.type == "cpu" or self.step % 10 == 0):
            return
        self.train_loss = float(loss)
        if not math.isfinite(self.train_loss):
            raise Diverged(f"train_loss is {self.train_loss} at step {self.step}")
        if due:
            self.reporter.step(self.step, self.train_loss, self.clock.now())

    def validate(self, moment: Moment) -> None:
        """The plain score of the current weights; the training clock stands still."""
        self.clock.stop()
        score = score_plainly(self.model, self.world, self.data, self.config)
        self.world.ledger.same_tokens("validation")
        self.reporter.validation(self.step, moment.progress, score, self.clock.now())
        self.clock.start()

    def report(self, moment: Moment) -> None:
        """An early BPB for whoever may prune this run: same tokens each time, raw and averaged weights."""
        self.clock.stop()
        scores = {"val_bpb": self.early_bpb()}
        if self.averager is not None:
            with swapped(self.model, self.averager.weights()):
                scores["val_bpb_average"] = self.early_bpb()
        now = {"step": self.step, "train_loss": self.train_loss, "elapsed_s": self.clock.now()}
        now["tokens"] = self.world.ledger.tokens  # their count and hash
        self.reporter.report(scores, progress=moment.progress, lr_scale=self.lr_scale(moment), **now)
        self.clock.start()

    def early_bpb(self) -> float:
        """The plain score of the model as it stands, on a report's tokens."""
        score = score_plainly(self.model, self.world, self.data, self.config, self.config.report_tokens)
        self.world.ledger.same_tokens("report")
        return score.val_bpb

    def exported_weights(self) -> dict[str, Tensor]:
        weights = {n: p.detach() for n, p in self.model.named_parameters()}
        self.seams.audit.link("weights", self.early_bpb())
        if self.averager is not None:
            self.clock.start()
            name, averaged = self.seams.name("averager", ""), self.averager.weights()
            self.clock.stop()
            touched = sum(int((averaged[n] != w).sum()) for n, w in weights.items())
            self.seams.filled("averager", touched > 0, exported_elements=touched, **self.averager.facts)
            last = self.probe_loss()
            with swapped(self.model, averaged):
                self.seams.audit.averaged(name, last, self.probe_loss())
                self.seams.audit.link(name, self.early_bpb())
            self.log(f"{name}:applying averaged weights")
            weights = averaged
        return {n: w.to("cpu", torch.float32).clone() for n, w in weights.items()}

    def audit_schedule_and_model(self) -> None:
        """Each technique of the model is taken out of the finished model once: does the loss notice?"""
        self.seams.note_steps()
        self.world.ledger.at("train", "audit", still=self.model)
        ids, targets = next(iter(self.loader.step()))
        self.probe = ids, targets = ids[:2], targets[:2]
        with torch.no_grad():
            loss = self.model(ids, targets)
            check_finite("the training loss of the last weights", loss)
            logits = self.model.logits(self.model.hidden(ids))
            self.aux_loss = float(loss - F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
            for name, places in technique_modules(self.model).items():
                with without(self.model, name):
                    changed = float(self.model(ids, targets)) - float(loss)
                params = sum(p.numel() for n, p in self.model.named_parameters() if f".{name}." in f".{n}")
                self.seams.audit.changed(name, "loss", changed != 0.0)
                self.seams.audit.note(name, params=params, places=len(places), train_loss_without=changed)

    @torch.no_grad()
    def probe_loss(self) -> float:
        """The training loss of the model as it stands, on the audit's batch, nats per token."""
        loss = self.model(*self.probe)
        check_finite("the training loss of the exported weights", loss)
        return float(loss)


# ------------------------------------------------------------------------------------------------------------
# Stages: quantize and pack (trainer/artifact.py is the file's format)
# ------------------------------------------------------------------------------------------------------------


@dataclass
class Export:
    """What a correction of the stored tensors may look at."""

    weights: Mapping[str, Tensor]
    roles: Mapping[str, str]
    hessians: Mapping[str, Tensor]  # mean XᵀX of the inputs, where a quantiser collected them
    seams: Seams

    @functools.cached_property
    def code_bytes(self) -> int:
        return len(submitted_script(self.seams.resolved))

    def bytes(self, packed: list[Packed]) -> int:
        """Of the whole submission, code and all."""
        artifact = pack(packed, self.seams.resolved.head(), self.seams.codec())
        return len(artifact) + self.code_bytes

    def note(self, **facts: Any) -> None:
        """Figures of the technique that corrects."""
        self.seams.note(**facts)


def stored(export: Export, bits: Mapping[str, int], quantizer: Quantizer, model: GPT) -> list[Packed]:
    """Every tensor as it is stored: rounded to integers of `bits` where they say so, then corrected."""
    seams = export.seams
    packed: list[Packed] = []
    with seams.ledger.lap(model):
        if seams.owner("quantizer") and hasattr(quantizer, "prepare"):
            quantizer.prepare(export, bits)  # type: ignore[attr-defined]
        for name, role in export.roles.items():
            weight = export.weights[name]
            scale = None
            if name in bits:
                rule = seams.slot("row_scale", lambda _: None, role)
                weight, scale = quantizer.quantize(name, weight, bits[name], rule)
                assert weight.dtype is torch.int8 and scale.dtype is torch.float16, name
            else:
                weight = weight.to(torch.float32 if role == "scalar" else torch.float16)
            packed.append(Packed(name, weight, scale))
    seams.note_rounding(export.weights, bits, packed)
    check_finite("a stored weight", *(p.q if p.scale is None else p.scale for p in packed))
    seams.note_of("quantizer", **quantizer.facts)
    with seams.ledger.lap(model):
        return seams.chain("correct", packed, export, differ=num_changed, noun="tensors")


def quantize(
    weights: Mapping[str, Tensor], model: GPT, seams: Seams, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[list[Packed], dict[str, Any]]:
    """Matrices of at least `quantize_min_numel` elements become integers, scalars stay float32, the rest
    float16. Techniques choose the bits, the scales, the rounding, and then correct what is stored; `batches`
    are training data, inside the budget."""
    check_finite("a trained weight", *weights.values())
    load_weights(model, weights)
    quantizer: Quantizer = seams.slot("quantizer", RoundToNearest)
    with seams.ledger.lap(model):
        quantizer.calibrate(model, batches)
    seams.note_of("quantizer", calibrate_s=seams.ledger.lap_s)
    roles: dict[str, str] = {n: p.role for n, p in model.named_parameters() if p.role != "aux"}  # type: ignore[attr-defined]
    bits = {
        n: seams.bits(role)
        for n, role in roles.items()
        if role != "scalar"
        and seams.bits(role) < 16
        and (w := weights[n]).ndim == 2
        and w.numel() >= seams.resolved.config.quantize_min_numel
    }
    export = Export(weights, roles, quantizer.hessians, seams)
    with seams.ledger.lap(model):
        bits = seams.chain("tensor_bits", bits, export)
    packed = stored(export, bits, quantizer, model)
    if seams.owner("fit"):
        again = functools.partial(stored, export, bits, quantizer, model)
        packed = seams.slot("fit", lambda *_: packed, packed, bits, export, again)
    return packed, {"quantized_elements": sum(weights[n].numel() for n in bits)}


def submitted_script(resolved: Resolved) -> bytes:
    """The one file that `search.py export` writes: what the challenge counts as code (bundle/lean.py)."""
    from bundle.lean import lean

    return lean(resolved)


# ------------------------------------------------------------------------------------------------------------
# Stage: evaluate. Every position's nats are written exactly once
# ------------------------------------------------------------------------------------------------------------


class Evaluation(TokenView):
    """What a scorer gets: the model, the validation tokens, and a ledger that takes each position exactly
    once.

    Position p is the prediction of tokens[p + 1] from tokens[: p + 1]; there are `num_positions` of them."""

    def __init__(self, model: GPT, tokens: Tensor, seq_len: int, batch_seqs: int, world: World):
        self.model, self.stream, self.seq_len, self.world = model, tokens, seq_len, world
        self.batch_seqs = max(1, batch_seqs)
        self.num_positions = tokens.numel() - 1
        self.hidden: Callable[[Tensor], Tensor] = model.hidden  # compiled, where that pays
        self.nll = torch.from_numpy(np.zeros(self.num_positions, np.float32))  # no memory until it is written
        self.written = torch.from_numpy(np.zeros(self.num_positions, np.uint8))
        self.ledger = Meter(self)

    def write(self, start: int, nll: Tensor) -> None:
        """Nats [n] of positions start … start + n - 1. ValueError if one of them has a score already."""
        end = start + nll.numel()
        if bool(self.written[start:end].any()):
            raise ValueError(f"Positions {start} … {end - 1} were scored twice: each token counts once.")
        self.written[start:end] = 1
        self.nll[start:end] = nll.detach().float().cpu()
        self.ledger.wrote(start, end)

    def result(self, data: corpus_dataset.Dataset) -> Score:
        """Sums in float64 over all positions and ranks; ValueError unless the ranks together scored each
        once."""
        covered = self.world.sum(self.written.to(self.world.device))
        if int(covered.min()) != 1 or int(covered.max()) != 1:
            missing, twice = int((covered == 0).sum()), int((covered > 1).sum())
            raise ValueError(
                f"Every token must be scored once, but {missing} were missed and {twice} scored twice."
            )
        return score_of(self, data, self.num_positions)


class PlainScorer:
    """The baseline's protocol: sequences side by side, every position of each scored."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}

    @torch.no_grad()
    def score(self, run: Evaluation) -> None:
        t = run.seq_len
        mine = run.world.my_range(math.ceil(run.num_positions / t))
        for first in range(mine.start, mine.stop, run.batch_seqs):
            starts = [s * t for s in range(first, min(first + run.batch_seqs, mine.stop))]
            whole = [s for s in starts if s + t <= run.num_positions]
            for group in ([whole] if whole else []) + [[s] for s in starts if s not in whole]:
                ids, targets = run.windows(group, min(t, run.num_positions - group[0]))
                for s, nll in zip(group, run.nats(run.hidden(ids), targets).cpu(), strict=True):
                    run.write(s, nll)


def validation_tokens(data: corpus_dataset.Dataset, config: Config, limit: int = 0) -> Tensor:
    """The scored tokens plus one, uint16: whole evaluation sequences, at most `val_tokens` and `limit` of
    them."""
    caps = [n + 1 for n in (config.val_tokens, limit) if n]
    return torch.from_numpy(np.array(data.val_tokens(max_tokens=min(caps, default=None))))


def open_evaluation(
    model: GPT, world: World, data: corpus_dataset.Dataset, config: Config, limit: int = 0
) -> Evaluation:
    t, tokens = config.shape().eval_seq_len, validation_tokens(data, config, limit)
    world.ledger.note("val", 0, tokens.numel(), tokens=tokens)
    return Evaluation(model, tokens, t, config.val_batch_size // t // world.size, world)


def score_plainly(
    model: GPT, world: World, data: corpus_dataset.Dataset, config: Config, limit: int = 0
) -> Score:
    was_training = model.training
    model.eval()
    with torch.no_grad(), world.ledger.report(model):
        run = open_evaluation(model, world, data, config, limit)
        PlainScorer().score(run)
        score = run.result(data)  # it reads the bytes of CaseOps data
    model.train(was_training)
    return score


def evaluate(artifact: bytes, seams: Seams, world: World, data: Any) -> tuple[Score, str, dict[str, float]]:
    """(score, protocol, seconds timed and true) of the artifact's bytes under the active scorer."""
    start, clock, protocol = time.perf_counter(), Clock(world), seams.name("scorer", "plain")
    config = seams.resolved.config
    world.ledger.at("evaluate", protocol)
    clock.start()
    _, weights = unpack(artifact, {codec.name: codec for codec in (ZlibCodec(), seams.codec())})
    model = build_model(seams.resolved, world.device, init=False)
    model.drop_aux()
    load_weights(model, weights)
    model.eval()
    run = open_evaluation(model, world, data, config)
    compile_scoring(run, seams.resolved, protocol, clock)
    scorer: Scorer = seams.slot("scorer", PlainScorer)
    with run.ledger.watching():
        scorer.score(run)
    score = run.result(data)
    seconds = {"timed": world.max(clock.stop()), "true": time.perf_counter() - start}
    world.ledger.trained_early(run.ledger.num_early(world))
    world.ledger.at("evaluate", "audit")
    again = functools.partial(seams.slot, "scorer", PlainScorer)
    world.ledger.saw_later(protocol, *score_again(run, weights, again, BOS_ID))
    first = score_of(run, data, config.report_tokens).val_bpb
    if seams.owner("scorer"):
        seams.filled("scorer", score_changed(weights, run), eval_s=seconds["timed"], **scorer.facts)
        seams.audit.link("packed", score_plainly(model, world, data, config, config.report_tokens).val_bpb)
        world.ledger.same_tokens("report")
    seams.audit.link(protocol if seams.owner("scorer") else "packed", first)
    return score, protocol, seconds


# ------------------------------------------------------------------------------------------------------------
# main: settings, stages, result
# ------------------------------------------------------------------------------------------------------------


TRAIN_FACTS = ("steps", "train_tokens", "train_loss", "train_nats")  # of the train stage, in the result


class Run:
    """One run from settings to result.json, stage by stage, in `out_dir`."""

    def __init__(self, resolved: Resolved):
        self.resolved, self.config = resolved, resolved.config
        self.true_start = time.perf_counter()
        if self.config.num_threads:
            torch.set_num_threads(self.config.num_threads)
        self.world = World(self.config)
        self.world.agree("the configuration", resolved.hash())
        torch.set_float32_matmul_precision("high")
        dtype = compute_dtype(self.config, self.world.device)
        self.attention = pick_attention(self.config.attention, self.world.device, dtype)[0]
        run_id = self.config.run_id or resolved.hash()
        self.out_dir = Path(self.config.out_dir or ROOT / "runs" / run_id)
        self.log = Log(self.out_dir, self.world.rank)
        self.reporter = Reporter(self.log, self.config)
        self.seams = Seams(resolved)
        self.audit = self.seams.audit
        self.code = {p: p.read_text(encoding="utf-8") for p in source_files(resolved)}
        self.result: dict[str, Any] = {
            "status": "running",
            "reason": "",
            "hash": resolved.hash(),
            "run_id": run_id,
            "reused": [],  # stages taken over from an earlier process
        }
        self.stage_seconds: dict[str, dict[str, float]] = {}

    # -- before training -----------------------------------------------------------------------------------

    def open_data(self) -> None:
        c, start = self.config, time.perf_counter()
        shape = c.shape()
        self.world.ledger.watch(c.data_path)
        self.data = corpus_dataset.open_dataset(
            c.data_path,
            tokenizer_path=c.tokenizer_path,
            vocab_size=c.vocab_size,
            seq_len=shape.eval_seq_len,
        )
        if c.caseops and not self.data.sidecars:
            raise ValueError(
                f"`caseops` needs CaseOps data, but {c.data_path} has none. Give `data_path`, or drop it."
            )
        tokens = int(min(self.data.num_val_tokens, (c.val_tokens or math.inf) + 1))
        self.seams.check_late_stages(usable_tokens(tokens, seq_len=shape.eval_seq_len))
        hashes = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in self.code.items()}
        machine = self.world.machine(self.attention, compute_dtype(c, self.world.device), c.compile)
        code = codes(hashes, self.resolved)
        self.keys = stage_keys(self.resolved, code, self.data.data_id, machine)
        self.stage_seconds["data"] = {"timed": 0.0, "true": time.perf_counter() - start}
        self.world.stage_ended("data")
        code_hash = digest(sorted(hashes.values()))
        self.result |= {"code_hash": code_hash, "data_id": self.data.data_id, "stage_keys": self.keys}

    def describe(self) -> None:
        """The settings and the machine: in the result, in resolved.json and in the log."""
        facts = self.world.machine_facts(self.attention, compute_dtype(self.config, self.world.device))
        self.result |= facts
        head = {k: v for k, v in self.result.items() if k not in ("status", "reason")}
        told = {"values": self.resolved.values, "origins": self.resolved.origins}
        self.log.write_json("resolved.json", {**told, **head})
        self.reporter.code(self.code.values(), self.world.device)
        self.reporter.settings(self.resolved, self.data, facts)

    # -- stages --------------------------------------------------------------------------------------------

    def finished(self, stage: str) -> dict[str, Any] | None:
        """The record of a stage that an earlier process finished in this folder under the same key."""
        path = self.out_dir / f"stage_{stage}.json"
        if not (self.config.resume and path.exists()):
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if record.get("key") == self.keys[stage] else None

    def record_stage(self, stage: str, **facts: Any) -> None:
        told = {"key": self.keys[stage], "audit": self.audit.state(), "ledger": self.world.ledger.state()}
        told |= {"peak_memory_bytes": self.world.earlier_peak_bytes, "stage_memory": self.world.stage_memory}
        self.log.write_json(f"stage_{stage}.json", {**told, **facts})

    def restore(self, record: Mapping[str, Any]) -> None:
        """What an earlier process saw up to the end of a stage: its audit, its ledger, its memory."""
        self.world.earlier_peak_bytes = max(self.world.earlier_peak_bytes, record.get("peak_memory_bytes", 0))
        self.world.stage_memory |= record.get("stage_memory", {})
        self.world.ledger.restore(record["ledger"])
        self.audit.restore(record["audit"])

    def train_and_pack(self) -> bytes:
        """Stages train, average, quantize and pack, or what an earlier process left of them."""
        artifact_path, weights_path = self.out_dir / "artifact.bin", self.out_dir / "weights.pt"
        record = self.finished("pack")
        if record and artifact_path.exists():
            artifact = artifact_path.read_bytes()
            if hashlib.sha256(artifact).hexdigest() == record["sha256"]:
                self.reporter.reused("pack", record["key"], "training and packing are")
                self.restore(record)
                self.stage_seconds |= record["stage_seconds"]
                self.result |= record["result"]
                self.result["reused"] = ["train", "quantize", "pack"]
                self.weigh(artifact)
                return artifact
        trainer = Trainer(self.seams, self.world, self.data, self.log)
        by_role = trainer.optimizers.params_by_role
        self.result |= {"params": sum(by_role.values()), "params_by_role": by_role}
        self.reporter.parameter_counts(self.resolved, by_role)
        record = self.finished("average")
        if record and weights_path.exists():
            self.reporter.reused("train", record["key"], "training is")
            self.restore(record)
            trained = Trained(torch.load(weights_path, weights_only=True), record["facts"])
            self.stage_seconds |= record["stage_seconds"]
            self.result["reused"] = ["train"]
            trainer.loader.stream.load(trained.facts["stream"])
        else:
            trained = trainer.run()
            seconds = {"train": {"timed": trained.facts["timed_s"], "true": trained.facts["true_s"]}}
            self.stage_seconds |= seconds
            if self.log.loud:
                beside = weights_path.with_suffix(f".{os.getpid()}")
                torch.save(trained.weights, beside)
                os.replace(beside, weights_path)
            self.world.stage_ended("train")
            self.record_stage("average", facts=trained.facts, stage_seconds=seconds)
        self.result |= {name: trained.facts[name] for name in TRAIN_FACTS}
        return self.quantize_and_pack(trainer, trained, artifact_path)

    def quantize_and_pack(self, trainer: Trainer, trained: Trained, artifact_path: Path) -> bytes:
        start = time.perf_counter()
        torch.manual_seed(self.config.seed)  # of this stage, whoever ran the one before
        self.world.ledger.at("quantize", "rounding")
        batches = calibration(trainer, trained.facts["timed_s"])
        packed, facts = quantize(trained.weights, trainer.model, self.seams, batches)
        timed_s = self.world.max(self.world.ledger.calibrated_s)  # the budget pays for data read
        self.stage_seconds["quantize"] = {"timed": timed_s, "true": time.perf_counter() - start}
        self.world.stage_ended("quantize")
        start, replaced = time.perf_counter(), self.seams.owner("codec") is not None
        with ThreadPoolExecutor(1) as beside:  # compressors leave the interpreter free
            head = self.resolved.head()
            plain = beside.submit(pack, packed, head, ZlibCodec()) if replaced else None
            artifact = self.world.from_first(pack(packed, head, self.seams.codec()))
            self.stage_seconds["pack"] = {"timed": 0.0, "true": time.perf_counter() - start}
        if plain:
            saved = len(plain.result()) - len(artifact)
            self.seams.filled("codec", saved != 0, bytes_over_zlib=-saved)
        self.world.stage_ended("pack")
        sha256, elements = hashlib.sha256(artifact).hexdigest(), facts["quantized_elements"]
        self.result |= {"sha256": sha256, "quantized_elements": elements}
        if self.log.loud:
            write_atomically(artifact_path, artifact)
            kept = {k: self.result[k] for k in (*TRAIN_FACTS, "params", "params_by_role", "sha256")}
            kept |= {"quantized_elements": elements}
            self.record_stage("pack", sha256=sha256, stage_seconds=self.stage_seconds, result=kept)
        self.weigh(artifact)
        return artifact

    def weigh(self, artifact: bytes) -> None:
        """Bytes of the submission: the packed model and the script that trains and scores it."""
        script = submitted_script(self.resolved) if self.log.loud else b""
        code_bytes = len(self.world.from_first(script))
        sizes = {"model_bytes": len(artifact), "code_bytes": code_bytes}
        self.result |= {"artifact_bytes": sum(sizes.values()), **sizes}
        self.reporter.sizes(self.seams.codec().name, len(artifact), code_bytes)

    def evaluate(self, artifact: bytes) -> None:
        """Stage evaluate, or what an earlier process found for the same artifact."""
        record, sha256 = self.finished("evaluate"), hashlib.sha256(artifact).hexdigest()
        if record and record["sha256"] == sha256:
            self.reporter.reused("evaluate", record["key"], "scoring is")
            self.restore(record)
            self.stage_seconds["evaluate"] = record["stage_seconds"]
            self.result |= record["result"]
            self.result["reused"] += ["evaluate"]
            return
        score, protocol, seconds = evaluate(artifact, self.seams, self.world, self.data)
        if not math.isfinite(score.val_loss):
            raise Diverged(f"val_loss of the packed model is {score.val_loss}")
        self.stage_seconds["evaluate"] = seconds
        self.world.stage_ended("evaluate")
        self.reporter.score(self.seams.codec().name, protocol, score, seconds["timed"])
        found = {
            "val_bpb": score.val_bpb,
            "val_loss": score.val_loss,
            "protocol": protocol,
            "val_tokens": score.tokens,
            "val_bytes": score.bytes,
            "proxy": bool(self.config.val_tokens),
        }
        self.result |= found
        self.record_stage("evaluate", sha256=sha256, stage_seconds=seconds, result=found)

    # -- the whole -----------------------------------------------------------------------------------------

    def finish(self, status: str, reason: str = "") -> None:
        stages = self.stage_seconds
        timed_train = sum(stages.get(s, {}).get("timed", 0.0) for s in ("train", "quantize"))
        verdicts = [t.verdict() for t in self.resolved.techniques.values()]
        forbidden = self.world.ledger.findings(self.config.max_wallclock_seconds)
        forbidden += implausible(self.result, self.config.train_batch_tokens)
        self.world.stage_ended(self.world.ledger.stage)  # of a run that failed, the one it failed in
        self.result |= {
            "status": status,
            "reason": reason,
            "stage_seconds": stages,
            "train_seconds": timed_train,
            "eval_seconds": stages.get("evaluate", {}).get("timed"),
            "true_seconds": time.perf_counter() - self.true_start,
            "peak_memory_bytes": self.world.earlier_peak_bytes,
            "stage_memory": self.world.stage_memory,
            "stage_memory_counts_anew": self.world.counts_stages,
            "activity": self.audit.report(),
            "bpb_chain": list(self.audit.links.items()),
            "legality": {n: t.verdict().verdict for n, t in self.resolved.techniques.items()},
            "record_legal": all(v.admitted("record") for v in verdicts) and not forbidden,
            "reads": self.world.ledger.summary(),
            "findings": [*forbidden, *self.audit.findings(), *self.world.not_compiled],
        }
        self.reporter.outcome(self.result)

    def go(self) -> int:
        """Exit status: 0 finished; 3 the configuration failed (result.json says why)."""
        try:
            self.open_data()
            self.describe()
            artifact = self.train_and_pack()
            self.evaluate(artifact)
            self.finish("finished")
            self.world.max(0.0)  # no rank leaves while another still works
            return 0
        except Diverged as error:
            self.finish("failed", f"diverged: {error}")
        except torch.OutOfMemoryError as error:
            self.finish("failed", f"out of memory: {str(error).splitlines()[0]}")
        except Unavailable as error:
            self.finish("failed", str(error))
            raise
        finally:
            self.world.close()
        print(f"failed: {self.result['reason']}", file=sys.stderr)
        return 3


def calibration(trainer: Trainer, timed_s: float = 0.0) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches [B, T] from the training stream, continuing behind the last trained token; `timed_s` of the
    budget are used when the first one is asked for."""
    trainer.world.ledger.calibrating(timed_s)
    while True:
        yield from trainer.loader.step()


def main(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(help_text(__doc__ or "", catalog.metadata()))
        return 0
    try:
        return Run(settings_from(argv, os.environ, catalog.runtime(), has_gpu=torch.cuda.is_available())).go()
    except (ValueError, OSError, OverflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
