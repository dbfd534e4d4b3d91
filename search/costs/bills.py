"""A configuration's bills: bytes of the model; seconds of training steps, calibration and evaluation.

Bytes: exact elements by kind of tensor, each with the entropy of its integers and the codec's distance from
it. Seconds: exact FLOPs by kind of work, and what is no FLOP in FLOPs' clothes. What is left (how
concentrated trained weights are, how fast a machine is) is learnt: search/costs/factors.py fits the factors.
They begin at what recorded trials told: search/costs/prior.json, which `python -m benchmarks.costs.prior`
writes.
"""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from search.costs.factors import Bill, CostModel, Learnt, Part
from techniques.base import Choice, Technique, TensorSpec
from techniques.config import Resolved

PRIOR = Path(__file__).with_name("prior.json")
BACKWARD = 3.0  # FLOPs of a training token over those of a forward one
NEWTON_SCHULZ = 5  # steps of Muon's orthogonalisation
STREAM_FLOPS = 30.0  # norms, gates and residuals: FLOP-equivalents for each element of the stream and layer
ADAM_FLOPS = 12.0  # an element and step
LAUNCH_FLOPS = 1e6  # starting a layer's kernels once, as FLOPs
HEAD_BYTES = 2_000.0  # the JSON head of the artifact
USUAL_BITS = 4.0  # of an element; a learning rate; an exponent
USUAL_RATE = 0.04
MOST_LIFT = 2.5
SCALAR_BYTES, HALF_BYTES = 3.6, 1.85  # an fp32 and an fp16 element after the codec
ROW_SCALE_BYTES = 1.8  # one fp16 scale a row, after the codec (they differ little)
# bits per symbol over the entropy, measured on exports (proxy.md, Bytes): by entropy, then by the technique
# that gives the codec ("": zlib, and what stands for one that is not measured)
ENTROPIES = (2.10, 2.75, 3.33, 3.90, 4.97, 8.0)
OVERHEAD = {
    "": (1.195, 1.170, 1.157, 1.144, 1.075, 1.02),
    "zstd": (1.057, 1.021, 1.017, 1.013, 1.012, 1.005),
    "lzma_xz": (1.113, 1.104, 1.069, 1.047, 1.028, 1.02),
    "brotli_shuffle": (1.054, 1.018, 1.014, 1.009, 1.008, 1.005),
    # one class of rows and columns; brotli less what sorted rows save: benchmarks.trainer.codecs
    "ans": (1.003, 1.003, 1.003, 1.003, 1.003, 1.003),
    "per_group": (1.048, 1.012, 1.008, 1.003, 1.002, 1.000),
}
RATES = {"embed": "tied_embed_lr", "head": "head_lr"}  # the learning rate of a role's weights; else matrix_lr

# Prior standard deviations of the logarithms. Bytes: the calculator is within 5 % of published 16 MB exports
# and up to 30 % above the small models of a laptop, whose rows share one coarse step.
BYTE_SDS = {
    **{"all": 0.15, "role": 0.1, "bits": 0.05, "codec": 0.03, "rounding": 0.1, "row_scale": 0.1},
    **{"cell": 0.08, "source": 0.1, "scalar": 0.1, "half": 0.05, "head": 0.5, "own bytes": 0.5},
    "technique": 0.01,
    **{"rate": 0.1, "rate rounded": 0.1, "log setting": 0.08, "log size": 0.05, "study": 0.05},
}
SECOND_SDS = {
    **{"machine": 12.0, "tokens": 12.0, "work": 0.7, "own work": 0.5, "passes": 0.2, "passes head": 0.4},
    **{"stage": 0.5, "technique": 0.045, "log size": 0.15, "study": 0.7},  # another load may halve the speed
}
# Seeds move bytes: over 20 published records of three seeds and 16 MB the standard deviation is 5 kB
# (median) and 72 kB at most (prior_art.md A5).
SEED_SPREAD = 0.001


@functools.cache
def learnt_before() -> Mapping[str, Learnt]:
    """`bytes`, `train` and `eval` -> what the shipped prior says."""
    return read_prior(json.loads(PRIOR.read_text(encoding="utf-8"))["models"])


def read_prior(models: Mapping[str, Any]) -> dict[str, Learnt]:
    """As the file has it: kind -> spread, trials and factors, name -> [mean, sd] or [mean, sd, centre].
    ValueError for what is no number, and for what must be positive."""
    for kind, facts in models.items():
        sds = {f"sd of {name}": numbers[1] for name, numbers in facts["factors"].items()}
        others = {n: x for n, (mean, _, *centre) in facts["factors"].items() for x in (mean, *centre)}
        positive = {"spread": facts["spread"], "trials": facts["trials"], **sds}
        wrong = [n for n, x in others.items() if not math.isfinite(x)]
        wrong += [n for n, x in positive.items() if not 0.0 < x < math.inf]
        if wrong:
            raise ValueError(
                f"A prior of costs has finite numbers, and sds, spread and trials above 0, but {kind} has "
                f"others: {', '.join(wrong[:3])}. Write it again: python -m benchmarks.costs.prior --write."
            )
    return {
        kind: Learnt(
            {name: (mean, sd, sum(centre)) for name, (mean, sd, *centre) in facts["factors"].items()},
            spread=facts["spread"],
            trials=facts["trials"],
        )
        for kind, facts in models.items()
    }


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


def entropy_bits(bits: int, columns: int, largest: float = 0.0) -> float:
    """Entropy of a Gaussian row's integers when the largest one stands for `largest` times σ; 0: for the
    row's largest weight, E max |w| / σ."""
    root = math.sqrt(2.0 * math.log(2.0 * max(4, columns)))
    expected = root - (math.log(math.log(2.0 * max(4, columns))) + math.log(4.0 * math.pi) - 1.154) / (
        2.0 * root
    )
    return min(float(bits), gaussian_bits((2 ** (bits - 1) - 1) / (largest or expected)))


@functools.lru_cache(4096)
def gaussian_bits(sigma: float) -> float:
    """Entropy of round(x), x normal with this σ."""
    if sigma > 2.0:
        return math.log2(sigma * math.sqrt(2.0 * math.pi * math.e))
    below = [0.5 * (1.0 + math.erf((n + 0.5) / (sigma * math.sqrt(2.0)))) for n in range(-16, 17)]
    shares = [b - a for a, b in itertools.pairwise(below) if b > a]
    return max(0.1, -sum(share * math.log2(share) for share in shares))


def _largest(owner: Technique | None, role: str) -> float:
    """The σ that a row's largest integer stands for under a technique that says so (`attn_k`), else 0."""
    role = {"head": "embed"}.get(role, role)
    config = owner.config if owner else None
    return float(getattr(config, f"{role}_k", getattr(config, "matrix_k", 0.0)))


def words_of(technique: Technique | None) -> str:
    """The technique and its settings that are words: they choose between methods."""
    if technique is None:
        return "none"
    choices = [name for name, domain in type(technique).space.items() if isinstance(domain, Choice)]
    values = [getattr(technique.config, name) for name in choices]
    return "/".join([technique.name, *(value for value in values if isinstance(value, str))])


def model_bill(resolved: Resolved) -> Bill:
    owners = {slot: resolved.owner(slot) for slot in ("bits", "quantizer", "row_scale", "codec")}
    overheads = OVERHEAD.get(owners["codec"].name if owners["codec"] else "", OVERHEAD[""])
    words = {slot: words_of(owner) for slot, owner in owners.items()}
    amounts: dict[tuple[str, str, int], float] = {}
    bits_of: dict[tuple[str, str, int], float] = {}
    plain = {"head": HEAD_BYTES, "scalar": 0.0, "half": 0.0}
    for source, tensor in sourced_tensors(resolved):
        if tensor.role == "aux":
            continue  # of the training loss, not stored
        if tensor.role == "scalar":
            plain["scalar"] += SCALAR_BYTES * tensor.numel
            continue
        bits = (owners["bits"].bits(tensor.role) if owners["bits"] else None) or 8
        if len(tensor.shape) != 2 or tensor.numel < resolved.config.quantize_min_numel or bits == 16:
            plain["half"] += HALF_BYTES * tensor.numel
        else:
            entropy = entropy_bits(bits, tensor.shape[1], _largest(owners["row_scale"], tensor.role))
            overhead = float(np.interp(entropy, ENTROPIES, overheads))
            key = (source, tensor.role, bits)
            stored = tensor.numel * entropy * overhead / 8.0 + ROW_SCALE_BYTES * tensor.shape[0]
            amounts[key] = amounts.get(key, 0.0) + stored
            bits_of[key] = bits_of.get(key, 0.0) + tensor.numel / 8.0
    settings = _quantizer_settings(resolved)
    parts = [Part(amount, {name: 1.0}) for name, amount in plain.items() if amount]
    for name, cost in resolved.costs.items():
        if cost.artifact_bytes > 0:
            parts.append(Part(cost.artifact_bytes, {f"own bytes:{name}": 1.0}))
    for (source, role, bits), amount in amounts.items():
        # what moves the entropy by so many bits, whatever it is, moves few bits most
        lift = min(MOST_LIFT, USUAL_BITS * bits_of[source, role, bits] / amount)
        rate = lift * math.log(max(1e-9, float(resolved.values[_rate_of(resolved, role)])) / USUAL_RATE)
        factors = {
            **{"all": 1.0, f"bits:{bits}": 1.0, f"codec:{words['codec']}": 1.0, f"role:{role}": lift},
            **{f"rounding:{words['quantizer']}": lift, f"row_scale:{words['row_scale']}": lift},
            **{f"cell:{role}/{words['quantizer']}/{bits}": 1.0, f"source:{source}/{role}": lift},
            **{f"rate:{role}": rate, f"rate rounded:{words['quantizer']}": rate},
            **{name: value for (of, name), value in settings.items() if of in ("", role)},
            **{f"technique:{name}": 1.0 for name in resolved.techniques},
        }
        parts.append(Part(amount, factors))
    return Bill(tuple(parts), {**_sizes(resolved), "log size:iterations": _log(resolved, "iterations")})


def _rate_of(resolved: Resolved, role: str) -> str:
    if role == "embed" and not resolved.config.tie_embeddings:
        return "embed_lr"
    return RATES.get(role, "matrix_lr")


def _quantizer_settings(resolved: Resolved) -> dict[tuple[str, str], float]:
    """(role or "", factor) -> logarithm of a positive number of the quantise stage; `attn_k` is attn's."""
    found: dict[tuple[str, str], float] = {}
    for name, technique in resolved.techniques.items():
        if technique.stage != "quantize":
            continue
        for key, value in dataclasses.asdict(technique.config).items():
            role = key.partition("_")[0]
            if isinstance(value, bool | str) or value <= 0 or key.endswith("_bits"):
                continue
            of = role if role in ("attn", "mlp", "embed", "head", "matrix") else ""
            found[of, f"log setting:{name}.{key}"] = math.log(value)
    return found


def _log(resolved: Resolved, name: str) -> float:
    return math.log(max(1e-9, float(resolved.values[name])))


def _sizes(resolved: Resolved) -> dict[str, float]:
    return {f"log size:{name}": _log(resolved, name) for name in ("model_dim", "num_layers", "mlp_mult")}


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
    config, shape = resolved.config, resolved.shape()
    tokens = BACKWARD * steps * config.train_batch_tokens
    amounts: dict[tuple[str, ...], float] = {(n,): tokens * f for n, f in _work(resolved).items()}
    orthogonal, params = 0.0, 0
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
    shape, amounts = resolved.shape(), dict[tuple[str, ...], float]()
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
    bill, calibration = steps_bill(resolved, steps), calibration_bill(resolved)
    return Bill((*bill.parts, *calibration.parts), bill.common) if calibration else bill


def eval_bill(resolved: Resolved) -> Bill:
    """Seconds of the evaluation; with `val_tokens` 0 (all) per validation token: as good to calibrate."""
    shape, tokens = resolved.shape(), float(resolved.config.val_tokens or 1)
    work, total_passes = _work(resolved), 1.0
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
