"""Checks of the export: bytes as estimated, the same file twice, the weights and the score that went in."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

import train_gpt
from conformance.lab import SEQ_LEN, Finished, NotApplicable, Violation
from conformance.subject import Subject
from techniques.base import Technique, TensorSpec, claims
from techniques.config import resolve
from trainer.artifact import Fix
from trainer.seams import Seams

BYTES_TOLERANCE = 0.10  # of the estimate
CODEC_GAIN = 0.25  # a codec may find more than the order-0 entropy of the estimate: neighbours that are alike
CODEC_OVERHEAD = 1.03  # over order-0 entropy, measured here: zlib 4 to 13 % above it, lzma 6 % below
NUM_SPECIALS = 4  # of the bench's byte tokens
DAMAGE_BPB = 0.25  # what 5 to 8 bits may cost at this size; a wrong reload costs several bits


def entropy_bits(symbols: Tensor) -> float:
    """Order-0 entropy in bits per symbol."""
    counts = torch.unique(symbols, return_counts=True)[1].double()
    p = counts / counts.sum()
    return float(-(p * p.log2()).sum())


def estimated_bytes(tensors: Iterable[TensorSpec], *, bits: dict[str, float], min_numel: int) -> float:
    """Parameters × entropy by role: integers with a float16 scale a row, other weights float16, scalars
    float32 (both hardly compress)."""
    total = 0.0
    for t in tensors:
        if t.role == "aux":
            continue  # of the training loss, not stored
        if t.role == "scalar":
            total += 4.0 * t.numel
        elif len(t.shape) != 2 or t.numel < min_numel:
            total += 2.0 * t.numel
        else:
            total += CODEC_OVERHEAD * t.numel * bits[t.role] / 8 + 2.0 * t.shape[0]
    return total


def measured_bits(run: Finished) -> dict[str, float]:
    """Role -> mean entropy of its stored integers."""
    roles = {n: p.role for n, p in run.trainer.model.named_parameters()}  # type: ignore[attr-defined]
    sums: dict[str, tuple[float, int]] = {}
    for item in run.packed:
        if item.scale is not None:
            bits, count = sums.get(roles[item.name], (0.0, 0))
            sums[roles[item.name]] = (
                bits + entropy_bits(item.q) * item.q.numel(),
                count + item.q.numel(),
            )
    return {role: bits / count for role, (bits, count) in sums.items()}


def size(subject: Subject) -> None:
    """The artifact's bytes lie within 10 % of what shapes, roles and entropy predict."""
    run = subject.run()
    shape = run.resolved.shape()
    tensors = [
        *shape.tensor_specs(),
        *(x for t in run.resolved.techniques.values() for x in t.cost(shape).tensors),
    ]
    head = len(train_gpt.pack([], run.resolved.identity(), train_gpt.ZlibCodec())) + 12 * len(run.packed)
    estimate = head + estimated_bytes(
        tensors, bits=measured_bits(run), min_numel=run.resolved.config.quantize_min_numel
    )
    estimate += sum(t.cost(shape).artifact_bytes for t in run.resolved.techniques.values())
    below = CODEC_GAIN if subject.enters("codec") else BYTES_TOLERANCE
    if not -below <= len(run.artifact) / estimate - 1 <= BYTES_TOLERANCE:
        raise Violation(f"the artifact has {len(run.artifact)} bytes, but {estimate:.0f} were estimated")


def reload(subject: Subject) -> None:
    """Unpacked weights are bit for bit the quantised ones, and near those that were trained."""
    run = subject.run()
    owners = [t for t in run.resolved.techniques.values() if "codec" in claims(t)]
    codecs = {c.name: c for c in (train_gpt.ZlibCodec(), *(t.codec() for t in owners))}
    values, weights = train_gpt.unpack(run.artifact, codecs)
    if json.loads(json.dumps(run.resolved.identity())) != values:
        raise Violation("the settings read from the artifact are not those that were packed")
    for label, one in subject.variants:
        again = resolve({"preset": one.resolved.identity()}, subject.known)
        lost = {
            k
            for k in one.resolved.identity() | again.identity()
            if again.values.get(k) != one.resolved.values.get(k)
        }
        if lost:
            raise Violation(f"{label}the settings in the artifact give another {', '.join(sorted(lost))}")
    for item in run.packed:
        if not torch.equal(item.dequantized(), weights[item.name]):
            raise Violation(f"{item.name} reloads with other values than were packed")
    roles = {n: p.role for n, p in run.trainer.model.named_parameters()}  # type: ignore[attr-defined]
    integers = {item.name for item in run.packed if item.scale is not None}
    for name, trained in run.weights.items():
        if name not in weights:  # of the training loss, not stored
            continue
        exact = roles[name] == "scalar" or name not in integers
        precise = trained if roles[name] == "scalar" else trained.half().float()
        if exact and not torch.equal(weights[name], precise):
            raise Violation(f"{name} is stored as it is, but reloads with other values than were trained")
        error = float((weights[name] - trained).norm() / trained.norm().clamp_min(1e-12))
        if not error <= 0.5:
            raise Violation(f"{name} reloads {100 * error:.0f} % away from its trained values")


def same_file(subject: Subject) -> None:
    """Quantise and pack again: the same bytes, whatever was drawn in between (as in a resumed run)."""
    run = subject.run()
    torch.manual_seed(12345)
    again = subject.lab.export(run)[1]
    if again != run.artifact:
        raise Violation(f"a second export of the same weights gives another file ({len(again)} bytes)")


def read_anew(cls: type[Technique]) -> type[Technique]:
    """The technique of its file, executed again: it remembers nothing of any run."""
    place = str(sys.modules[cls.__module__].__file__)
    spec = importlib.util.spec_from_file_location(f"anew.{cls.__module__}", place)
    if spec is None or spec.loader is None or not hasattr(sys.modules[cls.__module__], cls.__name__):
        return cls  # it stands in no file of its own
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, cls.__name__)


def same_score(subject: Subject) -> None:
    """The artifact scores alike where nothing else is left of its run (techniques are read anew: what one
    kept beside the artifact counts no byte), and near what its weights score before they are quantised."""
    run = subject.run()
    lab = subject.lab
    assert run.score is not None
    anew = lab.resolve(subject.settings, {name: read_anew(cls) for name, cls in subject.known.items()})
    again = train_gpt.evaluate(run.artifact, Seams(anew), lab.world, lab.data)[0]
    if again != run.score:
        raise Violation(
            f"the artifact scores {run.score.val_bpb!r}, then, by itself, {again.val_bpb!r} bits per byte"
        )
    if not math.isfinite(run.score.val_bpb):
        raise Violation(f"the score is {run.score.val_bpb}")
    model = run.trainer.model
    train_gpt.load_weights(model, run.weights)
    before = train_gpt.score_plainly(model, subject.lab.world, subject.lab.data, run.resolved.config)
    if not run.score.val_bpb <= before.val_bpb + DAMAGE_BPB:
        raise Violation(
            f"the artifact scores {run.score.val_bpb:.3f} bits per byte, its weights before export "
            f"{before.val_bpb:.3f}"
        )


def counted(subject: Subject) -> str:
    """The score's nats and bytes, counted here: every byte token is a byte, the others are none; without a
    scorer the nats are those of each window by itself."""
    run = subject.run()
    lab = subject.lab
    assert run.score is not None
    c = run.resolved.config
    tokens = torch.from_numpy(lab.data.val_tokens(max_tokens=c.val_tokens + 1).astype("int64"))
    num_bytes = int((tokens[1:] >= NUM_SPECIALS).sum())
    bits = run.score.val_loss * (len(tokens) - 1) / math.log(2)
    told = (run.score.tokens, run.score.bytes, round(run.score.val_bpb, 6))
    if told != (len(tokens) - 1, num_bytes, round(bits / num_bytes, 6)):
        want = (len(tokens) - 1, num_bytes, round(bits / num_bytes, 6))
        raise Violation(f"tokens, bytes and val_bpb are {told}, counted: {want}")
    if run.resolved.owner("scorer") is None:
        codecs = {codec.name: codec for codec in (train_gpt.ZlibCodec(), run.seams.codec())}
        model = train_gpt.build_model(run.resolved, lab.world.device)
        model.drop_aux()
        train_gpt.load_weights(model, train_gpt.unpack(run.artifact, codecs)[1])
        model.eval()
        rows = tokens.to(lab.world.device).unfold(0, SEQ_LEN + 1, SEQ_LEN)
        with torch.no_grad():
            logits = torch.cat([model.logits(model.hidden(row[None, :-1]))[0] for row in rows])
        nats = float(torch.nn.functional.cross_entropy(logits, rows[:, 1:].flatten()))
        if not abs(nats - run.score.val_loss) <= 1e-5:
            raise Violation(
                f"val_loss is {run.score.val_loss:.6f}, but the windows one by one give {nats:.6f}"
            )
    return f"{num_bytes} bytes"


class BenchBits(Technique):
    """Five bits for everything: integers that leave their range show."""

    name = "bench_bits"
    stage = "quantize"

    def bits(self, role: str) -> int:
        return 5


def integers(subject: Subject) -> str:
    """Whatever rounds keeps to ±(2^(bits − 1) − 1), of heavy-tailed weights too."""
    if not subject.enters("quantizer", "row_scale", "correct", "bits"):
        raise NotApplicable("it rounds nothing")
    run = subject.run()
    lab = subject.lab
    known = dict(subject.known)
    settings = dict(subject.settings)
    if subject.resolved.owner("bits") is None:
        known[BenchBits.name] = BenchBits
        settings[BenchBits.name] = True
    seams = Seams(lab.resolve(settings, known))
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for name, w in run.weights.items():
        weights[name] = w * (1 + 8 * (torch.rand(w.shape, generator=generator) < 0.01))
    lab.world.ledger.at("quantize", "rounding")
    packed, _ = train_gpt.quantize(weights, run.trainer.model, seams, train_gpt.calibration(run.trainer))
    roles = {n: p.role for n, p in run.trainer.model.named_parameters()}  # type: ignore[attr-defined]
    widest = 0
    for item in packed:
        if item.scale is not None and not subject.enters("tensor_bits"):
            role = roles[item.name]
            most = 2 ** ((8 if role == "gate" else seams.bits(role)) - 1) - 1  # gates are floats, or 8 bits
            widest = max(widest, int(item.q.to(torch.int32).abs().max()))
            if int(item.q.to(torch.int32).abs().max()) > most:
                raise Violation(f"{item.name} holds an integer of {int(item.q.abs().max())}, beyond {most}")
    return f"at most {widest}"


def container(subject: Subject) -> str:
    """A codec gives back containers of every length: odd shapes, one element, corrections, no tensor."""
    if not subject.enters("codec"):
        raise NotApplicable("it is no codec")
    generator = torch.Generator().manual_seed(9)
    tried = 0

    def q(*shape: int) -> Tensor:
        return torch.randint(-31, 32, shape, generator=generator, dtype=torch.int8)

    def scale(rows: int) -> Tensor:
        return torch.rand(rows, generator=generator).half()

    for label, one in subject.variants:
        for length in range(6):
            fix = Fix("columns", q(3, 2), scale(3), 1)
            items = [
                train_gpt.Packed("blocks.0.attn.c_q.weight", q(3, 5 + length), scale(3), (fix,)),
                train_gpt.Packed("tok_emb", q(1, 1), scale(1)),
                train_gpt.Packed("half", torch.randn(2 * length + 1, generator=generator).half(), None),
                train_gpt.Packed("scalar", torch.randn(1 + length, generator=generator), None),
            ][: None if length else 0]
            codec = one.technique.codec()
            values = {"text": "x" * length}
            told, weights = train_gpt.unpack(train_gpt.pack(items, values, codec), {codec.name: codec})
            same = all(torch.equal(item.dequantized(), weights[item.name]) for item in items)
            tried += 1
            if told != values or not same or len(weights) != len(items):
                raise Violation(f"{label}a container of {len(items)} small tensors comes back as another one")
    return f"{tried} containers"


CHECKS = (
    ("bytes", size),
    ("reload", reload),
    ("same file", same_file),
    ("same score", same_score),
    ("counted", counted),
    ("integers", integers),
    ("container", container),
)
