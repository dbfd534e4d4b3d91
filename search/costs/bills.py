"""A configuration's bills: bytes of the model; seconds of training steps, calibration and evaluation.

Bytes: exact elements by kind of tensor, each with the entropy of its integers and the codec's distance from
it. Seconds: exact FLOPs by kind of work, and what is no FLOP in FLOPs' clothes. What is left (how
concentrated trained weights are, how fast a machine is) is learnt: search/costs/factors.py fits the factors.
They begin at what recorded trials told: search/costs/prior.json, which `python -m benchmarks.costs.prior`
writes.
"""

import functools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from search.costs.factors import Bill, CostModel, Learnt, Part
from search.costs.integers import Rounded, budgeted, mixed, pruned
from search.costs.weights import Training
from techniques.base import Choice, Technique, TensorSpec
from techniques.config import Resolved

PRIOR = Path(__file__).with_name("prior.json")
BACKWARD = 3.0  # FLOPs of a training token over those of a forward one
NEWTON_SCHULZ = 5  # steps of Muon's orthogonalisation
STREAM_FLOPS = 30.0  # norms, gates and residuals: FLOP-equivalents for each element of the stream and layer
ADAM_FLOPS = 12.0  # an element and step
LAUNCH_FLOPS = 1e6  # starting a layer's kernels once, as FLOPs
HEAD_BYTES = 2_000.0  # the JSON head of the artifact
USUAL_BITS = 4.0  # of an element; an exponent
MOST_LIFT = 2.5
K_TIMES = (0.25, 16.0)  # what sdclip's fit to bytes makes of its k at most; where bytes are left it
FINEST_CLIP = 3.0  # ends near so many σ
SCALAR_BYTES, HALF_BYTES = 3.6, 1.85  # an fp32 and an fp16 element after the codec
ROW_SCALE_BYTES = 1.8  # one fp16 scale a row, after the codec (they differ little)
EQUAL_SCALES = 0.2  # of it, where a floor makes most of them equal
# bits per symbol over the entropy, measured on exports (proxy.md, Bytes): by entropy, then by the technique
# that gives the codec ("": zlib, and what stands for one that is not measured)
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

# Prior standard deviations of the logarithms. Bytes: the calculator is within 5 % of published 16 MB exports
# and up to 30 % above the small models of a laptop, whose rows share one coarse step.
BYTE_SDS = {
    **{"all": 0.15, "role": 0.1, "bits": 0.05, "codec": 0.03, "rounding": 0.1, "row_scale": 0.1},
    **{"source": 0.1, "scalar": 0.1, "half": 0.05, "head": 0.5, "own bytes": 0.5},
    "technique": 0.01,
    **{"sigma": 0.4, "weights": 0.15, "log size": 0.05, "study": 0.05},
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


def stored_tensors(resolved: Resolved) -> Iterator[tuple[str, TensorSpec, float]]:
    """(technique or "", parameter, its bits; 0: as floats) of all that an artifact stores."""
    owner, config = resolved.owner("bits"), resolved.config
    own = resolved.techniques.get("layer_bits")
    layers = own.chosen(config.num_layers) if own else ()  # type: ignore[attr-defined]
    sensitive = resolved.techniques.get("sensitivity_bits")
    for source, tensor in sourced_tensors(resolved):
        if tensor.role == "aux":
            continue  # of the training loss, not stored
        bits: float = (owner.bits(tensor.role) if owner else None) or 8
        whole = len(tensor.shape) == 2 and tensor.numel >= config.quantize_min_numel and bits < 16
        if tensor.role == "scalar" or not whole:
            yield source, tensor, 0.0
            continue
        if sensitive and tensor.role in ("attn", "mlp"):
            c: Any = sensitive.config
            bits = budgeted(bits, tensor.shape[1], c.budget_share, c.low, c.high)
        if own and tensor.layer in layers and tensor.role in ("attn", "mlp"):
            bits = float(own.config.bits)  # type: ignore[attr-defined]
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
    quantizer, rule, codec = (resolved.owner(slot) for slot in ("quantizer", "row_scale", "codec"))
    overheads = OVERHEAD.get(codec.name if codec else "", OVERHEAD[""])
    training = Training(resolved)
    alike: Counter[tuple[str, str, tuple[int, ...], Rounded]] = Counter()
    for source, tensor, bits in tensors:
        if bits:
            largest = _largest(rule, tensor.role)
            if largest and rule and rule.aims_at_bytes:
                fewest = max(K_TIMES[0] * largest, min(largest, FINEST_CLIP))
                largest = K_TIMES[1] * largest if least else fewest
            floor = getattr(quantizer.config, "scale_floor", "") == "published" if quantizer else bits == 8
            sigma = training.sigma(tensor)
            matrix = Rounded(bits, tensor.shape[1], sigma, largest, floor and not largest)
            alike[source, tensor.role, tensor.shape, matrix] += 1
    elements = [count * math.prod(shape) for (_, _, shape, _), count in alike.items()]
    matrices = _pruned([matrix for *_, matrix in alike], elements, resolved.techniques.get("prune"), least)
    awq = resolved.techniques.get("awq_lite")
    found: dict[tuple[str, str, int], Kind] = {}
    for ((source, role, shape, _), count), matrix in zip(alike.items(), matrices, strict=True):
        entropy, numel = matrix.entropy(), count * math.prod(shape)
        stored = numel * entropy * float(np.interp(entropy, ENTROPIES, overheads)) / 8.0
        scales = count * ROW_SCALE_BYTES * shape[0]
        if awq and role in ("attn", "mlp"):
            stored = _regrouped(stored, numel, shape[1], awq.config.group) + scales  # type: ignore[attr-defined]
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
            kind, size = ("scalar", SCALAR_BYTES) if tensor.role == "scalar" else ("half", HALF_BYTES)
            plain[kind] += size * tensor.numel
    parts = [Part(amount, {name: 1.0}) for name, amount in plain.items() if amount]
    for name, cost in resolved.costs.items():
        if cost.artifact_bytes > 0 and name != "awq_lite":
            parts.append(Part(cost.artifact_bytes, {f"own bytes:{name}": 1.0}))
    trained = [n for n, t in resolved.techniques.items() if t.stage != "quantize"]
    for (source, role, bits), kind in rounded_kinds(resolved, stored, least=least).items():
        # what moves the entropy by so many bits, whatever it is, moves few bits most
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
