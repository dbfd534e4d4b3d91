"""A configuration's bills: bytes of the model; seconds of training steps, calibration and evaluation.

Weights: Muon's update of a matrix [r,c] has the root mean square lr/√c, whatever the gradient. Of updates
that agree, a share κ adds up: to κ·T/√c with T = Σ lr over the steps, exact arithmetic of rates and
schedules. After TURNS steps they go another way, and σ grows by the root of T. A weight decay λ pulls back: T
becomes (1 − exp(−λT))/λ. Adam's weights grow by a power of T from the start. κ, its growth with momentum, and
that power were fitted to trained laptop models (`python -m benchmarks.costs.weights` says how well they
tell), TURNS to the sizes of published records.

Integers: what counts is a row's σ in steps. A step is the rule's (sdclip) or a share of the row's largest
weight; under a floor of the step the integers shrink with σ. Bits by role and layer, pruning (the least |w|
of all matrices) and budgets of bits are arithmetic. Bytes are elements times entropies of normal weights,
times the codec's distance from them.

Seconds: exact FLOPs by kind of work, and what is no FLOP in FLOPs' clothes. What is left (how concentrated
trained weights are, how fast a machine is) is learnt: search/costs/factors.py fits the factors. They begin at
what recorded trials told: search/costs/prior.json, which `python -m benchmarks.costs.prior` writes.
"""

import functools
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from search.costs.factors import Bill, CostModel, Learnt, Part, read_prior
from techniques.base import Choice, Hyper, Technique, TensorSpec, claims
from techniques.config import Resolved

PRIOR = Path(__file__).with_name("prior.json")
# -- weights
POINTS = 20  # of the budget at which rates are read
AGREEMENT = 0.56  # κ at a momentum of 0.9
OF_MOMENTUM = 0.5  # κ ∝ (1 − momentum)^−this
ADAM = 0.157  # σ of Adam's weights = ADAM·T^OF_ADAM
OF_ADAM = 0.6
TURNS = 50.0  # steps after which a matrix goes another way
KAIMING = 1.0 / math.sqrt(3.0)  # σ·√c of a matrix that does not begin at zero
LEAST = 1e-3  # σ·√c of a matrix that hardly moves
RATES = {"embed": "tied_embed_lr", "head": "head_lr", "gate": "scalar_lr"}  # of a role; else matrix_lr
# -- integers
FINE = 4.0  # steps of a σ from which sums are integrals
HALVINGS = 20  # of the range that the threshold of pruning lies in
NORMAL = NormalDist()
# -- seconds: rough counts, which factors of their own correct
BACKWARD = 3.0  # FLOPs of a training token over those of a forward one
NEWTON_SCHULZ = 5  # steps of Muon's orthogonalisation
STREAM_FLOPS = 30.0  # norms, gates and residuals: FLOP-equivalents for each element of the stream and layer
ADAM_FLOPS = 12.0  # an element and step
LAUNCH_FLOPS = 1e6  # starting a layer's kernels once, as FLOPs
# -- bytes: estimates, which factors of their own correct
HEAD_BYTES = 2_000.0  # the JSON head of the artifact
SCALAR_BYTES = 3.6  # of an fp32 element after the codec
HALF_BYTES = 1.85  # of an fp16 element after the codec
ROW_SCALE_BYTES = 1.8  # of a row's fp16 scale after the codec (they differ little)
EQUAL_SCALES = 0.2  # share of these that are left where a floor makes most scales equal
USUAL_BITS = 4.0  # a factor of a role or a rounding counts once at so many bits an element, twice at half
MOST_LIFT = 2.5  # times that it counts at most
K_TIMES = (0.25, 16.0)  # what sdclip's fit to bytes multiplies its k by, at least and at most
FINEST_CLIP = 3.0  # σs below which it does not go where bytes are left: more would be clipped
# bits per symbol over the entropy, measured on rounded normal weights (tests/search/costs/test_integers.py):
# by entropy, then by the technique that gives the codec ("": zlib, and what stands for one not measured)
ENTROPIES = (0.55, 1.11, 1.65, 2.10, 2.75, 3.33, 3.90, 4.97, 8.0)
OVERHEAD = {
    "": (1.395, 1.293, 1.238, 1.195, 1.170, 1.157, 1.144, 1.075, 1.02),
    "zstd": (1.285, 1.205, 1.085, 1.057, 1.021, 1.017, 1.013, 1.012, 1.005),
    "lzma_xz": (1.275, 1.209, 1.175, 1.113, 1.104, 1.069, 1.047, 1.028, 1.02),
    "brotli_shuffle": (1.275, 1.260, 1.080, 1.054, 1.018, 1.014, 1.009, 1.008, 1.005),
    # one class of rows and columns; brotli less what sorted rows save: benchmarks.trainer.codecs
    "ans": (1.1, 1.05, 1.01, 1.003, 1.003, 1.003, 1.003, 1.003, 1.003),
    "per_group": (1.275, 1.260, 1.080, 1.048, 1.012, 1.008, 1.003, 1.002, 1.000),
}

# Prior standard deviations of the factors' logarithms, before any trial was recorded: chosen, not measured.
BYTE_SDS = {
    "all": 0.15,
    "role": 0.1,
    "bits": 0.05,
    "codec": 0.03,
    "rounding": 0.1,  # of the quantiser and its settings
    "row_scale": 0.1,
    "source": 0.1,  # of a technique's own matrices, or the baseline's, by role
    "scalar": 0.1,
    "half": 0.05,
    "head": 0.5,
    "own bytes": 0.5,  # of a technique's corrections
    "technique": 0.01,
    "sigma": 0.4,  # of σ, which counts under a floor alone; by source and role
    "weights": 0.15,  # of σ too, by technique
    "log size": 0.05,
    "study": 0.05,
}
SECOND_SDS = {
    "machine": 12.0,  # its speed and the tokens of a whole validation are unknown: any number of digits
    "tokens": 12.0,
    "work": 0.7,
    "own work": 0.5,  # of a technique
    "passes": 0.2,
    "passes head": 0.4,
    "stage": 0.5,
    "technique": 0.045,
    "log size": 0.15,
    "study": 0.7,  # another load may halve the speed
}
# Seeds move bytes: over 20 published records of three seeds and 16 MB the standard deviation is 5 kB
# (median) and 72 kB at most (prior_art.md A5).
SEED_SPREAD = 0.001


@functools.cache
def learnt_before() -> Mapping[str, Learnt]:
    """`bytes`, `train` and `eval` -> what the shipped prior says."""
    return read_prior(json.loads(PRIOR.read_text(encoding="utf-8"))["models"])


def byte_model(learnt: Learnt | None = None) -> CostModel:
    """`learnt`: None as if no trial had ever been recorded; of a second_model, on such machines."""
    return CostModel(BYTE_SDS, spread=0.01, least_spread=SEED_SPREAD, learnt=learnt)


def second_model(learnt: Learnt | None = None) -> CostModel:
    return CostModel(SECOND_SDS, spread=0.1, least_spread=0.01, learnt=learnt)


def sourced_tensors(resolved: Resolved) -> Iterator[tuple[str, TensorSpec]]:
    """(technique or "", parameter) of every parameter of the run, exactly."""
    yield from (("", tensor) for tensor in resolved.shape().tensor_specs())
    for name, cost in resolved.costs.items():
        yield from ((name, tensor) for tensor in cost.tensors)


def num_params(resolved: Resolved) -> int:
    return sum(tensor.numel for _, tensor in sourced_tensors(resolved))


def _log(resolved: Resolved, name: str) -> float:
    return math.log(max(1e-9, float(resolved.values[name])))


def _sizes(resolved: Resolved) -> dict[str, float]:
    return {f"log size:{name}": _log(resolved, name) for name in ("model_dim", "num_layers", "mlp_mult")}


# ----------------------------------------------------------------------------------------------------------
# Weights: their σ from the way that the optimiser goes
# ----------------------------------------------------------------------------------------------------------


class Training:
    """One run's rates: σ of any of its matrices."""

    def __init__(self, resolved: Resolved):
        self.resolved = resolved
        hyper: Any = Hyper()
        entered = [(t, claims(t)) for t in resolved.techniques.values()]
        for technique in (t for t, seams in entered if "hyper" in seams):
            hyper = technique.hyper(hyper)
        self.hyper: Hyper = hyper
        self.mults = dict(self.hyper.lr_mults)
        self.schedules = [t.lr_scale for t, seams in entered if "lr_scale" in seams]
        self.moving = [t.hyper_at for t, seams in entered if "hyper_at" in seams]
        shares = [(k + 0.5) / POINTS for k in range(POINTS)]
        steps = resolved.config.iterations
        self.scale = steps * sum(map(self._scale, shares)) / POINTS  # Σ of the scales of the rates
        risen = [min(1.0, share * steps / max(1, hyper.muon_momentum_warmup_steps)) for share in shares]
        rise = hyper.muon_momentum - hyper.muon_momentum_start
        self.momentum = hyper.muon_momentum_start + rise * sum(risen) / POINTS

    def _scale(self, progress: float) -> float:
        """Of every learning rate at this share of the budget."""
        config = self.resolved.config
        hyper = self.hyper
        scale = 1.0
        if config.warmdown_iters:
            scale = min(1.0, (1.0 - progress) * config.iterations / config.warmdown_iters)
        for lr_scale in self.schedules:
            scale = lr_scale(progress) or 0.0
        for hyper_at in self.moving:
            hyper = hyper_at(hyper, progress)
        return scale * hyper.lr_mult

    def rate(self, tensor: TensorSpec) -> float:
        name = RATES.get(tensor.role, "matrix_lr")
        if tensor.role == "embed" and not self.resolved.config.tie_embeddings:
            name = "embed_lr"
        rate = float(self.resolved.values[name]) * self.mults.get(tensor.role, 1.0)
        split, early, late = self.hyper.layer_mults
        if tensor.layer < 0 or tensor.role in RATES:
            return rate
        return rate * (early if tensor.layer < split else late)

    def sigma(self, tensor: TensorSpec) -> float:
        """Root mean square of the trained elements of a matrix."""
        moved = self.rate(tensor) * self.scale
        if tensor.role in RATES:
            decay = self.hyper.embed_weight_decay if tensor.role == "embed" else self.hyper.adam_weight_decay
            return ADAM * max(LEAST, pulled(moved, 2.0 * decay)) ** OF_ADAM
        agreement = AGREEMENT * (10.0 * max(1e-3, 1.0 - self.momentum)) ** -OF_MOMENTUM
        decay = self.hyper.muon_weight_decay
        straight = pulled(moved, decay)
        astray = math.sqrt(TURNS * self.rate(tensor) * pulled(moved, 2.0 * decay))  # steps that turn at times
        travelled = agreement * straight / math.hypot(1.0, straight / max(1e-12, astray))
        began = LEAST if tensor.zero else KAIMING
        return math.hypot(began, travelled) / math.sqrt(tensor.shape[-1])


def pulled(moved: float, decay: float) -> float:
    """What is left of a way under a decoupled weight decay."""
    return -math.expm1(-decay * moved) / decay if decay else moved


# ----------------------------------------------------------------------------------------------------------
# Integers: the entropy of rounded Gaussian rows
# ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rounded:
    """One matrix: how its rows are rounded."""

    bits: float  # qmax = 2^(bits − 1) − 1
    columns: int
    sigma: float  # of its weights
    largest: float = 0.0  # σs that the largest integer stands for; 0: the row's largest weight
    floor: bool = False  # whether a step is at least 1 / qmax
    pruned: float = 0.0  # share of the integers that are no zeros, made so

    @property
    def step(self) -> float:
        """In weights."""
        clip = (self.largest or largest_of(self.columns)) * self.sigma
        return (max(1.0, clip) if self.floor else clip) / max(0.5, 2.0 ** (self.bits - 1.0) - 1.0)

    def ones(self) -> float:
        """Share of ±1 among the integers that are no zeros."""
        zero = within(0.5 * self.step / self.sigma)
        one = within(1.5 * self.step / self.sigma)
        return min(0.99, (one - zero) / max(1e-9, 1.0 - zero))

    def entropy(self, wider: float = 1.0) -> float:
        """Bits of an integer; if σ were `wider` by this factor."""
        made = replace(self, sigma=self.sigma * wider) if wider != 1.0 else self
        steps = made.sigma / made.step
        bits = gaussian_bits(round(steps, 4), round(made.pruned, 4))
        return max(0.02, min(float(self.bits), bits))

    def sensitivity(self) -> float:
        """d ln entropy / d ln σ: 0 unless a floor holds the step."""
        if not self.floor or self.largest:
            return 0.0
        return math.log(self.entropy(1.1) / self.entropy(1.0 / 1.1)) / (2.0 * math.log(1.1))


def plain_entropy(columns: int, bits: float) -> float:
    """Bits of an integer under its row's largest weight."""
    return Rounded(bits, columns, 1.0).entropy()


@functools.cache
def largest_of(columns: int) -> float:
    """E max |w| / σ of so many normal weights."""
    root = math.sqrt(2.0 * math.log(2.0 * max(4, columns)))
    return root - (math.log(math.log(2.0 * max(4, columns))) + math.log(4.0 * math.pi) - 1.154) / (2.0 * root)


@functools.lru_cache(1 << 15)
def gaussian_bits(sigma: float, pruned: float = 0.0) -> float:
    """Entropy of round(x), x normal with this σ, after a share of what is not zero, the least, became so."""
    sigma = max(0.05, sigma)
    if sigma > FINE:
        zero = pruned + (1.0 - pruned) * within(0.5 / sigma) if pruned else 0.0
        edge = NORMAL.inv_cdf(0.5 + 0.5 * zero)
        square = 1.0 + edge * NORMAL.pdf(edge) / (0.5 * (1.0 - zero))  # E[u²], |u| beyond the edge
        rest = math.log2(sigma * math.sqrt(2.0 * math.pi) * (1.0 - zero)) + 0.5 * square / math.log(2.0)
        return mixed(zero) + (1.0 - zero) * rest
    edges = [0.0, *(NORMAL.cdf((n + 0.5) / sigma) - 0.5 for n in range(20))]
    sides = [b - a for a, b in itertools.pairwise(edges)]  # of one sign; the first is half of the zeros
    left = pruned * (1.0 - 2.0 * sides[0])
    for n in range(1, len(sides)):
        fallen = min(left, 2.0 * sides[n])
        left -= fallen
        sides[n] -= fallen / 2.0
        sides[0] += fallen / 2.0
    shares = [2.0 * sides[0], *sides[1:], *sides[1:]]
    return -sum(share * math.log2(share) for share in shares if share > 1e-12)


def within(edge: float) -> float:
    """P(|u| < edge), u normal."""
    return math.erf(edge / math.sqrt(2.0))


def mixed(share: float) -> float:
    """Entropy of a choice of two."""
    return -sum(p * math.log2(p) for p in (share, 1.0 - share) if 0.0 < p < 1.0)


def pruned(matrices: Sequence[Rounded], elements: Sequence[int], fraction: float) -> list[Rounded]:
    """The same after the least of all weights that are not zero, so many of them, became so."""
    sigmas = [m.sigma for m in matrices]
    zeros = [within(0.5 * m.step / m.sigma) for m in matrices]
    wanted = fraction * sum(n * (1.0 - z) for n, z in zip(elements, zeros, strict=True))
    low = 0.0
    high = 8.0 * max(sigmas, default=0.0)

    def fallen(edge: float) -> list[float]:
        return [max(0.0, within(edge / s) - z) for s, z in zip(sigmas, zeros, strict=True)]

    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        enough = sum(n * f for n, f in zip(elements, fallen(middle), strict=True)) > wanted
        if enough:
            high = middle
        else:
            low = middle
    shares = [min(0.99, f / max(1e-9, 1.0 - z)) for f, z in zip(fallen(low), zeros, strict=True)]
    return [replace(m, pruned=share) for m, share in zip(matrices, shares, strict=True)]


# ----------------------------------------------------------------------------------------------------------
# Bytes
# ----------------------------------------------------------------------------------------------------------


def _largest(owner: Technique | None, role: str) -> float:
    """The σ that a row's largest integer stands for under a technique that says so (`attn_k`), else 0."""
    role = {"head": "embed"}.get(role, role)
    config = owner.config if owner else None
    return float(getattr(config, f"{role}_k", getattr(config, "matrix_k", 0.0)))


def _fitted(largest: float, least: bool) -> float:
    """It under a rule that fits it to bytes: the finest that is taken, or what makes the least bytes."""
    return K_TIMES[1] * largest if least else max(K_TIMES[0] * largest, min(largest, FINEST_CLIP))


def words_of(technique: Technique | None) -> str:
    """The technique and its settings that are words: they choose between methods."""
    if technique is None:
        return "none"
    choices = [name for name, domain in type(technique).space.items() if isinstance(domain, Choice)]
    values = [getattr(technique.config, name) for name in choices]
    return "/".join([technique.name, *(value for value in values if isinstance(value, str))])


def stored_tensors(resolved: Resolved) -> Iterator[tuple[str, TensorSpec, float]]:
    """(technique or "", parameter, its bits; 0: as floats) of all that an artifact stores."""
    owner = resolved.owner("bits")
    shape = resolved.shape()
    for source, tensor in sourced_tensors(resolved):
        if tensor.role == "aux":
            continue  # of the training loss, not stored
        bits: float = (owner.bits(tensor.role) if owner else None) or 8
        large = len(tensor.shape) == 2 and tensor.numel >= resolved.config.quantize_min_numel
        if tensor.role == "scalar" or not large or bits >= 16:
            yield source, tensor, 0.0
            continue
        entropy = functools.partial(plain_entropy, tensor.shape[1])
        for technique in resolved.techniques.values():
            bits = technique.planned_bits(tensor, bits, shape, entropy)
        yield source, tensor, bits


@dataclass
class Kind:
    """Matrices of one source, role and bits: bytes, elements in bytes, and d bytes / d ln σ."""

    stored: float = 0.0
    elements: float = 0.0
    moved: float = 0.0


def rounded_kinds(
    resolved: Resolved, tensors: Iterable[tuple[str, TensorSpec, float]], *, least: bool
) -> dict[tuple[str, str, int], Kind]:
    """(source, role, bits) -> what the matrices come to that are stored as integers."""
    quantizer = resolved.owner("quantizer")
    rule = resolved.owner("row_scale")
    codec = resolved.owner("codec")
    overheads = OVERHEAD.get(codec.name if codec else "", OVERHEAD[""])
    training = Training(resolved)
    alike: Counter[tuple[str, str, tuple[int, ...], Rounded]] = Counter()
    for source, tensor, bits in tensors:
        if bits:
            largest = _largest(rule, tensor.role)
            if largest and rule and rule.aims_at_bytes:
                largest = _fitted(largest, least)
            floor = getattr(quantizer.config, "scale_floor", "") == "published" if quantizer else bits == 8
            sigma = training.sigma(tensor)
            matrix = Rounded(bits, tensor.shape[1], sigma, largest, floor and not largest)
            alike[source, tensor.role, tensor.shape, matrix] += 1
    elements = [count * math.prod(shape) for (_, _, shape, _), count in alike.items()]
    matrices = _pruned([matrix for *_, matrix in alike], elements, resolved.techniques.get("prune"), least)
    awq: Any = resolved.techniques.get("awq_lite")
    found: dict[tuple[str, str, int], Kind] = {}
    for ((source, role, shape, _), count), matrix in zip(alike.items(), matrices, strict=True):
        entropy = matrix.entropy()
        numel = count * math.prod(shape)
        stored = numel * entropy * float(np.interp(entropy, ENTROPIES, overheads)) / 8.0
        scales = count * ROW_SCALE_BYTES * shape[0]
        if awq and role in ("attn", "mlp"):
            stored = _regrouped(stored, numel, shape[1], awq.config.group) + scales
        kind = found.setdefault((source, role, round(matrix.bits)), Kind())
        kind.stored += stored + (EQUAL_SCALES if matrix.floor else 1.0) * scales
        kind.elements += numel / 8.0
        kind.moved += stored * matrix.sensitivity()
    return found


def _pruned(matrices: list[Rounded], elements: list[int], prune: Any, least: bool) -> list[Rounded]:
    """By a share of what is not zero; by a target: none of them, or (least) all ±1."""
    if prune is None:
        return matrices
    if prune.aims_at_bytes:
        return [replace(m, pruned=m.ones() if least else 0.0) for m in matrices]
    return pruned(matrices, elements, prune.config.fraction)


def _regrouped(stored: float, numel: int, columns: int, group: int) -> float:
    """Bytes once a group of columns is stored at 8 bits, and as zeros where it was: awq_lite."""
    share = min(1.0, group / columns)
    fine = Rounded(8, max(4, round(share * columns)), 1.0).entropy()
    return (1.0 - share) * stored + numel * (share * fine + mixed(share) / 8.0) / 8.0


def target_bytes(resolved: Resolved) -> int:
    """Bytes of the whole submission that a technique makes it fit; 0: none does."""
    aiming = [t for t in resolved.techniques.values() if t.aims_at_bytes]
    return int(getattr(aiming[0].config, "target_bytes", 0)) if aiming else 0


def model_bill(resolved: Resolved, *, least: bool = False) -> Bill:
    """Under a target of bytes: before anything was done for it, or the `least` that can be reached."""
    stored = list(stored_tensors(resolved))
    words = {slot: words_of(resolved.owner(slot)) for slot in ("quantizer", "row_scale", "codec")}
    plain = {"head": HEAD_BYTES, "scalar": 0.0, "half": 0.0}
    for _, tensor, bits in stored:
        if not bits:
            kind = "scalar" if tensor.role == "scalar" else "half"
            plain[kind] += {"scalar": SCALAR_BYTES, "half": HALF_BYTES}[kind] * tensor.numel
    parts = [Part(amount, {name: 1.0}) for name, amount in plain.items() if amount]
    for name, cost in resolved.costs.items():
        if cost.artifact_bytes > 0 and name != "awq_lite":  # whose columns are counted with their matrices
            parts.append(Part(cost.artifact_bytes, {f"own bytes:{name}": 1.0}))
    trained = [n for n, t in resolved.techniques.items() if t.stage != "quantize"]
    for (source, role, bits), kind in rounded_kinds(resolved, stored, least=least).items():
        # a factor that moves every entropy by the same bits moves the bytes of few bits most
        lift = min(MOST_LIFT, USUAL_BITS * kind.elements / kind.stored)
        sigma = kind.moved / kind.stored
        factors = {
            **{"all": 1.0, f"bits:{bits}": 1.0, f"codec:{words['codec']}": 1.0, f"role:{role}": lift},
            **{f"rounding:{words['quantizer']}": lift, f"row_scale:{words['row_scale']}": lift},
            **{f"source:{source}/{role}": lift},
            **{f"technique:{name}": 1.0 for name in resolved.techniques},
        }
        if sigma:
            factors |= {f"sigma:{source}/{role}": sigma, **{f"weights:{name}": sigma for name in trained}}
        parts.append(Part(kind.stored, factors))
    return Bill(tuple(parts), {**_sizes(resolved), "log size:iterations": _log(resolved, "iterations")})


# ----------------------------------------------------------------------------------------------------------
# Seconds
# ----------------------------------------------------------------------------------------------------------


def _work(resolved: Resolved) -> dict[str, float]:
    """Forward FLOPs per token by kind of work, techniques' own under their names."""
    shape = resolved.shape()
    head = 2.0 * shape.vocab_size * shape.model_dim
    attention = 2.0 * shape.num_layers * shape.seq_len * shape.model_dim
    work = {
        "work:layers": shape.flops_per_token() - head - attention,
        "work:head": head,
        "work:attention": attention,
        "work:stream": STREAM_FLOPS * shape.num_layers * shape.model_dim,
    }
    for name, cost in resolved.costs.items():
        work[f"own work:{name}"] = cost.flops_per_token
    return {name: flops for name, flops in work.items() if flops > 0.0}


def _second_bill(resolved: Resolved, amounts: Mapping[tuple[str, ...], float]) -> Bill:
    parts = tuple(Part(a, {n: 1.0 for n in names}) for names, a in amounts.items() if a > 0.0)
    common = {"machine": 1.0, **_sizes(resolved)}
    return Bill(parts, {**common, **{f"technique:{name}": 1.0 for name in resolved.techniques}})


def steps_bill(resolved: Resolved, steps: float) -> Bill:
    """Seconds of so many training steps, in FLOPs that the factor `machine` turns into seconds."""
    config = resolved.config
    shape = resolved.shape()
    tokens = BACKWARD * steps * config.train_batch_tokens
    amounts: dict[tuple[str, ...], float] = {(n,): tokens * f for n, f in _work(resolved).items()}
    orthogonal = 0.0
    params = 0
    for _, tensor in sourced_tensors(resolved):
        params += tensor.numel
        if tensor.role in ("attn", "mlp", "matrix") and len(tensor.shape) == 2:
            short, long = sorted(tensor.shape)
            orthogonal += NEWTON_SCHULZ * (4.0 * short * short * long + 2.0 * short**3)
    amounts["work:optimizer",] = steps * (orthogonal + ADAM_FLOPS * params)
    amounts["work:launch",] = steps * LAUNCH_FLOPS * BACKWARD * len(shape.order) * config.micro_batches
    return _second_bill(resolved, amounts)


def calibration_bill(resolved: Resolved) -> Bill | None:
    """Seconds of the calibration inside the training budget; None where nothing calibrates."""
    shape = resolved.shape()
    amounts = dict[tuple[str, ...], float]()
    for name, cost in resolved.costs.items():
        if passes := cost.calibration_passes:
            forward = sum(_work(resolved).values())
            amounts[f"passes:{name}", "stage:calibrate"] = (
                passes * resolved.config.train_batch_tokens * forward
            )
            solved = [t for t in shape.tensor_specs() if t.role in ("attn", "mlp")]
            amounts[f"own work:{name}", "stage:calibrate"] = sum(4.0 * t.numel * t.shape[1] for t in solved)
    return _second_bill(resolved, amounts) if amounts else None


def train_bill(resolved: Resolved, steps: float) -> Bill:
    """Both: what the limit on training counts."""
    bill = steps_bill(resolved, steps)
    calibration = calibration_bill(resolved)
    return Bill((*bill.parts, *calibration.parts), bill.common) if calibration else bill


def eval_bill(resolved: Resolved) -> Bill:
    """Seconds of the evaluation; with `val_tokens` 0 (all) per validation token: as good to calibrate."""
    shape = resolved.shape()
    tokens = float(resolved.config.val_tokens or 1)
    work = _work(resolved)
    total_passes = 1.0
    amounts: dict[tuple[str, ...], float] = {(name,): tokens * flops for name, flops in work.items()}
    for name, cost in resolved.costs.items():
        passes = max(0.0, cost.eval_passes)
        total_passes += passes
        head = work["work:head"]
        amounts[f"passes:{name}", "work:layers"] = passes * tokens * (sum(work.values()) - head)
        amounts[f"passes:{name}", f"passes head:{name}", "work:head"] = passes * tokens * head
    launch = LAUNCH_FLOPS * len(shape.order) * total_passes
    if resolved.config.val_tokens:
        amounts["work:launch",] = launch * max(1.0, tokens / shape.eval_seq_len)
        return _second_bill(resolved, amounts)
    amounts["work:launch",] = launch / shape.eval_seq_len
    bill = _second_bill(resolved, amounts)
    return Bill(bill.parts, {**bill.common, "tokens:all": 1.0})


def from_study(bill: Bill, study: str) -> Bill:
    """The bill with a factor of its own for what differs between studies; "" while there is only one."""
    return Bill(bill.parts, {**bill.common, f"study:{study}": 1.0}) if study else bill
