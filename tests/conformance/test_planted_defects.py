"""Every planted defect is caught by the check that is there for it; a sound technique of the same kind
passes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import train_gpt
from conformance import suite
from conformance.lab import Lab, write_corpus
from techniques.base import Cost, Legality, Shape, Technique, TensorSpec, Verdict, setting
from trainer.parameters import parameter


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Lab(write_corpus(tmp_path_factory.mktemp("planted")))
    torch.set_num_threads(threads)


def failures(lab: Lab, cls: type[Technique], *only: str) -> dict[str, str]:
    """check -> reason of what failed."""
    report = suite.run(cls, lab=lab, only=only)
    return {o.check: o.reason for o in report.outcomes if o.status == "failed"}


# -- an unmasked SmearGate ---------------------------------------------------------------------------------


class Smear(nn.Module):
    """x + λ·x of another position; λ = 0 hides at init whatever is wrong with it."""

    def __init__(self, shift: int, *, masked: bool):
        super().__init__()
        self.strength, self.shift, self.masked = parameter(torch.zeros(()), "scalar"), shift, masked

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        other = torch.roll(x, self.shift, dims=1)
        place = torch.arange(x.size(1), device=x.device)
        other = other * (place != (0 if self.shift > 0 else x.size(1) - 1))[:, None]
        if self.masked:
            other = other * (ids != 1)[..., None]
        return x + self.strength.to(x.dtype) * other


class SoundSmear(Technique):
    name = "planted_smear"
    identity_at_init = True
    isolates_documents = True  # pyright: ignore[reportAssignmentType]
    shift: ClassVar[int] = 1
    masked: ClassVar[bool] = True

    def cost(self, shape: Shape) -> Cost:
        return Cost((TensorSpec("scalar", ()),))

    def embed_in(self, shape: Shape):
        return Smear(self.shift, masked=self.masked)


class SmearFromTheNext(SoundSmear):
    shift = -1


class SmearAcrossDocuments(SoundSmear):
    masked = False


MODEL = ("parameters", "identity", "causality", "isolation")


def test_a_sound_smear_gate_passes(lab: Lab) -> None:
    assert failures(lab, SoundSmear, *MODEL, "gradient", "compiled", "activity", "off") == {}


def test_a_smear_from_the_next_token_is_caught_though_its_gate_is_zero_at_init(lab: Lab) -> None:
    found = failures(lab, SmearFromTheNext, *MODEL)
    assert found.keys() == {"causality"} and "sees the future" in found["causality"]


def test_a_smear_across_documents_is_caught(lab: Lab) -> None:
    found = failures(lab, SmearAcrossDocuments, *MODEL)
    assert found.keys() == {"isolation"} and "the next one moved" in found["isolation"]


# -- a double-zero BigramHash ------------------------------------------------------------------------------


class ZeroTable(nn.Module):
    def __init__(self, model_dim: int):
        super().__init__()
        self.table = parameter(torch.zeros(31, 8), "embed")
        self.proj = parameter(torch.zeros(model_dim, 8), "matrix")

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return x + F.linear(F.embedding(ids % 31, self.table), self.proj).to(x.dtype)


class DoubleZeroBigram(Technique):
    name = "planted_bigram"
    identity_at_init = True

    def cost(self, shape: Shape) -> Cost:
        return Cost((TensorSpec("embed", (31, 8)), TensorSpec("matrix", (shape.model_dim, 8))))

    def embed_in(self, shape: Shape):
        return ZeroTable(shape.model_dim)


class WrongCost(DoubleZeroBigram):
    def cost(self, shape: Shape) -> Cost:
        return Cost((TensorSpec("embed", (31, 8)),))


def test_a_double_zero_bigram_is_dead(lab: Lab) -> None:
    found = failures(lab, DoubleZeroBigram, "parameters", "gradient", "activity")
    assert found.keys() == {"gradient", "activity"}
    assert "table" in found["gradient"] and "proj" in found["gradient"]


def test_a_cost_that_forgets_a_tensor_is_caught(lab: Lab) -> None:
    assert "matrix[64, 8]" in failures(lab, WrongCost, "parameters")["parameters"]


# -- a frozen QAT-like flag --------------------------------------------------------------------------------


class Rounding(nn.Module):
    """Rounds the values after `enabled` is set: a Python attribute, read while the graph is traced."""

    enabled: ClassVar[bool] = False

    def forward(self, v: torch.Tensor, _ctx: Any) -> torch.Tensor:
        return v + ((v * 4).round() / 4 - v).detach() if type(self).enabled else v


class Switch:
    """Sets the flag in mid-training."""

    facts: ClassVar[dict[str, Any]] = {}

    def __init__(self, model: nn.Module):
        self.model, self.steps = model, 0

    def update(self, model: nn.Module, lr_scale: float = 1.0) -> None:
        self.steps += 1
        Rounding.enabled = self.steps == 2  # on for one step: every run starts with it off

    def weights(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().float() for n, p in self.model.named_parameters()}


class LateRounding(Technique):
    """Its switch changes the graph, which it does not declare."""

    name = "planted_qat"

    def values(self, shape: Shape, layer: int):
        return Rounding()

    def averager(self, model: Any, num_steps: int):
        return Switch(model)


class NeverRounding(Technique):
    """Its flag was read when the model was built, and is off for ever."""

    name = "planted_frozen"

    def values(self, shape: Shape, layer: int):
        enabled = Rounding.enabled
        return lambda v, _ctx: (v * 4).round() / 4 if enabled else v


def test_a_flag_that_the_compiler_may_freeze_is_caught(lab: Lab) -> None:
    assert "graphs were compiled where 1 belong" in failures(lab, LateRounding, "compiled")["compiled"]


def test_a_flag_that_froze_is_caught(lab: Lab) -> None:
    found = failures(lab, NeverRounding, "compiled", "activity")
    assert found.keys() == {"activity"} and "inactive" in found["activity"]


# -- test-time training ------------------------------------------------------------------------------------


class ChunkTrainer:
    """Scores a chunk and trains on it, in this order or in the other."""

    facts: ClassVar[dict[str, Any]] = {}

    def __init__(self, lr: float, *, train_first: bool):
        self.lr, self.train_first = lr, train_first

    def score(self, run: Any) -> None:
        for start in range(0, run.num_positions, run.seq_len):
            length = min(run.seq_len, run.num_positions - start)
            for train in (True, False) if self.train_first else (False, True):
                with torch.set_grad_enabled(train):
                    ids, targets = run.window(start, length)
                if train:
                    params = list(run.model.parameters())
                    grads = torch.autograd.grad(run.model(ids[None], targets[None]), params)
                    with torch.no_grad():
                        for p, g in zip(params, grads, strict=True):
                            p.sub_(g, alpha=self.lr)
                else:
                    with torch.no_grad():
                        run.write(start, run.nats(run.model.hidden(ids[None])[0], targets))


class SoundTtt(Technique):
    name = "planted_ttt"
    legality = Legality(Verdict.LEGAL, "test")
    train_first: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Config:
        lr: float = setting(0.02, "SGD rate", low=0.0, high=1.0)

    def scorer(self):
        return ChunkTrainer(self.config.lr, train_first=self.train_first)


class TrainsFirst(SoundTtt):
    train_first = True


class ContestedButClean(SoundTtt):
    legality = Legality(Verdict.CONTESTED, "test")


class Boost:
    """Not a distribution: every target gets more than its probability."""

    facts: ClassVar[dict[str, Any]] = {}

    def score(self, run: Any) -> None:
        for start in range(0, run.num_positions, run.seq_len):
            ids, targets = run.window(start, min(run.seq_len, run.num_positions - start))
            with torch.no_grad():
                run.write(start, 0.9 * run.nats(run.model.hidden(ids[None])[0], targets))


class Unnormalised(Technique):
    name = "planted_boost"
    null: ClassVar[dict[str, Any]] = {}

    def scorer(self):
        return Boost()


class HalfScored(Unnormalised):
    class Half:
        facts: ClassVar[dict[str, Any]] = {}

        def score(self, run: Any) -> None:
            run.write(0, torch.ones(run.num_positions // 2))

    def scorer(self):
        return self.Half()


SCORING = ("coverage", "score-first", "one forward", "activity")


def test_a_ttt_that_scores_before_it_trains_passes(lab: Lab) -> None:
    assert failures(lab, SoundTtt, *SCORING) == {}


def test_a_ttt_that_trains_before_it_scores_is_caught(lab: Lab) -> None:
    found = failures(lab, TrainsFirst, *SCORING)
    assert found.keys() == {"score-first"} and "changed and the score" in found["score-first"]


def test_a_contested_technique_on_which_no_detector_fires_is_a_failure(lab: Lab) -> None:
    assert "no detector fires" in failures(lab, ContestedButClean, "score-first")["score-first"]


def test_scores_that_are_no_distribution_are_caught(lab: Lab) -> None:
    found = failures(lab, Unnormalised, "score-first", "one forward")
    assert "sum to" in found["score-first"] and "nats away" in found["one forward"]


def test_positions_that_are_never_scored_are_caught(lab: Lab) -> None:
    assert "never scored" in failures(lab, HalfScored, "coverage")["coverage"]


# -- a quantiser whose reload differs ----------------------------------------------------------------------


class Quantizer:
    """Per row, 8 bits. `offset`: rows are shifted, and nobody stores by how much. `shared`: one buffer."""

    facts: ClassVar[dict[str, Any]] = {}
    hessians: ClassVar[dict[str, Any]] = {}
    reads_data = False

    def __init__(self, flaw: str):
        self.flaw, self.buffer = flaw, torch.zeros(1 << 20, dtype=torch.int8)

    def calibrate(self, model: Any, batches: Any) -> None:
        pass

    def quantize(
        self, name: str, weight: torch.Tensor, bits: int, rule: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.flaw == "offset":
            weight = weight - weight.amin(1, keepdim=True)
        scale = (weight.abs().amax(1) / 127).clamp_min(1e-7).to(torch.float16)
        noise = torch.rand_like(weight) - 0.5 if self.flaw == "random" else 0.0
        q = (weight / scale.float()[:, None] + noise).round().clamp(-127, 127).to(torch.int8)
        if self.flaw == "shared":
            place = self.buffer[: q.numel()].view(q.shape)
            place.copy_(q)
            q = place
        return q, scale.float() if self.flaw == "wide scale" else scale


class PlantedQuantizer(Technique):
    name = "planted_quantizer"
    stage = "quantize"

    @dataclass(frozen=True)
    class Config:
        flaw: str = setting("none", "what is wrong", stage="quantize")

    def quantizer(self):
        return Quantizer(self.config.flaw)


class LossyCodec:
    name = "lossy"

    def compress(self, data: bytes) -> bytes:
        return data[:-64] + bytes(64)

    def decompress(self, data: bytes) -> bytes:
        return data


class PlantedCodec(Technique):
    name = "planted_codec"
    stage = "pack"

    def codec(self):
        return LossyCodec()


STORAGE = ("reload", "same file", "same score")


def test_a_sound_quantiser_passes(lab: Lab) -> None:
    assert failures(lab, PlantedQuantizer, *STORAGE, "activity") == {}


@pytest.mark.parametrize(
    ("flaw", "check"),
    [("offset", "reload"), ("shared", "reload"), ("wide scale", "reload"), ("random", "same file")],
)
def test_a_quantiser_whose_reload_differs_is_caught(lab: Lab, flaw: str, check: str) -> None:
    report = suite.run(PlantedQuantizer, {"flaw": flaw}, lab=lab, only=STORAGE)
    failed = {o.check: o.reason for o in report.outcomes if o.status != "passed"}
    assert report.status == "failed" and check in failed


def test_a_codec_that_loses_bytes_is_caught(lab: Lab) -> None:
    assert "reloads with other values" in failures(lab, PlantedCodec, "reload")["reload"]


# -- a technique that outlives its switch ------------------------------------------------------------------


class StaysOn(Technique):
    """It patches the trainer's own forward instead of entering at a seam."""

    name = "planted_patch"

    def embed_in(self, shape: Shape):
        train_gpt.MLP.forward = lambda mlp, n: 2 * mlp.proj(mlp.activation(mlp.fc(n)))  # type: ignore[method-assign]


def test_a_technique_that_is_still_there_when_it_is_off_is_caught(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lab.golden
    monkeypatch.setattr(train_gpt.MLP, "forward", train_gpt.MLP.forward)
    assert "switched off" in failures(lab, StaysOn, "off")["off"]
