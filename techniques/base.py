"""The contract of a technique: what it declares, the seams through which it enters the trainer, what it
costs.

No torch here: the search reads names, settings, spaces, legality and costs without paying for torch's import.
Seam methods run once, while the trainer builds; what they return (modules, functions) is what runs.

Tensor legend: B batch, T sequence, D model_dim, H query heads, K key/value heads, Dh head_dim, V vocab_size,
L layers.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from techniques.parts import Averager, Codec, MatrixOptimizer, Quantizer, Scorer, Seam, chain, slot

# Every parameter carries exactly one role, given where it is created; a table in train_gpt.py maps a role to
# its optimiser, learning rate, weight decay and quantiser. `attn` and `mlp` are the trunk's matrices,
# `matrix` is any other 2-D weight that Muon drives, `scalar` is everything that Adam drives at scalar_lr.
# `gate` is routed like `scalar` and stored as float16; `aux` serves the training loss only (Adam at head_lr)
# and is never stored.
ROLES = ("embed", "head", "attn", "mlp", "matrix", "scalar", "gate", "aux")
STAGES = ("data", "train", "average", "quantize", "pack", "evaluate")


class Unavailable(ValueError):
    """What was requested cannot run here. Never a warning: requested means running."""


class Verdict(enum.StrEnum):
    """How the challenge's rules see a technique (techniques' `legality`, with its source)."""

    LEGAL = "legal"
    LEGAL_IF_TIMED = "legal-if-timed"  # legal only while its work is inside the counted training time
    CONTESTED = "contested"  # no maintainer ruling; treated as illegal in the record track
    ILLEGAL = "illegal"


@dataclass(frozen=True)
class Legality:
    verdict: Verdict
    source: str  # the ruling: issue or PR number

    def admitted(self, track: str) -> bool:
        """Track `record` admits what a submission may contain; `open` admits everything, labelled."""
        return track == "open" or self.verdict in (Verdict.LEGAL, Verdict.LEGAL_IF_TIMED)


LEGAL = Legality(Verdict.LEGAL, "training- or compression-side: no rule concerns it")


# ---- search space ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Float:
    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Int:
    low: int
    high: int | str  # a name such as "num_layers" is read from the study's shape
    log: bool = False
    step: int = 1


@dataclass(frozen=True)
class Choice:
    options: tuple[Any, ...]


Space = dict[str, Float | Int | Choice]


# ---- settings --------------------------------------------------------------------------------------------


def setting(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] = (),
    stage: str = "train",
) -> Any:
    """A dataclass field with a unit-bearing sentence, hard limits (inclusive), and the first stage that reads
    it."""
    return field(
        default=default,
        metadata={"doc": doc, "low": low, "high": high, "choices": choices, "stage": stage},
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """The way out of a typo: ` Did you mean x?` or the list of what is known, to end an error with."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."


def parse_value(name: str, value: Any, like: dataclasses.Field[Any]) -> Any:
    """`value` (a string from a command line or an environment, or a JSON/TOML value) as the type of the
    field's default. ValueError names the field, what it got and what it takes."""
    kind: type[object] = type(like.default)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    try:
        if kind is bool:
            if isinstance(value, str):
                return {"1": True, "true": True, "0": False, "false": False}[value.strip().lower()]
            if value in (0, 1):
                return bool(value)
        elif kind is int and not isinstance(value, bool):
            number = int(value)
            if isinstance(value, float) and float(number) != value:
                raise ValueError
            return number
        elif kind is float and not isinstance(value, bool):
            return float(value)
        elif kind is str and isinstance(value, str):
            return value
        raise ValueError
    except (ValueError, KeyError, TypeError, OverflowError):
        raise ValueError(
            f"`{name}` takes {'0 or 1' if kind is bool else 'a ' + kind.__name__}, but got {value!r}: "
            f"{like.metadata['doc']}."
        ) from None


def check_value(name: str, value: Any, like: dataclasses.Field[Any]) -> None:
    """ValueError unless `value` is finite and lies within the field's hard limits."""
    low, high, choices = (like.metadata[k] for k in ("low", "high", "choices"))
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`{name}` must be a finite number, but got {value}: {like.metadata['doc']}.")
    if choices and value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, but got {value!r}.")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        bounds = f"{'-inf' if low is None else low} .. {'inf' if high is None else high}"
        raise ValueError(f"`{name}` must lie in {bounds}, but got {value!r}: {like.metadata['doc']}.")


# ---- optimisers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hyper:
    """Optimiser settings behind the learning rates; techniques change them at the seam `hyper`."""

    muon_momentum: float = 0.95
    muon_momentum_start: float = 0.85  # linear to muon_momentum over the warm-up
    muon_momentum_warmup_steps: int = 500
    muon_ns_steps: int = 5  # Newton–Schulz iterations
    muon_weight_decay: float = 0.0  # decoupled: p ← p·(1 − lr·wd)
    adam_weight_decay: float = 0.0  # scalars and vectors
    embed_weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    adam_eps: float = 1e-8
    lr_mults: tuple[tuple[str, float], ...] = ()  # role -> multiple of its learning rate
    layer_mults: tuple[int, float, float] = (0, 1.0, 1.0)  # of Muon's: below this layer, from it on
    cautious_decay: bool = False  # of Muon's: only where the update has the weight's sign
    lr_mult: float = 1.0  # the same of all, now


# ---- costs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorSpec:
    """One parameter tensor: enough to count, to route and to predict its bytes."""

    role: str
    shape: tuple[int, ...]
    layer: int = -1  # of the model, whose matrix it is; -1: of none
    zero: bool = False  # whether it begins at zero

    @property
    def numel(self) -> int:
        n = 1
        for side in self.shape:
            n *= side
        return n


@dataclass(frozen=True)
class Shape:
    """The sizes that costs and seams depend on."""

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    mlp_mult: float
    seq_len: int  # training sequence, tokens
    eval_seq_len: int  # evaluation sequence, tokens
    tie_embeddings: bool = True
    rope_base: float = 10_000.0
    logit_softcap: float = 30.0
    unet_skips: bool = True
    plan: tuple[int, ...] = ()  # layers in the order of the last phase's forward; (): each once
    embed_dim: int = 0  # width of the embedding table, which projections make model_dim; 0: it is model_dim
    bare_layers: int = 0  # first layers that have no attention

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.num_heads

    @property
    def kv_dim(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def mlp_dim(self) -> int:
        return int(self.mlp_mult * self.model_dim + 1e-6)  # a quotient of whole numbers is whole again

    @property
    def order(self) -> tuple[int, ...]:
        """Layers in the order in which the forward runs them, a looped one several times."""
        return self.plan or tuple(range(self.num_layers))

    @property
    def num_skips(self) -> int:
        """The first half of the order leaves skips that the second takes back."""
        return len(self.order) // 2 if self.unet_skips else 0

    @property
    def num_plain_skips(self) -> int:
        """Of a model that runs each layer once: the baseline's own skip weights."""
        return self.num_layers // 2 if self.unet_skips else 0

    def tensor_specs(self) -> list[TensorSpec]:
        """The baseline's parameters (techniques add theirs through `cost`)."""
        d, kv, hidden = self.model_dim, self.kv_dim, self.mlp_dim
        e = self.embed_dim
        out = [TensorSpec("embed", (self.vocab_size, e or d))]
        if not self.tie_embeddings:
            out.append(TensorSpec("head", (self.vocab_size, d)))
        if e:
            out += [TensorSpec("matrix", (d, e))] + [TensorSpec("matrix", (e, d))] * self.tie_embeddings
        for layer in range(self.num_layers):
            out += [TensorSpec("mlp", (hidden, d), layer), TensorSpec("mlp", (d, hidden), layer, zero=True)]
            out += [TensorSpec("scalar", (2, d)), TensorSpec("scalar", (d,))]
            if layer >= self.bare_layers:
                out += [TensorSpec("attn", (d, d), layer), TensorSpec("attn", (d, d), layer, zero=True)]
                out += [TensorSpec("attn", (kv, d), layer)] * 2
                out += [TensorSpec("scalar", (d,)), TensorSpec("scalar", (self.num_heads,))]
        out.append(TensorSpec("scalar", (self.num_plain_skips, d)))
        return out

    def flops_per_token(self) -> float:
        """Forward FLOPs per token: 2 per matrix element, plus the attention scores over half of the
        sequence."""
        matrices = sum(t.numel for t in self.tensor_specs() if t.role in ("attn", "mlp", "matrix"))
        head = self.embed_dim if self.embed_dim and self.tie_embeddings else self.model_dim
        scores = (self.num_layers - self.bare_layers) * self.seq_len * self.model_dim
        return 2.0 * (matrices + self.vocab_size * head) + 2.0 * scores


class Batch(NamedTuple):
    """A training step's size, over all ranks."""

    tokens: int
    seq_len: int  # tokens of one sequence


@dataclass(frozen=True)
class Cost:
    """What a technique adds to a run; every figure is zero unless stated."""

    tensors: tuple[TensorSpec, ...] = ()  # exact parameters
    flops_per_token: float = 0.0  # extra forward FLOPs per token
    eval_passes: float = 0.0  # forward passes per validation token that it adds to the plain evaluation's one
    calibration_passes: float = 0.0  # forward passes over one training batch, inside the training budget
    artifact_bytes: float = 0.0  # of corrections, which are stored beside the parameters; before the codec

    @property
    def params(self) -> int:
        return sum(t.numel for t in self.tensors)


# ---- the technique ---------------------------------------------------------------------------------------


class Technique:
    """One technique = one subclass in one file; file, class attribute `name`, flag and study share the name.

    Class attributes declare; `self.config` holds the resolved settings; seam methods return what runs, or
    None where the technique does not enter (a layer that it skips, say)."""

    name: ClassVar[str] = ""
    reference: ClassVar[str] = ""  # paper and PR, and who
    legality: ClassVar[Legality] = LEGAL
    stage: ClassVar[str] = "train"  # the first stage whose result it changes
    after: ClassVar[tuple[str, ...]] = ()  # in a chain, it stands behind these
    conflicts: ClassVar[Mapping[str, str]] = {}  # other technique -> why
    requires: ClassVar[tuple[str, ...]] = ()
    # Config field -> technique that it means nothing without
    setting_requires: ClassVar[Mapping[str, str]] = {}
    overrides: ClassVar[tuple[str, ...]] = ()  # trainer settings that nothing reads while it is on
    positionwise: ClassVar[bool] = False  # its parts behind a block's keys and values read one position each
    identity_at_init: ClassVar[bool] = (
        False  # with fresh parameters the model computes what it did without it
    )
    null: ClassVar[Mapping[str, Any] | None] = None  # a scorer's settings under which it adapts nothing
    batching: ClassVar[tuple[str, ...]] = ()  # a scorer's settings that say how much is scored side by side
    space: ClassVar[Space] = {}  # keys are Config fields
    unseen: ClassVar[tuple[str, ...]] = ()  # of these, what changes nothing in a tiny run under `smoke`
    env: ClassVar[
        Mapping[str, str]
    ] = {}  # the field's standard variables: "XSA_LAST_N" -> "last_n"; "on" is the gate
    smoke: ClassVar[Mapping[str, Any]] = {}  # settings under which a tiny run shows it

    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, config: Any = None):
        self.config: Any = self.Config() if config is None else config

    def check(self, shape: Shape) -> None:
        """Raise ValueError for settings that this shape cannot take."""

    def check_data(self, num_positions: int) -> None:
        """Before training: raise Unavailable for settings that so few scored positions cannot take."""

    def verdict(self) -> Legality:
        """The legality of these settings."""
        return self.legality

    def cost(self, shape: Shape) -> Cost:
        return Cost()

    def planned_bits(
        self, tensor: TensorSpec, bits: float, shape: Shape, entropy: Callable[[float], float]
    ) -> float:
        """What `tensor_bits` will make of a matrix' bits, on the average, told without its weights.
        `entropy`: bits -> what an integer of this matrix takes once it is packed, in bits."""
        return bits

    @property
    def isolates_documents(self) -> bool:
        """Whether these settings keep a document from every other one; attention is judged only where it is
        the technique's own."""
        return False

    @property
    def strict_prefix(self) -> bool:
        """Of a scorer: whether under these settings each score depends on the tokens before it alone, and is
        a share of a distribution. It is checked whatever the verdict; what is legal must claim it."""
        return self.verdict().admitted("record")

    @property
    def scores_by_document(self) -> bool:
        """Of a scorer: whether these settings take documents in an order of their own, so that left to right
        holds inside each of them only (#1855)."""
        return False

    @property
    def aims_at_bytes(self) -> bool:
        """Whether what `correct` stores under these settings depends on the bytes of the submission."""
        return False

    def phases(self) -> tuple[float, ...]:
        """Progress in (0, 1) at which the graph changes; every graph runs before the clock starts. A module
        that changes has enter_phase(progress). depth_recurrence; late quantisation-aware training."""
        return ()

    # -- data seams ----------------------------------------------------------------------------------------

    @slot("the first batch")
    def loader(self, shards: Any, seed: int, longest: int) -> Any:
        """The training shards (uint16 arrays) and the longest sequence -> a stream of batches, as
        trainer/stream.py says. coprime_loader; shuffled_loader; shard_order."""

    @chain("batches")
    def batch(self, batch: Batch, phase: float) -> Batch:
        """A step's size from progress `phase` on, one of those that `phases` declares, or 0. Needs no
        torch. batch_schedule; seq_schedule."""
        return batch

    # -- model seams: called once while building; the trainer registers the modules they return ------------

    @chain("loss")
    def embed_in(self, shape: Shape) -> Any:
        """module(x [B,T,D], ids [B,T]) -> x, before the embedding's RMS norm."""

    @chain("loss")
    def embed_out(self, shape: Shape) -> Any:
        """module(x [B,T,D], ids [B,T]) -> x, after the embedding's RMS norm; its result is also
        x0."""

    @chain("loss")
    def shared(self, shape: Shape) -> Any:
        """module(x0 [B,T,D], ids [B,T]) -> tensor, once a forward; layers find it as
        ctx[self.name]."""

    @chain("loss")
    def values(self, shape: Shape, layer: int) -> Any:
        """module(v [B,T,K,Dh], ctx) -> v, before attention; ctx["values"] is this layer's v before
        the chain."""

    @chain("loss")
    def norm(self, shape: Shape, layer: int) -> Any:
        """module(n [B,T,D], ctx, branch) -> n, on both normed inputs of a block; branch is "attn" or
        "mlp"."""

    @slot("loss")
    def rope(self, shape: Shape) -> Any:
        """module(q [B,T,H,Dh], k [B,T,K,Dh]) -> (q, k)."""

    @slot("loss")
    def attend(self, shape: Shape) -> Any:
        """module(q [B,T,H,Dh], k and v [B,T,K,Dh], ctx) -> y [B,T,H,Dh], causal. varlen_attention;
        windowed attention."""

    @chain("loss")
    def attn_out(self, shape: Shape, layer: int) -> Any:
        """module(y [B,T,H,Dh], v [B,T,K,Dh], n [B,T,D], ctx) -> y, before the output projection;
        ctx["queries"] is this layer's q [B,T,H,Dh] before its norm."""

    @slot("loss")
    def activation(self, shape: Shape, layer: int) -> Any:
        """function(z [B,T,mlp_dim]) -> same shape."""

    @slot("loss")
    def mlp(self, shape: Shape, layer: int) -> Any:
        """module(mlp, n [B,T,D], ctx) -> [B,T,D]: what runs where the layer's MLP stands; ctx["visit"]
        counts this layer's earlier passes in this forward. untie_mlp; a mixture of experts."""

    @slot("loss")
    def residual(self, shape: Shape, layer: int) -> Any:
        """module(block, x [B,T,D], x0 [B,T,D], ctx) -> x: how a block's two branches meet the stream
        (block.mix, block.attention, block.feed_forward). parallel_residual; the DTG gate of #549."""

    @chain("loss")
    def block_out(self, shape: Shape, layer: int) -> Any:
        """module(x [B,T,D], ctx) -> x behind block `layer`; `layer` = num_layers: once, before the
        final norm. backout; parallel_residual merges its lanes there."""

    @slot("loss")
    def skip(self, shape: Shape) -> Any:
        """module(x [B,T,D], skip [B,T,D], weight [D], j) -> x: how the j-th skip joins the stream.
        skip_gate; skips through a projection."""

    @chain("loss")
    def sizes(self, shape: Shape) -> Shape:
        """The model's sizes -> others; the baseline's parts are built by them. Needs no torch: costs are of
        the result. factored_embedding; bare_layers."""
        return shape

    @slot("loss")
    def plan(self, shape: Shape) -> Any:
        """function(progress) -> the layers in the order of the forward. Needs no torch: Shape.plan is
        plan(1.0). depth_recurrence; progressive growth (fewer layers at first)."""

    @slot("loss")
    def cap(self, shape: Shape) -> Any:
        """module(z [..,V]) -> logits, float32, of training and evaluation. softcap; a learned
        temperature."""

    @slot("loss")
    def cross_entropy(self, shape: Shape) -> Any:
        """module(z [N,V] before the cap, targets [N]) -> mean nats, of training only. fused_ce; z-loss
        or label smoothing."""

    @chain("loss")
    def loss_terms(self, shape: Shape) -> Any:
        """module(loss, h [B,T,D], targets [B,T], nats) -> loss, of training only; nats(z, targets) is
        the slot above. Parameters here have role `aux`. mtp; auxiliary losses of middle layers."""

    @chain("init")
    def init(self, model: Any) -> None:
        """Change parameters in place, once, after every module is built and before anything reads
        them."""

    # -- run seams: outside the compiled graph -------------------------------------------------------------

    @chain("optimiser settings")
    def hyper(self, hyper: Any) -> Any:
        """Frozen Hyper -> Hyper, once a run."""

    @chain("the steps' settings", every_step=True)
    def hyper_at(self, hyper: Any, progress: float) -> Any:
        """Hyper -> Hyper of one step, at the share `progress` of the budget: what moves while
        training."""

    @slot("the optimiser of matrices")
    def muon(self, params: Any, lr: float, hyper: Any, world: Any, dtype: Any) -> MatrixOptimizer:
        """What stands in Muon's place (trainer/muon.py): the same parameter groups, another way through
        them. parallel_muon; NorMuon."""
        raise NotImplementedError

    @chain("updates")
    def orthogonalize(self, inner: Any) -> Any:
        """function(g [N,r,c], steps) -> same shape, around or instead of `inner`, the one so far
        (Muon's Newton–Schulz)."""

    @chain("loss")
    def weight(self, shape: Shape, role: str, bits: int) -> Any:
        """module(w [out,in]) -> w, before a Linear's product; `bits` is what the export stores."""

    @chain("loss")
    def stepper(self, model: Any) -> Any:
        """function(progress, lr_scale), run before every training step: fills the 0-D buffers through
        which a compiled graph changes."""

    @slot("learning rates", every_step=True)
    def lr_scale(self, progress: float) -> float | None:
        """Multiplier of every learning rate at `progress` in [0, 1] of the training budget."""

    @slot("exported weights")
    def averager(self, model: Any, num_steps: int) -> Averager:
        """Its weights are exported in place of the last ones."""
        raise NotImplementedError

    @slot("stored bits")
    def bits(self, role: str) -> int | None:
        """Bits per weight of a quantised tensor of this role."""

    @chain("bits by tensor")
    def tensor_bits(self, bits: dict[str, int], export: Any) -> dict[str, int]:
        """Bits per weight of every tensor to quantise -> the same, chosen anew; `export` as for
        `correct`. sensitivity_bits; layer_bits."""
        return bits

    @slot("stored scales")
    def row_scale(self, role: str) -> Any:
        """function(weight [r,c], bits, hessian [c,c] or None) -> scales float16 [r] for tensors of
        this role, in place of the quantiser's own choice; None: its own."""

    @slot("stored integers")
    def quantizer(self) -> Quantizer:
        """Rounds the matrices to integers, in place of round to nearest (trainer/artifact.py)."""
        raise NotImplementedError

    @chain("stored tensors")
    def correct(self, packed: Any, export: Any) -> Any:
        """list of Packed -> list of Packed, before packing. `export` has weights {name: float32},
        roles {name: role}, hessians {name: [c,c]}, bytes(packed): the whole submission's size, and
        note(**facts)."""

    @slot("the submission's size")
    def fit(self, packed: Any, bits: dict[str, int], export: Any, again: Any) -> Any:
        """list of Packed, corrected -> list of Packed: what is stored so that the submission has the bytes
        that it may have. `bits` as for `tensor_bits`; again() rounds and corrects anew. sdclip."""
        return packed

    @slot("bytes")
    def codec(self) -> Codec:
        """Compresses the artifact's container, in place of zlib."""
        raise NotImplementedError

    @slot("score")
    def scorer(self) -> Scorer:
        """Scores the validation tokens, in place of sequences side by side."""
        raise NotImplementedError


SEAMS: dict[str, Seam] = {
    seam.name: seam
    for kind in ("chain", "slot")
    for method in vars(Technique).values()
    if (seam := getattr(method, "seam", None)) is not None and seam.kind == kind
}
SLOTS = tuple(name for name, seam in SEAMS.items() if seam.kind == "slot")


def claims(technique: type[Technique] | Technique) -> tuple[str, ...]:
    """The seams that a technique enters: the methods it overrides."""
    return _claims(technique if isinstance(technique, type) else type(technique))


@functools.cache
def _claims(cls: type[Technique]) -> tuple[str, ...]:
    return tuple(s for s in SEAMS if getattr(cls, s) is not getattr(Technique, s))
